/* The dense profile's arithmetic, compiled once per SIMD level with kernel_loop.h; every level computes the same integers.
   Matrices lie as [input pair][output][2], so that a vector holds the outputs and no sum crosses it. */

static inline int32_t NAME(round15)(int32_t x) { return (x + 16384) >> 15; }
static inline int32_t NAME(held)(int32_t x, int32_t low, int32_t high) { return x < low ? low : x > high ? high : x; }

/* out[o] = sum over i of w[o][i] in[i]; n_in even, n_out a multiple of 32. */
static inline void NAME(dense_bytes)(const int8_t *w, const int16_t *in, int n_in, int n_out, int32_t *out) {
#if LEVEL >= 1
    for (int o = 0; o < n_out; o += 32) {
        __m256i a0 = _mm256_setzero_si256(), a1 = a0, a2 = a0, a3 = a0;
        const int8_t *p = w + 2 * o;
        for (int i = 0; i < n_in; i += 2, p += 2 * n_out) {
            int32_t pair;
            memcpy(&pair, in + i, 4);
            const __m256i x = _mm256_set1_epi32(pair);
#define ROW(k) _mm256_madd_epi16(x, _mm256_cvtepi8_epi16(_mm_loadu_si128((const __m128i *)(p + 16 * (k)))))
            a0 = _mm256_add_epi32(a0, ROW(0)); a1 = _mm256_add_epi32(a1, ROW(1));
            a2 = _mm256_add_epi32(a2, ROW(2)); a3 = _mm256_add_epi32(a3, ROW(3));
#undef ROW
        }
        _mm256_storeu_si256((__m256i *)(out + o), a0); _mm256_storeu_si256((__m256i *)(out + o + 8), a1);
        _mm256_storeu_si256((__m256i *)(out + o + 16), a2); _mm256_storeu_si256((__m256i *)(out + o + 24), a3);
    }
#else
    for (int o = 0; o < n_out; o++) out[o] = 0;
    for (int i = 0; i < n_in; i += 2, w += 2 * n_out)
        for (int o = 0; o < n_out; o++) out[o] += w[2 * o] * in[i] + w[2 * o + 1] * in[i + 1];
#endif
}

/* The same with weights of 16 bits. */
static inline void NAME(dense_words)(const int16_t *w, const int16_t *in, int n_in, int n_out, int32_t *out) {
#if LEVEL >= 1
    for (int o = 0; o < n_out; o += 32) {
        __m256i a0 = _mm256_setzero_si256(), a1 = a0, a2 = a0, a3 = a0;
        const int16_t *p = w + 2 * o;
        for (int i = 0; i < n_in; i += 2, p += 2 * n_out) {
            int32_t pair;
            memcpy(&pair, in + i, 4);
            const __m256i x = _mm256_set1_epi32(pair);
#define ROW(k) _mm256_madd_epi16(x, _mm256_loadu_si256((const __m256i *)(p + 16 * (k))))
            a0 = _mm256_add_epi32(a0, ROW(0)); a1 = _mm256_add_epi32(a1, ROW(1));
            a2 = _mm256_add_epi32(a2, ROW(2)); a3 = _mm256_add_epi32(a3, ROW(3));
#undef ROW
        }
        _mm256_storeu_si256((__m256i *)(out + o), a0); _mm256_storeu_si256((__m256i *)(out + o + 8), a1);
        _mm256_storeu_si256((__m256i *)(out + o + 16), a2); _mm256_storeu_si256((__m256i *)(out + o + 24), a3);
    }
#else
    for (int o = 0; o < n_out; o++) out[o] = 0;
    for (int i = 0; i < n_in; i += 2, w += 2 * n_out)
        for (int o = 0; o < n_out; o++) out[o] += w[2 * o] * in[i] + w[2 * o + 1] * in[i + 1];
#endif
}

/* t = held(round15(held(acc >> 4) * scale) + bias), 16 bits each time. */
static inline void NAME(dense_scale)(const int32_t *acc, const int16_t *scale, const int16_t *bias, int n, int16_t *t) {
    for (int o = 0; o < n; o++) {
        int32_t a = NAME(held)(acc[o] >> 4, -32768, 32767);
        t[o] = (int16_t)NAME(held)(NAME(round15)(a * scale[o]) + bias[o], -32768, 32767);
    }
}

static inline void NAME(dense_affine)(const Affine *f, const int16_t *in, int16_t *t) {
    int32_t acc[2 * DENSE_WIDTH_MAX];
    NAME(dense_bytes)(f->weights, in, (int)f->n_in, (int)f->n_out, acc);
    NAME(dense_scale)(acc, f->scale, f->bias, (int)f->n_out, t);
}

