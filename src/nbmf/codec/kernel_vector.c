#include "kernel.h"
#include "kernel_vector.h"
#include <math.h>
#include <stdlib.h>
#include <string.h>
#if defined(__clang__) || defined(_MSC_VER)
#pragma STDC FP_CONTRACT OFF      /* doubles are those of the reference, operation by operation; GCC keeps to it under -std=c11 */
#endif

#if defined(__x86_64__) && defined(__GNUC__)
#define HAVE_AVX2 1
#include <immintrin.h>
#endif
#define MIN(a, b) ((a) < (b) ? (a) : (b))
#define MAX(a, b) ((a) > (b) ? (a) : (b))
#define CLAMP(x, least, most) MIN(MAX(x, least), most)

#define CLASS_LEAST (-12)
#define CLASS_MOST 24
#define HALF 48
#define TOTAL_BITS 15
#define FLOAT_BELOW 24
#define RAW_ROW 255
#define STEP_MOST 254
#define WHITE 24
#define INDEX_MOST (1 << 20)
#define SPENT_MAX 4
#define EXPONENT_MOST 100
#define TRIES 12
#define CLOSE 0.995
#define NOISE 0.2465
#define COST_FOLD 1024
#define COST_MOST (1 << 29)
#define LAPLACE 0.57
#define UNIT 0x1p-19
#define NORM_KEPT 0.001
#define MULTIPLES 64
#define WHOLE 0.125
#define BACK_OFF 0.002

static const uint8_t NEXT[8][2] = { { 0, 1 }, { 2, 3 }, { 5, 4 }, { 7, 6 }, { 1, 0 }, { 3, 2 }, { 4, 5 }, { 6, 7 } };
/* state before, parity: the two ways into each state */
static const uint8_t INTO[8][2][2] = { { { 0, 0 }, { 4, 1 } }, { { 0, 1 }, { 4, 0 } }, { { 1, 0 }, { 5, 1 } }, { { 1, 1 }, { 5, 0 } },
                                       { { 2, 1 }, { 6, 0 } }, { { 2, 0 }, { 6, 1 } }, { { 3, 1 }, { 7, 0 } }, { { 3, 0 }, { 7, 1 } } };
/* 2**(-i/32) times 2**16, rounded down */
static const uint32_t PARTS[32] = { 65536, 64131, 62757, 61412, 60096, 58809, 57548, 56315, 55108, 53928, 52772, 51641, 50535, 49452, 48392, 47355,
                                    46340, 45347, 44376, 43425, 42494, 41584, 40693, 39821, 38967, 38132, 37315, 36516, 35733, 34968, 34218, 33485 };

/* --- what is read through --- */

static size_t pad64(size_t n) { return (n + 63) & ~(size_t)63; }

int nbmf_vector_tables(VectorTables *t, const uint8_t *data, size_t n) {
    const size_t rows = VECTOR_FAMILIES * 2 * VECTOR_CLASSES;
    const size_t size[6] = { rows * (VECTOR_SYMBOLS + 1) * 2, rows * 256, VECTOR_FAMILIES * 8 * (VECTOR_FLOAT_SYMBOLS + 1) * 2,
                             VECTOR_CLASSES * 8, VECTOR_CLASSES * 8, VECTOR_EDGES * 8 };
    const uint8_t *part[6];
    size_t at = 0;
    for (int i = 0; i < 6; i++) { part[i] = data + at; at += pad64(size[i]); }
    if (at != n) return -1;
    *t = (VectorTables){ (const uint16_t *)part[0], part[1], (const uint16_t *)part[2], (const double *)part[3], (const int64_t *)part[4], (const double *)part[5] };
    return 0;
}

int nbmf_vector_transform(VectorTransform *t, const uint8_t *data, size_t n, const uint8_t *dual, size_t n_dual) {
    int32_t head[16];
    if (n < sizeof head) return -1;
    memcpy(head, data, sizeof head);
    for (int i = 0; i < 6; i++) if (head[i] < 0 || head[i] > 1 << 16) return -1;
    const size_t d = (size_t)head[2], m = (size_t)head[3], s = (size_t)head[5];
    if (d % 32 || m % 32 || s % 32 || head[0] > head[2] || head[1] > head[3] || head[4] > head[5] || !head[0] || !head[1]) return -1;
    if (n != sizeof head + 4 * (d + 4 * m) + d * m + m * s) return -1;
    if (dual && n_dual != 4 * m + 2 * m * d) return -1;
    const int32_t *mean = (const int32_t *)(data + sizeof head), *rest = mean + d;
    const int8_t *columns = (const int8_t *)(rest + 4 * m);
    *t = (VectorTransform){ head[0], head[1], head[2], head[3], head[4], head[5], mean, rest, rest + m, rest + 2 * m, rest + 3 * m, columns, columns + d * m,
                            (const int32_t *)dual, dual ? (const int16_t *)(dual + 4 * m) : NULL };
    return 0;
}

/* --- range coder --- */

typedef struct { uint64_t low; uint32_t range, cache; size_t pending; int first; uint8_t *out; size_t n, cap; } Writer;
typedef struct { const uint8_t *in; size_t n, at; uint32_t range, code, part; int spent, bad; } Reader;

static void shift(Writer *w) {
    if ((uint32_t)w->low < 0xFF000000u || w->low >> 32) {
        uint8_t carry = (uint8_t)(w->low >> 32);
        for (size_t i = 0; i < w->pending; i++) {
            if (!w->first) w->out[w->n++] = (uint8_t)((i ? 0xFF : w->cache) + carry);
            w->first = 0;
        }
        w->pending = 0;
        w->cache = (uint32_t)w->low >> 24;
    }
    w->pending++;
    w->low = (uint64_t)((uint32_t)w->low & 0xFFFFFF) << 8;
}

static inline void put(Writer *w, uint32_t start, uint32_t count, int bits) {
    uint32_t part = w->range >> bits;
    w->low += (uint64_t)part * start;
    w->range = part * count;
    while (w->range < 1u << 24) { w->range <<= 8; shift(w); }
}

