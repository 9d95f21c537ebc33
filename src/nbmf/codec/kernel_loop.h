/* The predictor and coder, compiled once per SIMD level: kernel.c includes this with NAME() and LEVEL set.
   LEVEL 0 plain C, 1 AVX2, 2 AVX-512; every level computes the same integers. */

/* Index of the first of the 21 entries whose tag matches and how many follow it (a context's entries are adjacent). */
static inline uint32_t NAME(line_match)(const uint8_t *line, uint32_t tag) {
#if LEVEL >= 1
    __m256i want = _mm256_set1_epi16((short)(tag << 4)), keep = _mm256_set1_epi16((short)0xFFF0);
    __m256i a = _mm256_cmpeq_epi16(_mm256_and_si256(_mm256_loadu_si256((const __m256i *)line), keep), want);
    __m128i b = _mm_cmpeq_epi16(_mm_and_si128(_mm_loadu_si128((const __m128i *)(line + 32)), _mm256_castsi256_si128(keep)),
                                _mm256_castsi256_si128(want));
    __m256i packed = _mm256_permute4x64_epi64(_mm256_packs_epi16(a, _mm256_castsi128_si256(b)), 0xD8);
    return (uint32_t)_mm256_movemask_epi8(packed) & 0x1FFFFF;
#else
    uint32_t m = 0;
    for (int i = 0; i < LINE_ENTRIES; i++)
        m |= (uint32_t)(((uint32_t)line[2 * i] >> 4 | (uint32_t)line[2 * i + 1] << 4) == tag) << i;
    return m;
#endif
}

/* Loads the list of hash h into sym[8], w[8] (zero weights where absent); 1 when the context is present. */
static inline int NAME(list_load)(const Tables *t, uint64_t h, uint8_t *sym, uint8_t *w) {
    const uint8_t *line = t->lines + (size_t)(((h >> 32) * t->n_lines) >> 32) * LINE_BYTES;
    uint32_t m = NAME(line_match)(line, (uint32_t)(h >> 20) & 0xFFF);
    if (!m) { memset(w, 0, 8); memset(sym, 0, 8); return 0; }
    uint32_t first = (uint32_t)__builtin_ctz(m), count = 0;
    for (; count < LIST_LEN && (m >> (first + count) & 1); count++) {
        sym[count] = line[2 * LINE_ENTRIES + first + count];
        w[count] = WEIGHTS[line[2 * (first + count)] & 15];
    }
    for (; count < LIST_LEN; count++) sym[count] = w[count] = 0;
    return 1;
}

/* Splits the mass of every list by the next bit: one[i], zero[i] in 0..255 (saturating). */
static inline void NAME(split)(const uint8_t *sym, const uint8_t *w, int lists, uint8_t *one, uint8_t *zero) {
#if LEVEL >= 1
    const __m256i none = _mm256_setzero_si256();
    for (int i = 0; i < lists; i += 4) {
        __m256i s = _mm256_load_si256((const __m256i *)(sym + 8 * i)), v = _mm256_load_si256((const __m256i *)(w + 8 * i));
        __m256i m = _mm256_cmpgt_epi8(none, s);
        __m256i a = _mm256_sad_epu8(_mm256_and_si256(v, m), none), b = _mm256_sad_epu8(_mm256_andnot_si256(m, v), none);
        /* 64-bit sums <= 2040; saturate to bytes */
        __m256i p = _mm256_packus_epi16(_mm256_packs_epi32(a, b), none);   /* per 128: a0 0 a1 0 b0 0 b1 0 as bytes */
        uint64_t lo = (uint64_t)_mm256_extract_epi64(p, 0), hi = (uint64_t)_mm256_extract_epi64(p, 2);
        one[i] = (uint8_t)lo; one[i + 1] = (uint8_t)(lo >> 16); zero[i] = (uint8_t)(lo >> 32); zero[i + 1] = (uint8_t)(lo >> 48);
        one[i + 2] = (uint8_t)hi; one[i + 3] = (uint8_t)(hi >> 16); zero[i + 2] = (uint8_t)(hi >> 32); zero[i + 3] = (uint8_t)(hi >> 48);
    }
#else
    for (int i = 0; i < lists; i++) {
        uint32_t a = 0, b = 0;
        for (int j = 0; j < LIST_LEN; j++) { if (sym[8 * i + j] & 128) a += w[8 * i + j]; else b += w[8 * i + j]; }
        one[i] = (uint8_t)(a > 255 ? 255 : a); zero[i] = (uint8_t)(b > 255 ? 255 : b);
    }
#endif
}

