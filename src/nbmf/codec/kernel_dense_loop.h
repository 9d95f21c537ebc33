/* The dense profile's arithmetic, compiled once per SIMD level with kernel_loop.h; every level computes the same integers.
   Matrices of words lie as [input pair][output][2], those of bytes as [block of 32 outputs][four inputs][output][4], so that a vector holds
   the outputs and what is read lies in a row. */

static inline int32_t NAME(round15)(int32_t x) { return (x + 16384) >> 15; }
static inline int32_t NAME(held)(int32_t x, int32_t low, int32_t high) { return x < low ? low : x > high ? high : x; }

/* out[o] = sum over i of w[o][i] in[i]; in within a signed byte, as every input of a map is: the embedding is held within 127, a layer's y is
   half of two such, the middle is 0..127. n_in and n_out multiples of 32. */
static inline void NAME(dense_bytes)(const Affine *f, const int16_t *in, int32_t *out) {
    const int n_in = (int)f->n_in, n_out = (int)f->n_out;
    const int8_t *w = f->weights;
#if LEVEL >= 1
    if (vnni) { dense_bytes_vnni(f, in, out); return; }
    for (int o = 0; o < n_out; o += 32) {
        __m256i a[8];             /* of four outputs each, the sums of the first and the second two inputs */
        for (int k = 0; k < 8; k++) a[k] = _mm256_setzero_si256();
        for (int i = 0; i < n_in; i += 4, w += 128) {
            int64_t four;
            memcpy(&four, in + i, 8);
            const __m256i x = _mm256_set1_epi64x(four);
            for (int k = 0; k < 8; k++) a[k] = _mm256_add_epi32(a[k], _mm256_madd_epi16(x, _mm256_cvtepi8_epi16(_mm_load_si128((const __m128i *)(w + 16 * k)))));
        }
        for (int k = 0; k < 4; k++)
            _mm256_storeu_si256((__m256i *)(out + o + 8 * k), _mm256_permute4x64_epi64(_mm256_hadd_epi32(a[2 * k], a[2 * k + 1]), 0xD8));
    }
#else
    for (int o = 0; o < n_out; o += 32) {
        for (int j = 0; j < 32; j++) out[o + j] = 0;
        for (int i = 0; i < n_in; i += 4, w += 128)
            for (int j = 0; j < 32; j++)
                for (int k = 0; k < 4; k++) out[o + j] += w[4 * j + k] * in[i + k];
    }
#endif
}