/* The fewest bytes that, followed by zeros, lie in [low, low + range). */
static void finish(Writer *w) {
    int n = 0;
    for (; n < 4; n++) {
        uint64_t mask = (1ull << (32 - 8 * n)) - 1, v = (w->low + mask) & ~mask;
        if (v < w->low + w->range) { w->low = v; break; }
    }
    for (int i = 0; i <= n; i++) shift(w);
}

/* Room for `more` bytes beyond those that wait. */
static int room(Writer *w, size_t more) {
    size_t need = w->n + w->pending + more + 16;
    if (need <= w->cap) return 0;
    size_t cap = MAX(need, 2 * w->cap);
    uint8_t *out = realloc(w->out, cap);
    if (!out) return -1;
    w->out = out; w->cap = cap;
    return 0;
}

static void reader_open(Reader *r, const uint8_t *in, size_t n) {
    *r = (Reader){ in, n, 4, 0xFFFFFFFFu, 0, 0, n < 4 ? 4 - (int)n : 0, 0 };
    for (size_t i = 0; i < 4; i++) r->code = r->code << 8 | (i < n ? in[i] : 0);
}

static inline uint32_t place(Reader *r, int bits) {
    r->part = r->range >> bits;
    uint32_t v = r->code / r->part;
    if (v >> bits) { r->bad = 1; v = 0; }
    return v;
}

static inline void take(Reader *r, uint32_t start, uint32_t count) {
    r->code -= r->part * start;
    r->range = r->part * count;
    while (r->range < 1u << 24) {
        uint32_t byte = 0;
        if (r->at < r->n) byte = r->in[r->at];
        else if (++r->spent > SPENT_MAX) { r->bad = 1; r->range = 0xFFFFFFFFu; r->code = 0; return; }
        r->at++;
        r->code = r->code << 8 | byte;
        r->range <<= 8;
    }
}

static inline void put_bits(Writer *w, uint32_t value, int bits) {
    if (bits > 16) { put(w, value >> 16, 1, bits - 16); bits = 16; }
    if (bits) put(w, value & ((1u << bits) - 1), 1, bits);
}
static inline uint32_t get_raw(Reader *r, int bits) { uint32_t v = place(r, bits); take(r, v, 1); return v; }
static inline uint32_t get_bits(Reader *r, int bits) {
    uint32_t high = bits > 16 ? get_raw(r, bits - 16) : 0;
    return bits ? high << 16 | get_raw(r, MIN(bits, 16)) : 0;
}
static inline void put_symbol(Writer *w, const uint16_t *cum, int symbol) { put(w, cum[symbol], (uint32_t)cum[symbol + 1] - cum[symbol], TOTAL_BITS); }

static int bit_length(uint64_t v) { int n = 0; while (v) { n++; v >>= 1; } return n; }

/* --- indices --- */

typedef struct { const uint16_t *cum; const uint8_t *start; int low; } Spread;

static inline Spread spread_of(const VectorTables *t, int family, int q, int c) {
    int low = c > CLASS_MOST ? (c - CLASS_MOST + 7) >> 3 : 0;
    c = MAX(c - 8 * low, CLASS_LEAST);
    size_t row = (size_t)(family * 2 + (low ? 1 : q)) * VECTOR_CLASSES + (size_t)(c - CLASS_LEAST);
    return (Spread){ t->cum + row * (VECTOR_SYMBOLS + 1), t->start + row * 256, low };
}

static inline void put_index(Writer *w, const VectorTables *t, int family, int q, int c, int32_t k) {
    const Spread s = spread_of(t, family, q, c);
    int32_t high = k >> s.low;
    if (high >= -HALF && high < HALF && s.cum[high + HALF + 1] > s.cum[high + HALF]) put_symbol(w, s.cum, high + HALF);
    else {
        put_symbol(w, s.cum, VECTOR_SYMBOLS - 1);
        uint32_t number = (high >= 0 ? 2 * (uint32_t)high : 2 * (uint32_t)-high - 1) + 1;
        int n = bit_length(number) - 1;
        put(w, (uint32_t)n, 1, 5);
        put_bits(w, number - (1u << n), n);
    }
    put_bits(w, (uint32_t)k & ((1u << s.low) - 1), s.low);
}

static inline int32_t get_index(Reader *r, const VectorTables *t, int family, int q, int c) {
    const Spread s = spread_of(t, family, q, c);
    uint32_t v = place(r, TOTAL_BITS);
    int symbol = s.start[v >> (TOTAL_BITS - 8)];
    while (s.cum[symbol + 1] <= v) symbol++;
    take(r, s.cum[symbol], (uint32_t)s.cum[symbol + 1] - s.cum[symbol]);
    int32_t high = symbol - HALF;
    if (symbol == VECTOR_SYMBOLS - 1) {
        uint32_t n = get_raw(r, 5);
        if (n > 24) { r->bad = 1; n = 0; }
        uint32_t number = (1u << n) + get_bits(r, (int)n) - 1;
        high = number % 2 ? -(int32_t)(number >> 1) - 1 : (int32_t)(number >> 1);
    }
    return (int32_t)((uint32_t)high << s.low) + (int32_t)get_bits(r, s.low);
}

static void put_points(Writer *w, const VectorTables *t, int family, const int32_t *classes, int one_class, const int32_t *points, size_t n) {
    int state = 0;
    for (size_t i = 0; i < n; i++) {
        int32_t k = (points[i] - (state & 1)) >> 1;
        put_index(w, t, family, state & 1, classes ? classes[i] : one_class, k);
        state = NEXT[state][k & 1];
    }
}