/* One gated layer: state += gate * (new - state), in units of 1/32768; then y = (y + state) / 2 in units of 1/127. */
static inline void NAME(dense_layer)(const uint16_t *squash, const Affine *f, int16_t *y, int16_t *state) {
    int16_t t[2 * DENSE_WIDTH_MAX];
    const int n = (int)f->n_out / 2;
    NAME(dense_affine)(f, y, t);
    for (int j = 0; j < n; j++) {
        int32_t gate = squash[NAME(held)(t[j], -2047, 2047) + 2048] >> 1, value = squash[NAME(held)(t[n + j], -2047, 2047) + 2048] - 32768;
        int32_t h = NAME(held)(state[j] - NAME(round15)(gate * state[j]), -32768, 32767);
        h = NAME(held)(h + NAME(round15)(gate * value), -32768, 32767);
        state[j] = (int16_t)h;
        y[j] = (int16_t)((y[j] + (h >> 8)) >> 1);
    }
}

/* Steps the network over what is known before the next byte. */
static inline void NAME(dense_begin_byte)(const Model *m, Scratch *s, const int pack) {
    const Dense *d = &m->dense;
    DenseState *z = &s->dense;
    uint32_t rows[D_CONTEXTS];
    const int n = (int)d->width;
    dense_rows(s, pack, rows);
    for (int i = 0; i < D_CONTEXTS; i++)
        for (int j = 0; j < n; j += 64) __builtin_prefetch(d->rows + (size_t)rows[i] * (size_t)n + j);
    _Alignas(32) int16_t y[DENSE_WIDTH_MAX];
#if LEVEL >= 1
    for (int j = 0; j < n; j += 16) {
        __m256i sum = _mm256_setzero_si256();
        for (int i = 0; i < D_CONTEXTS; i++)
            sum = _mm256_add_epi16(sum, _mm256_cvtepi8_epi16(_mm_loadu_si128((const __m128i *)(d->rows + (size_t)rows[i] * (size_t)n + j))));
        _mm256_store_si256((__m256i *)(y + j), _mm256_max_epi16(_mm256_min_epi16(sum, _mm256_set1_epi16(127)), _mm256_set1_epi16(-127)));
    }
#else
    for (int j = 0; j < n; j++) {
        int32_t sum = 0;
        for (int i = 0; i < D_CONTEXTS; i++) sum += d->rows[(size_t)rows[i] * (size_t)n + (size_t)j];
        y[j] = (int16_t)NAME(held)(sum, -127, 127);
    }
#endif
    for (int i = 0; i < DENSE_LAYERS; i++) NAME(dense_layer)(m->squash, &d->layer[i], y, z->state[i]);
    NAME(dense_affine)(&d->middle, y, z->middle);
    for (uint32_t j = 0; j < d->middle.n_out; j++) z->middle[j] = (int16_t)NAME(held)(z->middle[j], 0, 127);
    NAME(dense_affine)(&d->context, z->middle, z->context);
    z->missed = 0;
}

/* What the bit network looks at: 26 lanes, the five sums and their total; the masses of each list. */
static inline void NAME(dense_inputs)(const Scratch *s, const Bit *b, int32_t total, int16_t *in) {
    memcpy(in, s->in, 25 * sizeof *in);
    in[25] = s->in[LANE_STATE];
    memcpy(in + 26, b->dot, N_SETS * sizeof *in);
    in[31] = (int16_t)total;
    for (int i = 0; i < N_BASE_LISTS; i++) {
        const uint32_t cell = s->cell[CELL[i]];
        in[32 + i] = (int16_t)(cell & 0xF0);
        in[32 + N_BASE_LISTS + i] = (int16_t)((cell & 15) << 4);
    }
}

/* Probability of a one in 1..65535, corrected from what the mixer's total gave. */
static inline uint32_t NAME(dense_predict)(const Model *m, Scratch *s, const Bit *b, uint32_t c0) {
    const Dense *d = &m->dense;
    const DenseState *z = &s->dense;
    _Alignas(32) int16_t in[DENSE_INPUTS], one[DENSE_ONES], two[DENSE_TWOS];
    int32_t acc[DENSE_ONES];
    NAME(dense_inputs)(s, b, b->total, in);
    NAME(dense_words)(d->first, in, DENSE_INPUTS, DENSE_ONES, acc);
    const int16_t *node = d->node + (size_t)c0 * DENSE_ONES;
    for (int j = 0; j < DENSE_ONES; j++) one[j] = (int16_t)NAME(held)((acc[j] >> 10) + node[j] + z->context[j], 0, 4095);
    NAME(dense_words)(d->second, one, DENSE_ONES, DENSE_TWOS, acc);
    for (int j = 0; j < DENSE_TWOS; j++) two[j] = (int16_t)NAME(held)((acc[j] >> 10) + d->second_bias[j], 0, 4095);
    const int n = (int)d->middle.n_out;
    const int16_t *skip = d->skip + (size_t)c0 * 32;
    const int8_t *byte = d->byte + (size_t)c0 * (size_t)n;
    int32_t out = d->third[DENSE_TWOS] * DENSE_ONE, sum = 0;
    for (int j = 0; j < DENSE_TWOS; j++) out += two[j] * d->third[j];
    for (int j = 0; j < 32; j++) out += in[j] * skip[j];
    for (int j = 0; j < n; j++) sum += byte[j] * z->middle[j];
    out += ((sum >> 4) * d->byte_scale[c0]) >> 2;
    return m->squash[NAME(held)(b->total + (out >> 11), -2047, 2047) + 2048];
}