/* Sums of the bit network's first layer, inputs as they lie in DenseInputs, and of its second. */
#if LEVEL >= 1
#define PAIR(k) _mm256_madd_epi16(x, _mm256_load_si256((const __m256i *)(p + 16 * (k))))
static inline __attribute__((always_inline)) void NAME(dense_first)(const int16_t *w, const int16_t *in, __m256i *a) {
    const int16_t *p = w;
    __m256i a0 = _mm256_setzero_si256(), a1 = a0, a2 = a0, a3 = a0, a4 = a0, a5 = a0, a6 = a0, a7 = a0;
    for (int i = 0; i < DENSE_PLACES; i += 2, p += 2 * DENSE_ONES) {
        int32_t pair;
        memcpy(&pair, in + i, 4);
        const __m256i x = _mm256_set1_epi32(pair);
        a0 = _mm256_add_epi32(a0, PAIR(0)); a1 = _mm256_add_epi32(a1, PAIR(1)); a2 = _mm256_add_epi32(a2, PAIR(2)); a3 = _mm256_add_epi32(a3, PAIR(3));
        a4 = _mm256_add_epi32(a4, PAIR(4)); a5 = _mm256_add_epi32(a5, PAIR(5)); a6 = _mm256_add_epi32(a6, PAIR(6)); a7 = _mm256_add_epi32(a7, PAIR(7));
    }
    a[0] = a0; a[1] = a1; a[2] = a2; a[3] = a3; a[4] = a4; a[5] = a5; a[6] = a6; a[7] = a7;
}
static inline __attribute__((always_inline)) void NAME(dense_second)(const int16_t *w, const int16_t *in, __m256i *a) {
    const int16_t *p = w;
    __m256i a0 = _mm256_setzero_si256(), a1 = a0, a2 = a0, a3 = a0, b0 = a0, b1 = a0, b2 = a0, b3 = a0;
    for (int i = 0; i < DENSE_ONES; i += 4, p += 4 * DENSE_TWOS) {
        int32_t pair;
        memcpy(&pair, in + i, 4);
        __m256i x = _mm256_set1_epi32(pair);
        a0 = _mm256_add_epi32(a0, PAIR(0)); a1 = _mm256_add_epi32(a1, PAIR(1)); a2 = _mm256_add_epi32(a2, PAIR(2)); a3 = _mm256_add_epi32(a3, PAIR(3));
        memcpy(&pair, in + i + 2, 4);
        x = _mm256_set1_epi32(pair);
        b0 = _mm256_add_epi32(b0, PAIR(4)); b1 = _mm256_add_epi32(b1, PAIR(5)); b2 = _mm256_add_epi32(b2, PAIR(6)); b3 = _mm256_add_epi32(b3, PAIR(7));
    }
    a[0] = _mm256_add_epi32(a0, b0); a[1] = _mm256_add_epi32(a1, b1); a[2] = _mm256_add_epi32(a2, b2); a[3] = _mm256_add_epi32(a3, b3);
}
#undef PAIR
/* Sixteen units of what eight and eight sums give, held within 0..4095. */
static inline __m256i NAME(dense_units)(__m256i a, __m256i b) {
    const __m256i t = _mm256_permute4x64_epi64(_mm256_packs_epi32(a, b), 0xD8);
    return _mm256_max_epi16(_mm256_min_epi16(t, _mm256_set1_epi16(4095)), _mm256_setzero_si256());
}
/* (sums >> 10) + eight of 16 bits */
static inline __m256i NAME(dense_more)(__m256i a, const int16_t *more) {
    return _mm256_add_epi32(_mm256_srai_epi32(a, 10), _mm256_cvtepi16_epi32(_mm_loadu_si128((const __m128i *)more)));
}
#else
static inline void NAME(dense_words)(const int16_t *w, const int16_t *in, int n_in, int n_out, int32_t *out) {
    for (int o = 0; o < n_out; o++) out[o] = 0;
    for (int i = 0; i < n_in; i += 2, w += 2 * n_out)
        for (int o = 0; o < n_out; o++) out[o] += w[2 * o] * in[i] + w[2 * o + 1] * in[i + 1];
}
#endif

/* t = held(round15(held(acc >> 4) * scale) + bias), 16 bits each time. */
static inline void NAME(dense_scale)(const int32_t *acc, const int16_t *scale, const int16_t *bias, int n, int16_t *t) {
    for (int o = 0; o < n; o++) {
        int32_t a = NAME(held)(acc[o] >> 4, -32768, 32767);
        t[o] = (int16_t)NAME(held)(NAME(round15)(a * scale[o]) + bias[o], -32768, 32767);
    }
}

static inline void NAME(dense_affine)(const Affine *f, const int16_t *in, int16_t *t) {
    int32_t acc[2 * DENSE_WIDTH_MAX];
    NAME(dense_bytes)(f, in, acc);
    NAME(dense_scale)(acc, f->scale, f->bias, (int)f->n_out, t);
}