static void get_points(Reader *r, const VectorTables *t, int family, const int32_t *classes, int offset, int32_t *points, size_t n) {
    int state = 0;
    for (size_t i = 0; i < n && !r->bad; i++) {
        int32_t k = get_index(r, t, family, state & 1, (classes ? classes[i] : 0) + offset);
        int32_t j = (int32_t)(2 * (uint32_t)k) + (state & 1);
        points[i] = CLAMP(j, -INDEX_MOST, INDEX_MOST);
        state = NEXT[state][k & 1];
    }
}

/* --- halves --- */

static float half_to_float(uint16_t h) {
    uint32_t sign = (uint32_t)(h & 0x8000) << 16, e = h >> 10 & 31, m = h & 1023, bits;
    if (e == 31) bits = sign | 0x7F800000u | m << 13;
    else if (e) bits = sign | (e + 112) << 23 | m << 13;
    else { float f = (float)m * 0x1p-24f; memcpy(&bits, &f, 4); bits |= sign; }
    float f;
    memcpy(&f, &bits, 4);
    return f;
}

/* To nearest, ties to even. */
static uint16_t float_to_half(float f) {
    uint32_t x;
    memcpy(&x, &f, 4);
    uint32_t sign = x >> 16 & 0x8000, e = x >> 23 & 255, m = x & 0x7FFFFF;
    if (e == 255) return (uint16_t)(sign | 0x7C00 | (m ? 0x200 | m >> 13 : 0));
    if (e > 142) return (uint16_t)(sign | 0x7C00);
    if (e < 102) return (uint16_t)sign;
    uint32_t whole = m | 0x800000;
    int drop = e < 113 ? 126 - (int)e : 13;
    uint32_t kept = whole >> drop, rest = whole & ((1u << drop) - 1), middle = 1u << (drop - 1);
    kept += rest > middle || (rest == middle && (kept & 1));
    return (uint16_t)(sign + (e < 113 ? kept : ((e - 112) << 10) + (kept - 1024)));
}

/* --- steps, norms, results --- */

static uint32_t square_root(uint64_t v) {
    uint64_t r = (uint64_t)sqrt((double)v);
    if (r > 0xFFFFFFFFu) r = 0xFFFFFFFFu;
    while (r * r > v) r--;
    while (r < 0xFFFFFFFFu && (r + 1) * (r + 1) <= v) r++;
    return (uint32_t)r;
}

static int64_t step_size(size_t d, int step) {
    /* 2**64 / d does not fit for d = 1, whose root is 2**32 */
    uint64_t root = d == 1 ? 1ull << 32 : square_root((uint64_t)(-(uint64_t)d / d + 1));
    return (int64_t)(root * PARTS[step & 31] >> 24 >> (step >> 5));
}

static int coded(const VectorTransform *t, int step) {
    int n = 0, high = t->m;                       /* levels fall */
    while (n < high) {
        int middle = (n + high) >> 1;
        if (t->level[middle] + (step >> 2) - 8 >= CLASS_LEAST) n = middle + 1; else high = middle;
    }
    return n;
}

typedef struct { uint32_t m; int e; } Norm;
static const Norm UNIT_NORM = { 1 << 16, -16 };

static int norm_parts(double norm, Norm *out) {
    if (!(norm > 0 && norm < INFINITY)) return -1;
    int e;
    uint32_t whole = (uint32_t)rint(frexp(norm, &e) * (1 << 17));
    if (whole == 1 << 17) { whole = 1 << 16; e++; }
    if (e < -EXPONENT_MOST || e > EXPONENT_MOST) return -1;
    *out = (Norm){ whole, e - 17 };
    return 0;
}

static double power2(int e) {     /* -1022...1023 */
    uint64_t bits = (uint64_t)(e + 1023) << 52;
    double d;
    memcpy(&d, &bits, 8);
    return d;
}

static void store(void *row, size_t i, float f, int half) {
    if (half) ((uint16_t *)row)[i] = float_to_half(f);
    else ((float *)row)[i] = f;
}
static double load(const void *row, size_t i, int half) { return half ? half_to_float(((const uint16_t *)row)[i]) : ((const float *)row)[i]; }

static void finished(const int32_t *z, size_t d, Norm norm, int half, void *row) {
    uint64_t total = 0;
    for (size_t i = 0; i < d; i++) total += (uint64_t)((int64_t)z[i] * z[i]);
    if (!total) { for (size_t i = 0; i < d; i++) store(row, i, 0.0f, half); return; }
    int a = (64 - bit_length(total)) / 2, drop = 33 - a;
    int64_t gain = (int64_t)(((uint64_t)norm.m << 46) / square_root(total << 2 * a)), round = (int64_t)1 << (drop - 1);
    double unit = power2(drop - 46 + norm.e + a);
    if (half) for (size_t i = 0; i < d; i++) ((uint16_t *)row)[i] = float_to_half((float)((double)(float)(int32_t)((z[i] * gain + round) >> drop) * unit));
    else for (size_t i = 0; i < d; i++) ((float *)row)[i] = (float)((double)(float)(int32_t)((z[i] * gain + round) >> drop) * unit);
}

/* --- products of rows and a vector of 16-bit integers; n is a multiple of 32, sums wrap --- */