/* Keeps the entries whose next bit was `bit` and moves every symbol on by one bit. */
static inline void NAME(narrow)(uint8_t *sym, uint8_t *w, int lists, int bit) {
#if LEVEL >= 1
    const __m256i none = _mm256_setzero_si256(), flip = _mm256_set1_epi8((char)(bit ? 0 : -1));
    for (int i = 0; i < lists; i += 4) {
        __m256i s = _mm256_load_si256((const __m256i *)(sym + 8 * i)), v = _mm256_load_si256((const __m256i *)(w + 8 * i));
        __m256i m = _mm256_xor_si256(_mm256_cmpgt_epi8(none, s), flip);
        _mm256_store_si256((__m256i *)(w + 8 * i), _mm256_and_si256(v, m));
        _mm256_store_si256((__m256i *)(sym + 8 * i), _mm256_add_epi8(s, s));
    }
#else
    for (int i = 0; i < 8 * lists; i++) {
        if ((sym[i] >> 7) != bit) w[i] = 0;
        sym[i] = (uint8_t)(sym[i] << 1);
    }
#endif
}

/* sum over lane pairs of (in*w + in*w) >> 6, arithmetic shift of each pair */
static inline int32_t NAME(dot)(const int16_t *in, const int16_t *w, int lanes) {
#if LEVEL >= 1
    __m256i sum = _mm256_setzero_si256();
    for (int i = 0; i < lanes; i += 16)
        sum = _mm256_add_epi32(sum, _mm256_srai_epi32(_mm256_madd_epi16(_mm256_load_si256((const __m256i *)(in + i)),
                                                                        _mm256_loadu_si256((const __m256i *)(w + i))), 6));
    __m128i s = _mm_add_epi32(_mm256_castsi256_si128(sum), _mm256_extracti128_si256(sum, 1));
    s = _mm_add_epi32(s, _mm_shuffle_epi32(s, 0x4E));
    s = _mm_add_epi32(s, _mm_shuffle_epi32(s, 0xB1));
    return _mm_cvtsi128_si32(s);
#else
    int32_t sum = 0;
    for (int i = 0; i < lanes; i += 2) sum += ((int32_t)in[i] * w[i] + (int32_t)in[i + 1] * w[i + 1]) >> 6;
    return sum;
#endif
}

/* w += round(in * e / 32768), saturating; |e| < 32768 */
static inline void NAME(learn)(const int16_t *in, int16_t *w, int lanes, int32_t e) {
#if LEVEL >= 1
    __m256i v = _mm256_set1_epi16((short)e);
    for (int i = 0; i < lanes; i += 16) {
        __m256i d = _mm256_mulhrs_epi16(_mm256_load_si256((const __m256i *)(in + i)), v);
        _mm256_storeu_si256((__m256i *)(w + i), _mm256_adds_epi16(_mm256_loadu_si256((const __m256i *)(w + i)), d));
    }
#else
    for (int i = 0; i < lanes; i++) {
        int32_t x = w[i] + ((in[i] * e + 16384) >> 15);
        w[i] = (int16_t)(x > 32767 ? 32767 : x < -32768 ? -32768 : x);
    }
#endif
}

static inline void NAME(begin_byte)(const Model *m, Scratch *s) {
    Context *x = &s->context;
    uint64_t *h = s->hash;
    context_hashes(x, h);
    uint64_t lh[N_LOCAL];
    local_hashes(x, h, lh);
    for (int i = 0; i < N_STATIC; i++)
        __builtin_prefetch(m->base.lines + (size_t)(((h[i] >> 32) * m->base.n_lines) >> 32) * LINE_BYTES);
    uint32_t present = 0;
    for (int i = 0; i < N_LOCAL; i++) {
        uint32_t slot = (uint32_t)i * LOCAL_SLOTS + (uint32_t)(lh[i] >> 52);
        uint16_t tag = (uint16_t)((lh[i] >> 30) | 1);
        s->slot[i] = slot; s->slot_tag[i] = tag;
        const LocalSlot *l = &s->local[slot];
        uint8_t *sym = s->sym + 8 * (LANE_LOCAL + i), *w = s->weight + 8 * (LANE_LOCAL + i);
        if (l->tag == tag) { memcpy(sym, l->sym, 8); memcpy(w, l->count, 8); sym[7] = w[7] = 0; present |= 1u << (LANE_LOCAL + i); }
        else { memset(sym, 0, 8); memset(w, 0, 8); }
    }
    for (int i = 0; i < N_STATIC; i++)
        present |= (uint32_t)NAME(list_load)(&m->base, h[i], s->sym + 8 * i, s->weight + 8 * i) << i;
    s->lanes = LANES_BASE; s->lists = N_BASE_LISTS;
    if (m->has_pack) {
        uint64_t ph[N_PACK];
        pack_hashes(x, h, ph);
        for (int i = 0; i < N_PACK; i++)
            present |= (uint32_t)NAME(list_load)(&m->pack, ph[i], s->sym + 8 * (N_BASE_LISTS + i), s->weight + 8 * (N_BASE_LISTS + i)) << (N_BASE_LISTS + i);
        s->lanes = LANES; s->lists = N_LISTS;
    }
    s->present = present;
    match_find(m, s);
    uint32_t t = (uint32_t)x->hist;
    s->o1 = m->o1 + (t & 0xFF) * 256;
    s->o2 = m->o2 + (size_t)m->o2_row[t & 0xFFFF] * 256;
    s->state = context_state(x);
    uint32_t top = present & 16 ? 5 : present & 8 ? 4 : present & 4 ? 3 : present & 2 ? 2 : present & 1;
    s->set0 = (top * 4 + length_class(s->match_len)) * 4 + length_class(s->primer[s->primer[1].len > s->primer[0].len].len);
    uint32_t words = present & 128 ? 3 : present & 64 ? 2 : present & 32 ? 1 : 0;
    uint32_t locals = present >> LANE_LOCAL & 16 ? 3 : present >> LANE_LOCAL & 8 ? 2 : present >> LANE_LOCAL & 4 ? 1 : 0;
    s->set3 = ((words * 4 + locals) * 8 + s->state) * 8;
}

