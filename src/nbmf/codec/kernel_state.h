/* What a record changes while it is coded, and the parts of the coder that have no SIMD. */
#ifndef NBMF_KERNEL_STATE_H
#define NBMF_KERNEL_STATE_H
#include "kernel_context.h"
#include <stdlib.h>

#if defined(__x86_64__) && defined(__GNUC__)
#define HAVE_X86 1
#include <immintrin.h>
#define PRAGMA(x) _Pragma(#x)
#ifdef __clang__                  /* it knows no target pragma, but gives functions attributes */
#define TARGET_BEGIN(features) PRAGMA(clang attribute push(__attribute__((target(features))), apply_to = function))
#define TARGET_END PRAGMA(clang attribute pop)
#else
#define TARGET_BEGIN(features) PRAGMA(GCC push_options) PRAGMA(GCC target(features))
#define TARGET_END PRAGMA(GCC pop_options)
#endif
#endif

#ifdef HAVE_X86
/* Eight lanes, each from where it lies: one instruction a lane, which a general constructor is not. */
#define LANES8(a, b, c, d, e, f, g, h) \
    _mm_unpacklo_epi64(_mm_insert_epi16(_mm_insert_epi16(_mm_insert_epi16(_mm_insert_epi16(_mm_setzero_si128(), a, 0), b, 1), c, 2), d, 3), \
                       _mm_insert_epi16(_mm_insert_epi16(_mm_insert_epi16(_mm_insert_epi16(_mm_setzero_si128(), e, 0), f, 1), g, 2), h, 3))
/* Has an array that was just stored as a vector be read from memory again, part by part, rather than taken out of the register. */
#define FROM_MEMORY(x) __asm__("" : "+m"(x))
#endif

#define MIN(a, b) ((a) < (b) ? (a) : (b))
#define MAX(a, b) ((a) > (b) ? (a) : (b))
#define LITTLE_ENDIAN_HOST (__BYTE_ORDER__ == __ORDER_LITTLE_ENDIAN__)
#define MATCH_MIN 4
#define MATCH_VERIFY 32           /* bytes compared when a match is found; longer ones grow as they go */
#define SPENT_MAX 4               /* implied zero bytes a whole stream may need past its end */

typedef struct { uint8_t sym[7], count[7]; uint16_t tag; } LocalSlot;   /* tag 0: empty */
typedef struct { uint32_t pos, len, byte; } Primer;

/* What predict leaves for update. */
typedef struct { _Alignas(16) int16_t dot[8]; uint32_t row[N_SETS], p; int32_t total; int match_cell, primer_cell[2]; } Bit;

typedef struct {
    _Alignas(64) int16_t state[DENSE_LAYERS][DENSE_WIDTH_MAX];
    _Alignas(64) int16_t middle[DENSE_WIDTH_MAX];
    _Alignas(64) int32_t context[DENSE_ONES];
    uint32_t type, miss, missed;  /* of the record; how wrong the mixer has been of late, and in this byte: sums of |goal - p| */
} DenseState;

struct Scratch {
    _Alignas(64) uint8_t sym[N_LISTS * LIST_LEN];      /* list i at SLOT[i] */
    _Alignas(64) uint8_t weight[N_LISTS * LIST_LEN];
    _Alignas(64) int16_t in[LANES];
    _Alignas(64) uint8_t cell[32];                     /* list i's at CELL[i], within the bit position */
    Context context, before;      /* before: as it was ahead of a guess */
    uint32_t guess;
    uint64_t hash[N_STATIC], local_hash[N_LOCAL];
    uint32_t slot[N_LOCAL]; uint16_t slot_tag[N_LOCAL];
    uint32_t state, set0, set3, p_zero;
    const int16_t *o1; const int8_t *o2;
    const uint8_t *buf; size_t pos;                  /* the record so far */
    uint32_t match_len, match_byte; size_t match_at;
    Primer primer[2];
    DenseState dense;
    uint32_t epoch;                                  /* match_pos entries below it are of earlier records */
    uint32_t match_pos[MATCH_SLOTS];
    LocalSlot local[N_LOCAL * LOCAL_SLOTS];
    uint32_t n_claimed, claimed[N_LOCAL * LOCAL_SLOTS];
    const Model *model;                              /* whose weights are below */
    uint32_t n_touched, touched[TOTAL_ROWS + 1];
    uint8_t is_touched[TOTAL_ROWS];
    _Alignas(64) int16_t weights[TOTAL_ROWS * LANES];
    int16_t final_weights[256 * 8];
};