static void products16_plain(const int16_t *rows, size_t n_rows, size_t stride, const int16_t *x, size_t n, int32_t *out) {
    for (size_t r = 0; r < n_rows; r++, rows += stride) {
        uint32_t sum = 0;
        for (size_t i = 0; i < n; i++) sum += (uint32_t)(rows[i] * x[i]);
        out[r] = (int32_t)sum;
    }
}
static void products8_plain(const int8_t *rows, size_t n_rows, size_t stride, const int16_t *x, size_t n, int32_t *out) {
    for (size_t r = 0; r < n_rows; r++, rows += stride) {
        uint32_t sum = 0;
        for (size_t i = 0; i < n; i++) sum += (uint32_t)(rows[i] * x[i]);
        out[r] = (int32_t)sum;
    }
}
#ifdef HAVE_AVX2
#define LOAD16(p) _mm256_loadu_si256((const __m256i *)(p))
#define LOAD8(p) _mm256_cvtepi8_epi16(_mm_loadu_si128((const __m128i *)(p)))
/* n_rows is taken up to a multiple of 4: rows and out are padded. */
#define PRODUCTS(NAME, TYPE, LOAD) \
__attribute__((target("avx2"))) static void NAME(const TYPE *rows, size_t n_rows, size_t stride, const int16_t *x, size_t n, int32_t *out) { \
    for (size_t r = 0; r < n_rows; r += 4, rows += 4 * stride) { \
        __m256i a = _mm256_setzero_si256(), b = a, c = a, d = a; \
        for (size_t i = 0; i < n; i += 16) { \
            const __m256i v = LOAD16(x + i); \
            a = _mm256_add_epi32(a, _mm256_madd_epi16(v, LOAD(rows + i))); \
            b = _mm256_add_epi32(b, _mm256_madd_epi16(v, LOAD(rows + stride + i))); \
            c = _mm256_add_epi32(c, _mm256_madd_epi16(v, LOAD(rows + 2 * stride + i))); \
            d = _mm256_add_epi32(d, _mm256_madd_epi16(v, LOAD(rows + 3 * stride + i))); \
        } \
        const __m256i s = _mm256_hadd_epi32(_mm256_hadd_epi32(a, b), _mm256_hadd_epi32(c, d)); \
        _mm_storeu_si128((__m128i *)(out + r), _mm_add_epi32(_mm256_castsi256_si128(s), _mm256_extracti128_si256(s, 1))); \
    } \
}
PRODUCTS(products16_avx2, int16_t, LOAD16)
PRODUCTS(products8_avx2, int8_t, LOAD8)
#define BEST(name) (*nbmf_simd() == 'a' ? name##_avx2 : name##_plain)
#else
#define BEST(name) name##_plain
#endif

static void coordinates(const VectorTransform *t, const int64_t *values, size_t n, int16_t *factor, int32_t *z) {
    memset(factor, 0, (size_t)t->m_padded * sizeof *factor);
    for (size_t j = 0; j < n; j++) {
        int64_t f = (values[j] * t->scale[j] + (1 << 23)) >> 24;
        factor[j] = (int16_t)CLAMP(f, -32767, 32767);
    }
    BEST(products8)(t->columns, (size_t)t->dim, (size_t)t->m_padded, factor, (n + 31) & ~(size_t)31, z);
    for (int32_t i = 0; i < t->dim; i++) {
        int32_t v = (int32_t)((uint32_t)z[i] + (uint32_t)t->mean[i]);
        z[i] = CLAMP(v, 1 - (1 << 23), (1 << 23) - 1);
    }
}

static void predicted(const VectorTransform *t, const int16_t *side, int16_t *padded, int32_t *dots, int64_t *values) {
    if (!t->sides || !side) { memset(values, 0, (size_t)t->m_padded * sizeof *values); return; }
    memset(padded, 0, (size_t)t->sides_padded * sizeof *padded);
    memcpy(padded, side, (size_t)t->sides * sizeof *padded);
    BEST(products8)(t->side_rows, (size_t)t->m, (size_t)t->sides_padded, padded, (size_t)t->sides_padded, dots);
    for (int32_t j = 0; j < t->m; j++) values[j] = (((int64_t)dots[j] * t->side_scale[j]) >> 20) + t->side_offset[j];
}

/* --- one row's room --- */

typedef struct {
    size_t d, m;                                  /* padded to 32 */
    double *x, *y, *left, *whole, *back;
    int64_t *expected, *values;
    int32_t *u, *weight, *classes, *points, *best, *z, *dots;
    uint8_t *chosen;
    int16_t *small, *padded;
    void *memory;
} Work;

static int work_open(Work *w, size_t d, const VectorTransform *t) {
    const size_t m = t ? (size_t)t->m_padded : 0, s = t ? (size_t)t->sides_padded : 0;
    d = t ? (size_t)t->dim_padded : (d + 31) & ~(size_t)31;
    const size_t n = MAX(d, m);
    const size_t size[16] = { 8 * d, 8 * n, 8 * (n + 8), 8 * n, 8 * n, 8 * n, 8 * n, 4 * n, 4 * n, 4 * n, 4 * n, 4 * n, 4 * n, 4 * n, n, 2 * n };
    size_t total = 64 + pad64(2 * s);
    for (int i = 0; i < 16; i++) total += pad64(size[i]);
    uint8_t *at = w->memory = malloc(total);
    if (!at) return -1;
    void *part[16];
    for (int i = 0; i < 16; i++) { part[i] = at; at += pad64(size[i]); }
    void *memory = w->memory;
    *w = (Work){ d, m, part[0], part[1], part[2], part[3], part[4], part[5], part[6], part[7], part[8], part[9], part[10], part[11],
                 part[12], part[13], part[14], part[15], (int16_t *)at, memory };
    return 0;
}

/* Coefficients of `all`: what is expected of each, and of the first n what their points add. */
static void joined(Work *w, const int32_t *points, size_t n, int64_t size, size_t all) {
    for (size_t j = 0; j < all; j++) {
        int64_t v = w->expected[j] + (j < n ? CLAMP(points[j], -INDEX_MOST, INDEX_MOST) * size : 0);
        w->values[j] = CLAMP(v, 1 - (1 << 27), (1 << 27) - 1);
    }
}

/* --- trellis --- */

static void fold(int32_t *cost) {
    int32_t least = cost[0];
    for (int s = 1; s < 8; s++) least = MIN(least, cost[s]);
    for (int s = 0; s < 8; s++) cost[s] = MIN(cost[s] - least, COST_MOST);
}