/* Probability of a one in 1..65535 of 65536 for bit k (7 first) after node c0 (1..255). */
static inline uint32_t NAME(predict)(const Model *m, Scratch *s, uint32_t c0, int k) {
    int16_t *in = s->in;
    const int lists = s->lists, lanes = s->lanes;
    NAME(split)(s->sym, s->weight, lists, s->one, s->zero);
    uint32_t n1 = 0, n0 = 0, cell0 = (uint32_t)(7 - k) << 8;
    for (int i = 0; i < N_STATIC; i++) {
        uint32_t a = s->one[i], b = s->zero[i];
        n1 += a > b; n0 += b > a;
        uint32_t cell = cell0 | (uint32_t)BUCKET[a] << 4 | BUCKET[b];
        s->cell[i] = (uint16_t)cell;
        in[i] = m->base.sm[i * SM_CELLS + cell];
    }
    for (int i = 0; i < N_LOCAL; i++) {
        uint32_t a = s->one[LANE_LOCAL + i], b = s->zero[LANE_LOCAL + i];
        n1 += a > b; n0 += b > a;
        uint32_t cell = cell0 | (uint32_t)BUCKET[a] << 4 | BUCKET[b];
        s->cell[LANE_LOCAL + i] = (uint16_t)cell;
        in[LANE_LOCAL + i] = m->local_sm[i * SM_CELLS + cell];
    }
    if (lists > N_BASE_LISTS)
        for (int i = 0; i < N_PACK; i++) {
            uint32_t cell = cell0 | (uint32_t)BUCKET[s->one[N_BASE_LISTS + i]] << 4 | BUCKET[s->zero[N_BASE_LISTS + i]];
            s->cell[N_BASE_LISTS + i] = (uint16_t)cell;
            in[LANE_PACK + i] = m->pack.sm[i * SM_CELLS + cell];
        }
    in[LANE_O1] = s->o1[c0];
    in[LANE_O2] = (int16_t)(s->o2[c0] * 16);
    in[LANE_STATE] = m->state_sm[(s->state << 8 | c0)];
    in[LANE_MATCH] = in[LANE_MATCH + 1] = in[LANE_PRIMER] = in[LANE_PACK_PRIMER] = 0;
    s->match_cell = s->primer_cell[0] = s->primer_cell[1] = -1;
    if (s->match_len && (s->match_byte | 256u) >> (k + 1) == c0) {
        uint32_t bit = s->match_byte >> k & 1;
        s->match_cell = (int)(MIN(s->match_len, 31) * 8 + (7 - (uint32_t)k));
        int16_t v = m->match_sm[s->match_cell];
        in[LANE_MATCH] = (int16_t)(bit ? v : -v);
        in[LANE_MATCH + 1] = (int16_t)(s->match_len < 16 ? 0 : in[LANE_MATCH]);
    }
    for (int j = 0; j < 1 + m->has_pack; j++) {
        const Primer *p = &s->primer[j];
        if (p->len && (p->byte | 256u) >> (k + 1) == c0) {
            uint32_t bit = p->byte >> k & 1;
            s->primer_cell[j] = (int)(MIN(p->len, 31) * 8 + (7 - (uint32_t)k));
            int16_t v = (j ? &m->pack : &m->base)->primer_sm[s->primer_cell[j]];
            in[j ? LANE_PACK_PRIMER : LANE_PRIMER] = (int16_t)(bit ? v : -v);
        }
    }
    uint32_t group = k == 7 ? 0 : k >= 4 ? 1 : 2;
    s->row[0] = SET_BASE[0] + s->set0 * 3 + group;
    s->row[1] = SET_BASE[1] + c0;
    s->row[2] = SET_BASE[2] + ((uint32_t)s->context.hist & 0xFF);
    s->row[3] = SET_BASE[3] + s->set3 + (uint32_t)(7 - k);
    s->row[4] = SET_BASE[4] + (MIN(n1, 15) * 16 + MIN(n0, 15)) * 3 + group;
    int32_t total = 0;
    int16_t *fw = s->final_weights + c0 * 8;
    for (int j = 0; j < N_SETS; j++) {
        int32_t d = NAME(dot)(in, s->weights + (size_t)s->row[j] * LANES, lanes) >> 8;
        d = d > 2047 ? 2047 : d < -2047 ? -2047 : d;
        s->dot[j] = d;
        total += d * fw[j];
    }
    total >>= 14;
    total = total > 2047 ? 2047 : total < -2047 ? -2047 : total;
    s->logit = total;
    return s->p = m->squash[total + 2048];
}