/* One gated layer: state += gate * (new - state), in units of 1/32768; then y = (y + state) / 2 in units of 1/127. */
static inline void NAME(dense_layer)(const uint16_t *squash, const Affine *f, int16_t *y, int16_t *state) {
    _Alignas(32) int16_t t[2 * DENSE_WIDTH_MAX];
    _Alignas(32) uint16_t p[2 * DENSE_WIDTH_MAX];
    const int n = (int)f->n_out / 2;
    NAME(dense_affine)(f, y, t);
    for (int j = 0; j < 2 * n; j++) t[j] = (int16_t)(MIN(MAX(t[j], -2047), 2047) + 2048);
    for (int j = 0; j < 2 * n; j++) p[j] = squash[t[j]];
#if LEVEL >= 1
    for (int j = 0; j < n; j += 16) {      /* the product is round15's: a gate is never negative */
        const __m256i gate = _mm256_srli_epi16(_mm256_load_si256((const __m256i *)(p + j)), 1), value = _mm256_xor_si256(_mm256_load_si256((const __m256i *)(p + n + j)), _mm256_set1_epi16(-32768));
        __m256i h = _mm256_load_si256((const __m256i *)(state + j));
        h = _mm256_subs_epi16(h, _mm256_mulhrs_epi16(gate, h));
        h = _mm256_adds_epi16(h, _mm256_mulhrs_epi16(gate, value));
        _mm256_store_si256((__m256i *)(state + j), h);
        _mm256_store_si256((__m256i *)(y + j), _mm256_srai_epi16(_mm256_add_epi16(_mm256_load_si256((const __m256i *)(y + j)), _mm256_srai_epi16(h, 8)), 1));
    }
#else
    for (int j = 0; j < n; j++) {
        int32_t gate = p[j] >> 1, value = p[n + j] - 32768;
        int32_t h = NAME(held)(state[j] - NAME(round15)(gate * state[j]), -32768, 32767);
        h = NAME(held)(h + NAME(round15)(gate * value), -32768, 32767);
        state[j] = (int16_t)h;
        y[j] = (int16_t)((y[j] + (h >> 8)) >> 1);
    }
#endif
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
    int16_t context[DENSE_ONES];
    NAME(dense_affine)(&d->context, z->middle, context);
    for (int j = 0; j < DENSE_ONES; j++) z->context[j] = context[j];
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

#if LEVEL >= 1
/* The same as they lie in vectors: the logits; the ones of cells 0..11 and of 16..27; their zeros. dense_first has 0 for what is no base list's. */
static inline __attribute__((always_inline)) void NAME(dense_places)(const Scratch *s, const Bit *b, int32_t total, int16_t *in) {
    const __m256i first = _mm256_load_si256((const __m256i *)s->in), last = _mm256_load_si256((const __m256i *)(s->in + 16));
    /* lanes 16..24, 26, the five sums, the total */
    const __m128i low = _mm256_castsi256_si128(last), high = _mm256_extracti128_si256(last, 1), dots = _mm_load_si128((const __m128i *)b->dot);
    __m128i tail = _mm_insert_epi16(high, _mm_extract_epi16(high, 2), 1);            /* lane 24, lane 26 */
    tail = _mm_blend_epi16(tail, _mm_slli_si128(dots, 4), 0x7C);
    tail = _mm_insert_epi16(tail, total, 7);
    _mm256_store_si256((__m256i *)in, first);
    _mm256_store_si256((__m256i *)(in + 16), _mm256_setr_m128i(low, tail));
    const __m256i cells = _mm256_load_si256((const __m256i *)s->cell), mask = _mm256_set1_epi16(0xF0);
    const __m256i a = _mm256_cvtepu8_epi16(_mm256_castsi256_si128(cells)), c = _mm256_cvtepu8_epi16(_mm256_extracti128_si256(cells, 1));
    _mm256_storeu_si256((__m256i *)(in + 32), _mm256_and_si256(a, mask));
    _mm256_storeu_si256((__m256i *)(in + 44), _mm256_and_si256(c, mask));
    _mm256_storeu_si256((__m256i *)(in + 56), _mm256_and_si256(_mm256_slli_epi16(a, 4), mask));
    _mm256_storeu_si256((__m256i *)(in + 68), _mm256_and_si256(_mm256_slli_epi16(c, 4), mask));
}
#endif

/* Probability of a one in 1..65535, corrected from what the mixer's total gave. */
static inline uint32_t NAME(dense_predict)(const Model *m, Scratch *s, const Bit *b, uint32_t c0) {
    const Dense *d = &m->dense;
    const DenseState *z = &s->dense;
    const int n = (int)d->middle.n_out;
    const int16_t *skip = d->skip + (size_t)c0 * 32, *node = d->node + (size_t)c0 * DENSE_ONES;
    const int8_t *byte = d->byte + (size_t)c0 * (size_t)n;
    int32_t out = d->third[DENSE_TWOS] * DENSE_ONE, sum = 0;
#if LEVEL >= 1
    _Alignas(32) int16_t in[DENSE_PLACES + 4], one[DENSE_ONES];
    __m256i acc[8];
    NAME(dense_places)(s, b, b->total, in);
    NAME(dense_first)(d->placed, in, acc);
    for (int j = 0; j < 8; j++) acc[j] = _mm256_add_epi32(NAME(dense_more)(acc[j], node + 8 * j), _mm256_load_si256((const __m256i *)(z->context + 8 * j)));
    for (int j = 0; j < 4; j++) _mm256_store_si256((__m256i *)(one + 16 * j), NAME(dense_units)(acc[2 * j], acc[2 * j + 1]));
    NAME(dense_second)(d->second, one, acc);
    for (int j = 0; j < 4; j++) acc[j] = NAME(dense_more)(acc[j], d->second_bias + 8 * j);
    __m256i all = _mm256_setzero_si256(), bytes = all;
    for (int j = 0; j < 2; j++) {
        all = _mm256_add_epi32(all, _mm256_madd_epi16(NAME(dense_units)(acc[2 * j], acc[2 * j + 1]), _mm256_loadu_si256((const __m256i *)(d->third + 16 * j))));
        all = _mm256_add_epi32(all, _mm256_madd_epi16(_mm256_load_si256((const __m256i *)(in + 16 * j)), _mm256_loadu_si256((const __m256i *)(skip + 16 * j))));
    }
    for (int j = 0; j < n; j += 16)
        bytes = _mm256_add_epi32(bytes, _mm256_madd_epi16(_mm256_load_si256((const __m256i *)(z->middle + j)), _mm256_cvtepi8_epi16(_mm_loadu_si128((const __m128i *)(byte + j)))));
    const __m256i both = _mm256_hadd_epi32(all, bytes);
    __m128i four = _mm_add_epi32(_mm256_castsi256_si128(both), _mm256_extracti128_si256(both, 1));
    four = _mm_hadd_epi32(four, four);
    out += _mm_cvtsi128_si32(four);
    sum = _mm_extract_epi32(four, 1);
#else
    int16_t in[DENSE_INPUTS], one[DENSE_ONES], two[DENSE_TWOS];
    int32_t acc[DENSE_ONES];
    NAME(dense_inputs)(s, b, b->total, in);
    NAME(dense_words)(d->first, in, DENSE_INPUTS, DENSE_ONES, acc);
    for (int j = 0; j < DENSE_ONES; j++) one[j] = (int16_t)NAME(held)((acc[j] >> 10) + node[j] + z->context[j], 0, 4095);
    NAME(dense_words)(d->second, one, DENSE_ONES, DENSE_TWOS, acc);
    for (int j = 0; j < DENSE_TWOS; j++) two[j] = (int16_t)NAME(held)((acc[j] >> 10) + d->second_bias[j], 0, 4095);
    for (int j = 0; j < DENSE_TWOS; j++) out += two[j] * d->third[j];
    for (int j = 0; j < 32; j++) out += in[j] * skip[j];
    for (int j = 0; j < n; j++) sum += byte[j] * z->middle[j];
#endif
    out += ((sum >> 4) * d->byte_scale[c0]) >> 2;
    return m->squash[NAME(held)(b->total + (out >> 11), -2047, 2047) + 2048];
}