/* Fills w->chosen, and cost[8] with the paths' costs at the end. */
static void forward_plain(Work *w, size_t n, int32_t *cost) {
    for (size_t i = 0; i < n; i++) {
        int32_t p[4], new[8];
        uint32_t chosen = 0;
        for (int j = 0; j < 4; j++) {
            int32_t rest = ((w->u[i] - 64 * j + 128) & 255) - 128;
            p[j] = rest * rest * w->weight[i];
        }
#define WAY(state, a, pa, b, pb) do { \
            int32_t first = cost[a] + p[(a & 1) + 2 * pa], second = cost[b] + p[(b & 1) + 2 * pb]; \
            chosen |= (uint32_t)(second < first) << state; new[state] = MIN(first, second); } while (0)
        WAY(0, 0, 0, 4, 1); WAY(1, 0, 1, 4, 0); WAY(2, 1, 0, 5, 1); WAY(3, 1, 1, 5, 0);
        WAY(4, 2, 1, 6, 0); WAY(5, 2, 0, 6, 1); WAY(6, 3, 1, 7, 0); WAY(7, 3, 0, 7, 1);
        w->chosen[i] = (uint8_t)chosen;
        memcpy(cost, new, sizeof new);
        if (i % COST_FOLD == COST_FOLD - 1) fold(cost);
    }
}
#ifdef HAVE_AVX2
__attribute__((target("avx2")))
static void forward_avx2(Work *w, size_t n, int32_t *cost) {
    const __m256i from_first = _mm256_setr_epi32(0, 0, 1, 1, 2, 2, 3, 3), from_second = _mm256_setr_epi32(4, 4, 5, 5, 6, 6, 7, 7);
    const __m256i by_first = _mm256_setr_epi32(0, 2, 1, 3, 2, 0, 3, 1), by_second = _mm256_setr_epi32(2, 0, 3, 1, 0, 2, 1, 3);
    const __m256i middle = _mm256_set1_epi32(128), mask = _mm256_set1_epi32(255);
    const __m256i place = _mm256_setr_epi32(128, 64, 0, -64, 128, 64, 0, -64);    /* 128 - 64 j */
    __m256i c = _mm256_loadu_si256((const __m256i *)cost);
    for (size_t i = 0; i < n; i++) {
        __m256i rest = _mm256_sub_epi32(_mm256_and_si256(_mm256_add_epi32(_mm256_set1_epi32(w->u[i]), place), mask), middle);
        __m256 p = _mm256_castsi256_ps(_mm256_mullo_epi32(_mm256_mullo_epi32(rest, rest), _mm256_set1_epi32(w->weight[i])));
        __m256i first = _mm256_add_epi32(_mm256_permutevar8x32_epi32(c, from_first), _mm256_castps_si256(_mm256_permutevar_ps(p, by_first)));
        __m256i second = _mm256_add_epi32(_mm256_permutevar8x32_epi32(c, from_second), _mm256_castps_si256(_mm256_permutevar_ps(p, by_second)));
        w->chosen[i] = (uint8_t)_mm256_movemask_ps(_mm256_castsi256_ps(_mm256_cmpgt_epi32(first, second)));
        c = _mm256_min_epi32(first, second);
        if (i % COST_FOLD == COST_FOLD - 1) {
            _mm256_storeu_si256((__m256i *)cost, c);
            fold(cost);
            c = _mm256_loadu_si256((const __m256i *)cost);
        }
    }
    _mm256_storeu_si256((__m256i *)cost, c);
}
#endif

static void trellis(Work *w, size_t n, int32_t *out) {
    int32_t cost[8] = { 0, COST_MOST, COST_MOST, COST_MOST, COST_MOST, COST_MOST, COST_MOST, COST_MOST };
    BEST(forward)(w, n, cost);
    int state = 0;
    for (int s = 1; s < 8; s++) if (cost[s] < cost[state]) state = s;
    for (size_t i = n; i-- > 0;) {
        const uint8_t *way = INTO[state][w->chosen[i] >> state & 1];
        const int j = (way[0] & 1) + 2 * way[1];
        out[i] = (w->u[i] - (((w->u[i] - 64 * j + 128) & 255) - 128)) >> 6;
        state = way[0];
    }
}

static void leaned(const VectorTables *t, Work *w, const double *y, double size, const int32_t *classes, int one_class, size_t n) {
    const double per = 64 / size, most = 64.0 * INDEX_MOST, magic = 6755399441055744.0;
    for (size_t i = 0; i < n; i++) {
        int at = MIN(classes ? classes[i] : one_class, CLASS_MOST) - CLASS_LEAST;
        double v = y[i] * per * t->shrink[at];
        v = CLAMP(v, -most, most);
        w->u[i] = (int32_t)((v + magic) - magic);
        w->weight[i] = (int32_t)t->weight[at];
    }
}

/* --- rows --- */

static double cosine_of(const double *x, double norm, const double *z, size_t n) {
    double dot = 0, square = 0;
    for (size_t i = 0; i < n; i++) { dot += x[i] * z[i]; square += z[i] * z[i]; }
    return square > 0 ? dot / (norm * sqrt(square)) : -1.0;
}
static double cosine_of_ints(const double *x, double norm, const int32_t *z, size_t n) {
    double dot = 0, square = 0;
    for (size_t i = 0; i < n; i++) { double v = z[i]; dot += x[i] * v; square += v * v; }
    return square > 0 ? dot / (norm * sqrt(square)) : -1.0;
}

static int is_kept(const double *x, double norm, const void *made, const VectorShape *shape, const VectorBounds *b, double *back) {
    double total = 0, most = 0;
    for (size_t i = 0; i < shape->d; i++) {
        double v = back[i] = load(made, i, shape->half), e = fabs(x[i] - v);
        if (!(v - v == 0)) return 0;
        total += v * v;
        if (e > most) most = e;
    }
    if (b->most > 0 && most > b->most) return 0;
    if (b->cosine < 0) return 1;
    if (cosine_of(x, norm, back, shape->d) < b->cosine + b->margin / 2) return 0;
    return b->most > 0 || fabs(sqrt(total) - norm) <= NORM_KEPT * norm;
}

typedef struct { uint8_t head[3]; int n_head, family, one_class; const int32_t *classes, *points; size_t n; } Row;