static const uint16_t SET_BASE[N_SETS] = { 0, 288, 288 + 256, 288 + 256 + 256, 288 + 256 + 256 + 1024 };
/* weight of a list entry by its 4-bit code: probability * 255 */
static const uint8_t WEIGHTS[16] = { 1, 2, 3, 4, 5, 7, 10, 14, 22, 40, 56, 80, 112, 160, 210, 240 };
/* Mass or count on a logarithmic scale of 16 steps: of v < 16 the first table's entry v, of others the second's v >> 4. */
static const uint8_t BUCKET_LOW[16] = { 0, 1, 2, 3, 4, 5, 5, 6, 6, 7, 7, 7, 8, 8, 8, 8 };
static const uint8_t BUCKET_HIGH[16] = { 0, 9, 10, 11, 12, 12, 13, 13, 14, 14, 14, 14, 15, 15, 15, 15 };
/* Where list i lies in sym and weight, in units of LIST_LEN, and where its cell lies: the order in which the vectors' sums are packed. */
static const uint8_t SLOT[N_LISTS] = { 0, 4, 1, 5, 8, 12, 9, 13, 2, 6, 3, 7, 10, 14, 11, 15, 16, 17, 18, 19, 20, 21, 22, 23, 24, 25, 26, 27 };
static const uint8_t CELL[N_LISTS] = { 0, 1, 2, 3, 4, 5, 6, 7, 16, 17, 18, 19, 20, 21, 22, 23, 8, 10, 24, 26, 9, 11, 25, 27, 12, 14, 28, 30 };
#define SEVEN (LITTLE_ENDIAN_HOST ? ~0ull >> 8 : ~0ull << 8)   /* the bytes of a local slot's symbols, or counts, in eight read at once */

static inline uint32_t bucket(uint32_t v) { return v < 16 ? BUCKET_LOW[v] : BUCKET_HIGH[v >> 4]; }

static inline uint32_t local_slot(int context, uint64_t hash) { return (uint32_t)context * LOCAL_SLOTS + (uint32_t)(hash >> 52); }

static inline uint32_t length_class(uint32_t n) { return n == 0 ? 0 : n < 12 ? 1 : n < 24 ? 2 : 3; }

/* --- range coder: 32-bit range, 64-bit low with carry, 16-bit probabilities --- */
typedef struct { uint64_t low; uint32_t range; uint8_t cache; uint64_t pending; uint8_t *out; size_t n, cap; int first; } Encoder;
typedef struct { uint32_t code, range; const uint8_t *in; size_t n, pos; uint32_t spent; } Decoder;

static inline void encoder_put(Encoder *e, uint8_t b) {
    if (e->first) { e->first = 0; return; }          /* the byte before the code's first is always zero */
    if (e->n < e->cap) e->out[e->n] = b;
    e->n++;
}
static inline void encoder_shift(Encoder *e) {
    if ((uint32_t)e->low < 0xFF000000u || e->low >> 32) {
        uint8_t carry = (uint8_t)(e->low >> 32), b = e->cache;
        do { encoder_put(e, (uint8_t)(b + carry)); b = 0xFF; } while (--e->pending);
        e->cache = (uint8_t)(e->low >> 24);
    }
    e->pending++;
    e->low = (e->low & 0x00FFFFFF) << 8;
}
static inline void encode_bit(Encoder *e, uint32_t p, int bit) {
    uint32_t bound = (e->range >> 16) * p;
    if (bit) e->range = bound;
    else { e->low += bound; e->range -= bound; }
    while (e->range < 1u << 24) { encoder_shift(e); e->range <<= 8; }
}
static inline uint32_t decoder_byte(Decoder *d) {
    if (d->pos < d->n) return d->in[d->pos++];
    d->spent++;
    return 0;
}
static inline int decode_bit(Decoder *d, uint32_t p) {
    uint32_t bound = (d->range >> 16) * p;
    uint32_t one = 0 - (uint32_t)(d->code < bound);  /* all ones for a one: which bit comes is not to be predicted by the processor */
    d->code -= bound & ~one;
    d->range = (bound & one) | ((d->range - bound) & ~one);
    int bit = (int)(one & 1);
    while (d->range < 1u << 24) { d->code = d->code << 8 | decoder_byte(d); d->range <<= 8; }
    return bit;
}
/* -log2(p / 65536) * 256, for p in 1..65536, to the nearest 1/256 bit */
static inline uint32_t bit_cost(uint32_t p) {
    uint32_t lg = 31 - (uint32_t)__builtin_clz(p);
    uint64_t x = (uint64_t)p << (31 - lg);           /* in [2^31, 2^32) */
    uint32_t f = 0;
    for (int i = 0; i < 9; i++) { x = x * x >> 31; f = f << 1 | (uint32_t)(x >> 32); x >>= x >> 32; }
    return ((16 - lg) << 8) - ((f + 1) >> 1);
}