static inline void NAME(update)(const Model *m, Scratch *s, uint32_t c0, int bit) {
    int32_t goal = bit ? 65535 : 0;
    for (int j = 0; j < N_SETS; j++) {
        int32_t e = ((goal - (int32_t)m->squash[s->dot[j] + 2048]) * m->rates[j]) >> 8;
        if (e) { touch(s, s->row[j]); NAME(learn)(s->in, s->weights + (size_t)s->row[j] * LANES, s->lanes, e); }
    }
    int32_t e = ((goal - (int32_t)s->p) * m->rates[7]) >> 10;
    int16_t *fw = s->final_weights + c0 * 8;
    for (int j = 0; j < N_SETS; j++) {
        int32_t x = fw[j] + ((s->dot[j] * e + 32768) >> 16);
        fw[j] = (int16_t)(x > 32767 ? 32767 : x < -32768 ? -32768 : x);
    }
    NAME(narrow)(s->sym, s->weight, s->lists, bit);
}

static int NAME(run_encode)(const Model *m, Scratch *s, int type, const uint8_t *raw, size_t n, Encoder *rc, uint16_t *cost) {
    record_begin(m, s, type, raw);
    for (size_t i = 0; i <= n; i++) {
        uint32_t c = i < n ? raw[i] : 0, c0 = 1, spent = 0;
        NAME(begin_byte)(m, s);
        for (int k = 7; k >= 0; k--) {
            int bit = c >> k & 1;
            uint32_t p = NAME(predict)(m, s, c0, k);
            if (rc) encode_bit(rc, p, bit);
            if (cost) spent += bit_cost(bit ? p : 65536 - p);
            NAME(update)(m, s, c0, bit);
            c0 = c0 * 2 + (uint32_t)bit;
        }
        if (!c) {
            int literal = i < n;
            if (rc) encode_bit(rc, s->p_zero, literal);
            if (cost) spent += bit_cost(literal ? s->p_zero : 65536 - s->p_zero);
            zero_update(s, literal);
        }
        if (cost) cost[i] = (uint16_t)(spent > 65535 ? 65535 : spent);
        if (i < n) end_byte(m, s, c);
    }
    record_end(s);
    return NBMF_OK;
}

static long NAME(run_decode)(const Model *m, Scratch *s, int type, Decoder *rc, uint8_t *out, size_t cap) {
    record_begin(m, s, type, out);
    size_t n = 0;
    long result;
    for (;;) {
        uint32_t c0 = 1;
        NAME(begin_byte)(m, s);
        for (int k = 7; k >= 0; k--) {
            uint32_t p = NAME(predict)(m, s, c0, k);
            int bit = decode_bit(rc, p);
            NAME(update)(m, s, c0, bit);
            c0 = c0 * 2 + (uint32_t)bit;
        }
        uint32_t c = c0 & 255;
        if (!c) {
            int literal = decode_bit(rc, s->p_zero);
            zero_update(s, literal);
            if (!literal) { result = (long)n; break; }
        }
        if (rc->spent > SPENT_MAX) { result = NBMF_STREAM; break; }
        if (n == cap) { result = NBMF_LIMIT; break; }
        out[n++] = (uint8_t)c;
        end_byte(m, s, c);
    }
    record_end(s);
    return result;
}