static void spread(const VectorTables *t, double sum, double squares, size_t d, int *family, int *c) {
    double mean = sum / (double)d, square = squares / (double)d;
    *family = mean * mean < LAPLACE * square;
    double value = *family ? 2 * mean * mean : square;
    int at = 0;
    while (at < VECTOR_EDGES && t->edge[at] <= value) at++;
    *c = MIN(at, VECTOR_EDGES - 2) + CLASS_LEAST;
}

/* Whether all values are whole numbers of steps, nearly. */
static int is_whole(const double *y, double size, size_t n) {
    for (size_t i = 0; i < n; i++) { double v = y[i] / size; if (!(fabs(v - rint(v)) <= WHOLE)) return 0; }
    return 1;
}

/* Values as points; 0 unless they lie on a path. */
static int walked(const double *y, double size, size_t n, int32_t *points) {
    int state = 0;
    for (size_t i = 0; i < n; i++) {
        const double v = rint(y[i] / size);
        if (!(fabs(v) <= INDEX_MOST)) return 0;
        const int32_t j = points[i] = (int32_t)v;
        if ((j ^ state) & 1) return 0;
        state = NEXT[state][(j - (state & 1)) >> 1 & 1];
    }
    return 1;
}

/* The points, in w->best, of a row that was decoded once: they give it back bit by bit. */
static int recognized(Work *w, const VectorShape *shape, Norm parts, const void *from, void *made) {
    const size_t d = shape->d;
    double least = INFINITY;
    for (size_t i = 0; i < d; i++) { double v = fabs(w->y[i]); if (v > 0 && v < least) least = v; }
    for (int k = 1; k <= MULTIPLES; k++) {
        const double size = least / k;
        if (!is_whole(w->y, size, d) || !walked(w->y, size, d, w->best)) continue;
        finished(w->best, d, parts, shape->half, made);
        if (memcmp(made, from, d * (shape->half ? 2 : 4)) == 0) return 1;
    }
    return 0;
}

static int plain_direction(const VectorTables *t, Work *w, const VectorShape *shape, const VectorBounds *b, double norm, Norm parts, const void *from,
                           void *made, Row *row) {
    const size_t d = shape->d;
    const double factor = sqrt((double)d) / norm, goal = b->cosine + b->margin, allowed = 1 - goal * goal;
    if (!(allowed > 0)) return 0;                  /* what the cosine and its margin leave is nothing */
    for (size_t i = 0; i < d; i++) w->y[i] = w->x[i] * factor;
    const int again = recognized(w, shape, parts, from, made);
    double size = sqrt(allowed / NOISE), best_size = 0;
    int found = again;
    for (int turn = 0; turn < TRIES && !again; turn++) {
        leaned(t, w, w->y, size, NULL, CLASS_MOST, d);
        trellis(w, d, w->points);
        double near = cosine_of_ints(w->x, norm, w->points, d), wrong = near > 0 ? 1 - near * near : 1.0;
        if (near >= goal) {
            if (size > best_size) { memcpy(w->best, w->points, d * sizeof *w->best); best_size = size; found = 1; }
            if (wrong >= CLOSE * allowed) break;
        } else if (turn >= TRIES / 2 && found) break;
        double by = sqrt(allowed / MAX(wrong, allowed / 16));
        size *= MIN(by, 1.5) * (near < goal ? 1.0 - BACK_OFF * (turn + 1) : 1.0);
        if (found && size <= best_size) break;
    }
    if (!found) return 0;
    finished(w->best, d, parts, shape->half, made);
    if (!again && !is_kept(w->x, norm, made, shape, b, w->back)) return 0;
    double sum = 0, squares = 0;
    for (size_t i = 0; i < d; i++) { double k = fabs((double)w->best[i]) / 2.0; sum += k; squares += k * k; }
    *row = (Row){ .n_head = 1, .points = w->best, .n = d };
    spread(t, sum, squares, d, &row->family, &row->one_class);
    row->head[0] = (uint8_t)((row->one_class - CLASS_LEAST) | row->family << 7);
    return 1;
}

static void classes_of(const VectorTransform *f, int step, size_t n, int32_t *classes) {
    for (size_t j = 0; j < n; j++) classes[j] = f->level[j] + (step >> 2) - 8;
}

/* Whether a step is expected to keep the cosine, told among the coefficients; its points. */
static int attempt(const VectorTables *t, const VectorTransform *f, Work *w, size_t d, double goal, int step, int32_t *points) {
    const double size = (double)step_size(d, step);
    const size_t n = (size_t)coded(f, step), m = (size_t)f->m;
    classes_of(f, step, n, w->classes);
    leaned(t, w, w->y, size, w->classes, 0, n);
    trellis(w, n, points);
    double along = 0, square = 0;
    for (size_t j = 0; j < m; j++) {
        double e = j < n ? w->y[j] - points[j] * size : w->y[j];
        along += e * w->whole[j];
        square += e * e;
    }
    const double one = power2(2 * WHITE), length = one - 2 * along + square;
    return length > 0 && one - along >= goal * (sqrt(length) * power2(WHITE));
}