/* --- matches --- */
static inline uint32_t common_suffix(const uint8_t *a, size_t na, const uint8_t *b, size_t nb) {
    uint32_t n = 0;
    while (n < MATCH_VERIFY && n < na && n < nb && a[na - 1 - n] == b[nb - 1 - n]) n++;
    return n;
}
static inline void primer_find(const Tables *t, Scratch *s, Primer *p) {
    if (!t->primer_len) { p->len = 0; return; }
    if (!p->len && s->pos >= PRIMER_MIN) {
        uint32_t at = t->primer_index[s->hash[3] >> (64 - t->primer_bits)];
        if (at) {
            uint32_t n = common_suffix(s->buf, s->pos, t->primer, at);
            if (n >= PRIMER_MIN) { p->len = n; p->pos = at; }
        }
    }
    if (p->len && p->pos >= t->primer_len) p->len = 0;
    if (p->len) p->byte = t->primer[p->pos];
}
static inline void match_find(const Model *m, Scratch *s) {
    if (s->pos >= MATCH_MIN) {
        uint32_t *slot = &s->match_pos[s->hash[1] >> 51];
        if (!s->match_len && *slot >= s->epoch) {
            size_t at = *slot - s->epoch;            /* s->pos itself after an empty record of a sequence: no match */
            uint32_t n = at < s->pos ? common_suffix(s->buf, s->pos, s->buf, at) : 0;
            if (n >= MATCH_MIN) { s->match_len = n; s->match_at = at; }
        }
        *slot = s->epoch + (uint32_t)s->pos;
    }
    if (s->match_len) s->match_byte = s->buf[s->match_at];
    primer_find(&m->base, s, &s->primer[0]);
    if (m->has_pack) primer_find(&m->pack, s, &s->primer[1]);
}

static inline void touch(Scratch *s, uint32_t row) {
    s->touched[s->n_touched] = row;                  /* without a branch: which rows are new is not to be predicted */
    s->n_touched += !s->is_touched[row];
    s->is_touched[row] = 1;
}

static inline void zero_update(Scratch *s, int literal) {
    int32_t p = (int32_t)s->p_zero;
    p += ((literal ? 65535 : 0) - p) >> 4;
    s->p_zero = (uint32_t)(p < 64 ? 64 : p > 65472 ? 65472 : p);
}

static inline void record_begin(const Model *m, Scratch *s, int type, const uint8_t *buf) {
    if (s->model != m) {
        memcpy(s->weights, m->weights, sizeof s->weights);
        memset(s->is_touched, 0, sizeof s->is_touched);
        s->n_touched = 0; s->model = m;
    }
    memcpy(s->final_weights, m->final_weights, sizeof s->final_weights);
    context_reset(&s->context, type);
    s->buf = buf; s->pos = 0; s->match_len = 0;
    s->primer[0].len = s->primer[1].len = 0;
    s->p_zero = type == 2 ? 16384 : 256;
    if (s->epoch > 0xFFFFFFFFu - 2 * SEGMENT_MAX) { memset(s->match_pos, 0, sizeof s->match_pos); s->epoch = 0; }
    if (!s->epoch) s->epoch = 1;
}

/* The next record of a sequence: a new context, while all that was learned, and the text that matches are found in, goes on. */
static inline void record_next(Scratch *s, int type) {
    context_reset(&s->context, type);
    s->match_len = s->primer[0].len = s->primer[1].len = 0;
}

/* Leaves the scratch as a new one is: nothing of the record stays. */
static inline void record_end(Scratch *s) {
    for (uint32_t i = 0; i < s->n_claimed; i++) memset(&s->local[s->claimed[i]], 0, sizeof(LocalSlot));
    s->n_claimed = 0;
    for (uint32_t i = 0; i < s->n_touched; i++) {
        uint32_t row = s->touched[i];
        memcpy(s->weights + (size_t)row * LANES, s->model->weights + (size_t)row * LANES, LANES * sizeof(int16_t));
        s->is_touched[row] = 0;
    }
    s->n_touched = 0;
    s->epoch += (uint32_t)s->pos + 1;
}
#endif