static int learned_direction(const VectorTables *t, const VectorTransform *f, Work *w, const VectorShape *shape, const VectorBounds *b, const int16_t *side,
                             double norm, Norm parts, void *made, Row *row) {
    const size_t d = shape->d, m = (size_t)f->m;
    const double factor = 32767 / norm, magic = 6755399441055744.0;
    memset(w->small, 0, w->d * sizeof *w->small);
    for (size_t i = 0; i < d; i++) { double v = w->x[i] * factor; w->small[i] = (int16_t)(int32_t)((v + magic) - magic); }
    BEST(products16)(f->dual, m, (size_t)f->dim_padded, w->small, (size_t)f->dim_padded, w->dots);
    predicted(f, side, w->padded, w->points, w->expected);
    for (size_t j = 0; j < m; j++) w->y[j] = (double)((w->dots[j] >> 6) - (int64_t)f->offset[j] - w->expected[j]);
    const double goal = b->cosine + b->margin, one = power2(2 * WHITE), allowed = (1 - goal * goal) * one;
    w->left[m] = 0;
    for (size_t j = m; j-- > 0;) w->left[j] = w->left[j + 1] + w->y[j] * w->y[j];
    for (size_t j = 0; j < m; j++) w->whole[j] = w->dots[j] / 64.0;
    int low = 0, high = STEP_MOST;
    while (low < high) {
        int middle = (low + high) >> 1, n = coded(f, middle);
        double size = (double)step_size(d, middle);
        if (n * NOISE * size * size + w->left[n] <= allowed) high = middle; else low = middle + 1;
    }
    int32_t *points = w->points, *other = w->best;
    int step = low, found = attempt(t, f, w, d, goal, step, points);
    while (found && step > 0 && attempt(t, f, w, d, goal, step - 1, other)) {
        int32_t *swap = points; points = other; other = swap;
        step--;
    }
    for (;; step++, found = attempt(t, f, w, d, goal, step, points)) {
        if (found) {
            const size_t n = (size_t)coded(f, step), all = f->sides ? m : n;
            joined(w, points, n, step_size(d, step), all);
            coordinates(f, w->values, all, w->small, w->z);
            finished(w->z, d, parts, shape->half, made);
            if (is_kept(w->x, norm, made, shape, b, w->back)) {
                classes_of(f, step, n, w->classes);
                *row = (Row){ .head = { (uint8_t)step }, .n_head = 1, .classes = w->classes, .points = points, .n = n };
                return 1;
            }
        }
        if (step == STEP_MOST) return 0;
    }
}

static int lattice(const VectorTables *t, Work *w, const VectorShape *shape, const VectorBounds *b, double norm, void *made, Row *row) {
    int e;
    int64_t whole = (int64_t)(frexp(2 * b->most, &e) * 512);
    e -= 9;
    for (int turn = 0; turn < TRIES; turn++, e--) {
        if (e < -EXPONENT_MOST || e > EXPONENT_MOST) return 0;
        const double step = ldexp((double)whole, e), unit = power2(e);
        double sum = 0, squares = 0;
        for (size_t i = 0; i < shape->d; i++) {
            double k = rint(w->x[i] / step), size = fabs(k);
            if (!(size < 1 << 20)) return 0;
            sum += size; squares += size * size;
            w->points[i] = (int32_t)k;
            store(made, i, (float)((double)(float)((int64_t)k * whole) * unit), shape->half);
        }
        if (!is_kept(w->x, norm, made, shape, b, w->back)) continue;
        *row = (Row){ .n_head = 3, .points = w->points, .n = shape->d };
        spread(t, sum, squares, shape->d, &row->family, &row->one_class);
        row->head[0] = (uint8_t)(e + EXPONENT_MOST);
        row->head[1] = (uint8_t)(whole - 256);
        row->head[2] = (uint8_t)((row->one_class - CLASS_LEAST) | row->family << 7);
        return 1;
    }
    return 0;
}

long nbmf_vector_encode(const VectorTables *t, const VectorTransform *f, const VectorShape *shape, const VectorBounds *b, const void *rows,
                        const int16_t *sides, uint8_t **out, void *made, size_t *as_they_are, int *unit) {
    const size_t d = shape->d, size = shape->half ? 2 : 4;
    Work w;
    Writer o = { .range = 0xFFFFFFFFu, .pending = 1, .first = 1 };
    *out = NULL;
    *as_they_are = 0;
    if (work_open(&w, d, f) < 0) return NBMF_SPACE;
    *unit = shape->mode == VECTOR_DIRECTION;
    for (size_t r = 0; r < shape->n && *unit; r++) {
        double total = 0;
        for (size_t i = 0; i < d; i++) { double v = load((const uint8_t *)rows + r * d * size, i, shape->half); total += v * v; }
        const double norm = sqrt(total);
        *unit = fabs(norm * norm - 1) <= UNIT;
    }
    for (size_t r = 0; r < shape->n; r++) {
        const uint8_t *from = (const uint8_t *)rows + r * d * size;
        uint8_t *to = (uint8_t *)made + r * d * size;
        double total = 0;
        for (size_t i = 0; i < d; i++) { w.x[i] = load(from, i, shape->half); total += w.x[i] * w.x[i]; }
        const double norm = sqrt(total);
        Norm parts = UNIT_NORM;
        Row row;
        int done = 0;
        if (norm < INFINITY) {
            if (shape->mode == VECTOR_LATTICE) done = lattice(t, &w, shape, b, norm, to, &row);
            else if (*unit || norm_parts(norm, &parts) == 0)
                done = f ? learned_direction(t, f, &w, shape, b, sides ? sides + r * (size_t)f->sides : NULL, norm, parts, to, &row)
                         : plain_direction(t, &w, shape, b, norm, parts, from, to, &row);
        }
        if (room(&o, 16 + 8 * d) < 0) { free(w.memory); free(o.out); return NBMF_SPACE; }
        if (!done) {
            ++*as_they_are;
            memcpy(to, from, d * size);
            put(&o, RAW_ROW, 1, 8);
            for (size_t i = 0; i < d; i++) put_bits(&o, shape->half ? ((const uint16_t *)from)[i] : ((const uint32_t *)from)[i], shape->half ? 16 : 32);
            continue;
        }
        for (int i = 0; i < row.n_head; i++) put(&o, row.head[i], 1, 8);
        if (shape->mode == VECTOR_LATTICE) {
            for (size_t i = 0; i < row.n; i++) put_index(&o, t, row.family, 0, row.one_class, row.points[i]);
            continue;
        }
        if (!*unit) {
            put(&o, (uint32_t)(parts.e + 17 + 128), 1, 8);
            put(&o, parts.m - (1 << 16), 1, 16);
        }
        put_points(&o, t, row.family, row.classes, row.one_class, row.points, row.n);
    }
    free(w.memory);
    if (room(&o, 16) < 0) { free(o.out); return NBMF_SPACE; }
    finish(&o);
    *out = o.out;
    return (long)o.n;
}

long nbmf_vector_decode(const VectorTables *t, const VectorTransform *f, const VectorShape *shape, const uint8_t *stream, size_t n_stream,
                        const int16_t *sides, void *rows, const VectorPoints *points) {
    const size_t d = shape->d, size = shape->half ? 2 : 4;
    Work w;
    Reader in;
    if (work_open(&w, d, f) < 0) return NBMF_SPACE;
    reader_open(&in, stream, n_stream);
    for (size_t r = 0; r < shape->n && !in.bad; r++) {
        uint8_t *to = points ? NULL : (uint8_t *)rows + r * d * size;
        const uint32_t first = get_raw(&in, 8);
        if (points) points->first[r] = (uint8_t)first;
        if (first == RAW_ROW) {
            for (size_t i = 0; i < d && !in.bad; i++) {
                uint32_t bits = get_bits(&in, shape->half ? 16 : 32);
                if (points) continue;
                if (shape->half) ((uint16_t *)to)[i] = (uint16_t)bits; else ((uint32_t *)to)[i] = bits;
            }
            continue;
        }
        if (shape->mode == VECTOR_LATTICE) {
            const int64_t whole = 256 + get_raw(&in, 8);
            const int spread = (int)get_raw(&in, 8);
            const double unit = power2((int)first - EXPONENT_MOST);
            for (size_t i = 0; i < d && !in.bad; i++) {
                int32_t k = get_index(&in, t, spread >> 7, 0, (spread & 127) + CLASS_LEAST);
                store(to, i, (float)((double)(float)(CLAMP(k, -INDEX_MOST, INDEX_MOST) * whole) * unit), shape->half);
            }
            continue;
        }
        Norm norm = UNIT_NORM;
        if (!shape->unit) {
            norm.e = (int)get_raw(&in, 8) - 128 - 17;
            norm.m = get_raw(&in, 16) + (1 << 16);
        }
        if (!f) {
            get_points(&in, t, (int)(first >> 7), NULL, (int)(first & 127) + CLASS_LEAST, w.z, d);
            if (points) { memcpy(points->points + r * d, w.z, d * sizeof *w.z); continue; }
        } else {
            const int64_t step = step_size(d, (int)first);
            const size_t n = (size_t)coded(f, (int)first), all = f->sides ? (size_t)f->m : n;
            get_points(&in, t, 0, f->level, ((int)first >> 2) - 8, w.points, n);
            if (in.bad) break;
            if (points) { memcpy(points->points + r * (size_t)f->m, w.points, n * sizeof *w.points); continue; }
            predicted(f, sides ? sides + r * (size_t)f->sides : NULL, w.padded, w.dots, w.expected);
            joined(&w, w.points, n, step, all);
            coordinates(f, w.values, all, w.small, w.z);
        }
        if (!in.bad) finished(w.z, d, norm, shape->half, to);
    }
    free(w.memory);
    return in.bad || in.at < n_stream ? NBMF_STREAM : NBMF_OK;
}

/* --- exact floats --- */

long nbmf_floats_encode(const VectorTables *t, const VectorFloats *f, const uint32_t *bits, uint8_t **out) {
    Writer o = { .range = 0xFFFFFFFFu, .pending = 1, .first = 1 };
    const uint16_t *cum = t->float_cum + (f->family * 8 + (f->scale & 7)) * (VECTOR_FLOAT_SYMBOLS + 1);
    const int width = f->half ? 16 : 32, low = (f->half ? 7 : 20) - f->zeros;
    *out = NULL;
    if (room(&o, 16 + 8 * f->n) < 0) return NBMF_SPACE;
    for (size_t i = 0; i < f->n; i++) {
        const uint32_t v = bits[i], size = (v & ((1u << (width - 1)) - 1)) >> (low + f->zeros);
        const int symbol = f->scale + FLOAT_BELOW - (int)size;
        if (symbol >= 0 && symbol < VECTOR_FLOAT_SYMBOLS - 1 && cum[symbol + 1] > cum[symbol]) put_symbol(&o, cum, symbol);
        else { put_symbol(&o, cum, VECTOR_FLOAT_SYMBOLS - 1); put(&o, size, 1, f->half ? 8 : 11); }
        put(&o, v >> (width - 1), 1, 1);
        put_bits(&o, v >> f->zeros & ((1u << low) - 1), low);
    }
    finish(&o);
    *out = o.out;
    return (long)o.n;
}

long nbmf_floats_decode(const VectorTables *t, const VectorFloats *f, const uint8_t *stream, size_t n_stream, uint32_t *bits) {
    Reader in;
    const uint16_t *cum = t->float_cum + (f->family * 8 + (f->scale & 7)) * (VECTOR_FLOAT_SYMBOLS + 1);
    const int width = f->half ? 16 : 32, low = (f->half ? 7 : 20) - f->zeros, wide = f->half ? 8 : 11;
    reader_open(&in, stream, n_stream);
    for (size_t i = 0; i < f->n && !in.bad; i++) {
        uint32_t v = place(&in, TOTAL_BITS);
        int symbol = 0;
        while (cum[symbol + 1] <= v) symbol++;
        take(&in, cum[symbol], (uint32_t)cum[symbol + 1] - cum[symbol]);
        int size = symbol == VECTOR_FLOAT_SYMBOLS - 1 ? (int)get_raw(&in, wide) : f->scale + FLOAT_BELOW - symbol;
        if (size < 0 || size >> wide) { in.bad = 1; break; }
        uint32_t sign = get_raw(&in, 1), rest = get_bits(&in, low);
        bits[i] = sign << (width - 1) | (uint32_t)size << (low + f->zeros) | rest << f->zeros;
    }
    return in.bad || in.at < n_stream ? NBMF_STREAM : NBMF_OK;
}
