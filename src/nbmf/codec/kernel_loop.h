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
static inline uint32_t NAME(list_load)(const Tables *t, uint64_t h, uint8_t *sym, uint8_t *w) {
    const uint8_t *line = t->lines + (size_t)(((h >> 32) * t->n_lines) >> 32) * LINE_BYTES;
    uint32_t m = NAME(line_match)(line, (uint32_t)(h >> 20) & 0xFFF);
    /* m has 21 bits: with bit 31 set a first exists, and the run that starts there is empty */
    uint32_t first = (uint32_t)__builtin_ctz(m | 1u << 31), count = MIN((uint32_t)__builtin_ctz(~(m >> first)), LIST_LEN);
#if LEVEL >= 1
    /* Loads stay inside the line: 2 * first + 16 <= 56 and at + 8 <= 64. */
    uint32_t begin = m ? first : 0, off = 2 * LINE_ENTRIES + begin, at = MIN(off, LINE_BYTES - 8);
    uint64_t s, keep = count ? ~0ull >> (64 - 8 * count) : 0;
    memcpy(&s, line + at, 8);
    s = s >> (8 * (off - at)) & keep;
    __m128i e = _mm_and_si128(_mm_loadu_si128((const __m128i *)(line + 2 * begin)), _mm_set1_epi16(15));
    e = _mm_shuffle_epi8(_mm_loadu_si128((const __m128i *)WEIGHTS), _mm_packus_epi16(e, e));
    uint64_t v = (uint64_t)_mm_cvtsi128_si64(e) & keep;
    memcpy(sym, &s, 8);
    memcpy(w, &v, 8);
#else
    for (uint32_t i = 0; i < LIST_LEN; i++) {
        sym[i] = i < count ? line[2 * LINE_ENTRIES + first + i] : 0;
        w[i] = i < count ? WEIGHTS[line[2 * (first + i)] & 15] : 0;
    }
#endif
    return m != 0;
}

#if LEVEL >= 1
/* Four lists' mass by next bit, a 64-bit lane each: on one in the low byte, on zero in the next, both saturating. */
static inline __m256i NAME(split)(const uint8_t *sym, const uint8_t *w) {
    const __m256i none = _mm256_setzero_si256(), most = _mm256_set1_epi64x(255);
    __m256i v = _mm256_load_si256((const __m256i *)w), m = _mm256_cmpgt_epi8(none, _mm256_load_si256((const __m256i *)sym));
    __m256i one = _mm256_min_epi32(_mm256_sad_epu8(_mm256_and_si256(v, m), none), most);
    __m256i zero = _mm256_min_epi32(_mm256_sad_epu8(_mm256_andnot_si256(m, v), none), most);
    return _mm256_or_si256(one, _mm256_slli_epi64(zero, 8));
}

/* Pairs (one, zero) of bytes -> cells within a bit position. */
static inline __m256i NAME(cells)(__m256i mass, uint32_t cell0) {
    const __m256i low = _mm256_broadcastsi128_si256(_mm_loadu_si128((const __m128i *)BUCKET_LOW));
    const __m256i high = _mm256_broadcastsi128_si256(_mm_loadu_si128((const __m128i *)BUCKET_HIGH));
    const __m256i nibble = _mm256_set1_epi8(15);
    __m256i h = _mm256_and_si256(_mm256_srli_epi16(mass, 4), nibble);
    __m256i b = _mm256_blendv_epi8(_mm256_shuffle_epi8(high, h), _mm256_shuffle_epi8(low, _mm256_and_si256(mass, nibble)),
                                   _mm256_cmpeq_epi8(h, _mm256_setzero_si256()));
    __m256i one = _mm256_slli_epi16(_mm256_and_si256(b, _mm256_set1_epi16(15)), 4);
    return _mm256_or_si256(_mm256_or_si256(one, _mm256_srli_epi16(b, 8)), _mm256_set1_epi16((short)cell0));
}

/* A bit for each byte of the pairs that is greater than the other of its pair. */
static inline uint32_t NAME(greater)(__m256i mass) {
    __m256i other = _mm256_or_si256(_mm256_slli_epi16(mass, 8), _mm256_srli_epi16(mass, 8));
    return ~(uint32_t)_mm256_movemask_epi8(_mm256_cmpeq_epi8(_mm256_subs_epu8(mass, other), _mm256_setzero_si256()));
}
#endif

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

#if LEVEL >= 2
/* 32 lanes by two loads: they were written by two stores, which one load of both would wait for. */
static inline __m512i NAME(halves)(const int16_t *in) {
    return _mm512_inserti64x4(_mm512_castsi256_si512(_mm256_load_si256((const __m256i *)in)), _mm256_load_si256((const __m256i *)(in + 16)), 1);
}
#endif
#if LEVEL >= 1
/* The four partial sums of in . w: over lane pairs, of (in*w + in*w) >> 6, arithmetic shift of each pair. */
static inline __m128i NAME(dot)(const int16_t *in, const int16_t *w, int lanes) {
    __m256i sum;
#if LEVEL >= 2
    __m512i p = _mm512_srai_epi32(_mm512_madd_epi16(NAME(halves)(in), _mm512_loadu_si512(w)), 6);
    sum = _mm256_add_epi32(_mm512_castsi512_si256(p), _mm512_extracti64x4_epi64(p, 1));
#else
    sum = _mm256_add_epi32(
        _mm256_srai_epi32(_mm256_madd_epi16(_mm256_load_si256((const __m256i *)in), _mm256_loadu_si256((const __m256i *)w)), 6),
        _mm256_srai_epi32(_mm256_madd_epi16(_mm256_load_si256((const __m256i *)(in + 16)), _mm256_loadu_si256((const __m256i *)(w + 16))), 6));
#endif
    if (lanes > LANES_BASE)
        sum = _mm256_add_epi32(sum, _mm256_srai_epi32(_mm256_madd_epi16(_mm256_load_si256((const __m256i *)(in + 32)),
                                                                        _mm256_loadu_si256((const __m256i *)(w + 32))), 6));
    return _mm_add_epi32(_mm256_castsi256_si128(sum), _mm256_extracti128_si256(sum, 1));
}
#else
/* sum over lane pairs of (in*w + in*w) >> 6, arithmetic shift of each pair */
static inline int32_t NAME(dot)(const int16_t *in, const int16_t *w, int lanes) {
    int32_t sum = 0;
    for (int i = 0; i < lanes; i += 2) sum += ((int32_t)in[i] * w[i] + (int32_t)in[i + 1] * w[i + 1]) >> 6;
    return sum;
}
#endif

/* w += round(in * e / 32768), saturating; |e| < 32768 */
static inline void NAME(learn)(const int16_t *in, int16_t *w, int lanes, int32_t e) {
#if LEVEL >= 1
    __m256i v = _mm256_set1_epi16((short)e);
    int i = 0;
#if LEVEL >= 2
    __m512i step = _mm512_mulhrs_epi16(NAME(halves)(in), _mm512_set1_epi16((short)e));
    _mm512_storeu_si512(w, _mm512_adds_epi16(_mm512_loadu_si512(w), step));
    i = 32;
#endif
    for (; i < lanes; i += 16) {
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

/* The in-record lists learn byte c: its count grows by one, those over 2 of the others halve (upward); a new byte replaces the rarest. */
static inline void NAME(local_update)(Scratch *s, uint32_t c) {
    for (int i = 0; i < N_LOCAL; i++) {
        LocalSlot *l = &s->local[s->slot[i]];
        if (l->tag != s->slot_tag[i]) {
            if (!l->tag) s->claimed[s->n_claimed++] = s->slot[i];
            memset(l, 0, sizeof *l);
            l->tag = s->slot_tag[i]; l->sym[0] = (uint8_t)c; l->count[0] = 1;
            continue;
        }
#if LEVEL >= 1
        uint64_t sym, count;
        const uint64_t seven = ~0ull >> 8;
        memcpy(&sym, l->sym, 8); memcpy(&count, l->count, 8);
        __m128i n = _mm_cvtsi64_si128((long long)(count & seven)), zero = _mm_setzero_si128();
        __m128i hit = _mm_andnot_si128(_mm_cmpeq_epi8(n, zero), _mm_cmpeq_epi8(_mm_cvtsi64_si128((long long)sym), _mm_set1_epi8((char)c)));
        __m128i many = _mm_cmpeq_epi8(_mm_max_epu8(n, _mm_set1_epi8(3)), n);      /* n > 2 */
        __m128i less = _mm_blendv_epi8(n, _mm_avg_epu8(n, zero), many);
        __m128i next = _mm_blendv_epi8(less, _mm_adds_epu8(n, _mm_set1_epi8(1)), hit);
        uint64_t v = (uint64_t)_mm_cvtsi128_si64(next) & seven, found = (uint64_t)_mm_cvtsi128_si64(hit) & seven;
        if (!found) {
            int low = 0;
            for (int j = 1; j < 7; j++) if ((v >> 8 * j & 255) < (v >> 8 * low & 255)) low = j;
            v = (v & ~(255ull << 8 * low)) | 1ull << 8 * low;
            l->sym[low] = (uint8_t)c;
        }
        v |= count & ~seven;              /* the eighth byte is the tag's */
        memcpy(l->count, &v, 8);
#else
        int at = -1, low = 0;
        for (int j = 0; j < 7; j++) {
            if (l->count[j] && l->sym[j] == c) at = j;
            else if (l->count[j] > 2) l->count[j] = (uint8_t)((l->count[j] + 1) >> 1);
            if (l->count[j] < l->count[low]) low = j;
        }
        if (at < 0) { l->sym[low] = (uint8_t)c; l->count[low] = 1; }
        else if (l->count[at] < 255) l->count[at]++;
#endif
    }
}

/* The lines of the next byte's contexts are asked for first: memory takes longer than all that follows. */
static inline void NAME(look_ahead)(const Model *m, Scratch *s) {
    context_hashes(&s->context, s->hash);
    for (int i = 0; i < N_STATIC; i++)
        __builtin_prefetch(m->base.lines + (size_t)(((s->hash[i] >> 32) * m->base.n_lines) >> 32) * LINE_BYTES);
}

static inline void NAME(end_byte)(const Model *m, Scratch *s, uint32_t c) {
    context_update(&s->context, c);
    NAME(look_ahead)(m, s);
    NAME(local_update)(s, c);
    s->pos++;
    if (s->match_len) { if (s->match_byte == c) { s->match_len++; s->match_at++; } else s->match_len = 0; }
    for (int j = 0; j < 2; j++) {
        Primer *p = &s->primer[j];
        if (p->len) { if (p->byte == c) { p->len++; p->pos++; } else p->len = 0; }
    }
}

static inline __attribute__((always_inline)) void NAME(begin_byte)(const Model *m, Scratch *s) {
    Context *x = &s->context;
    uint64_t *h = s->hash;
    uint64_t lh[N_LOCAL];
    local_hashes(x, h, lh);
    uint32_t present = 0;
    for (int i = 0; i < N_LOCAL; i++) {
        uint32_t slot = (uint32_t)i * LOCAL_SLOTS + (uint32_t)(lh[i] >> 52);
        uint16_t tag = (uint16_t)((lh[i] >> 30) | 1);
        s->slot[i] = slot; s->slot_tag[i] = tag;
        const LocalSlot *l = &s->local[slot];
        uint8_t *sym = s->sym + 8 * SLOT[LANE_LOCAL + i], *w = s->weight + 8 * SLOT[LANE_LOCAL + i];
        if (l->tag == tag) { memcpy(sym, l->sym, 8); memcpy(w, l->count, 8); sym[7] = w[7] = 0; present |= 1u << (LANE_LOCAL + i); }
        else { memset(sym, 0, 8); memset(w, 0, 8); }
    }
    for (int i = 0; i < N_STATIC; i++)
        present |= NAME(list_load)(&m->base, h[i], s->sym + 8 * SLOT[i], s->weight + 8 * SLOT[i]) << i;
    s->lanes = LANES_BASE; s->lists = N_BASE_LISTS;
    if (m->has_pack) {
        uint64_t ph[N_PACK];
        pack_hashes(x, h, ph);
        for (int i = 0; i < N_PACK; i++)
            present |= NAME(list_load)(&m->pack, ph[i], s->sym + 8 * SLOT[N_BASE_LISTS + i], s->weight + 8 * SLOT[N_BASE_LISTS + i]) << (N_BASE_LISTS + i);
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
    if (m->has_pack)              /* the pack's order 6 or structure, order 4, order 3, or none of them */
        locals = present >> N_BASE_LISTS & 0x48 ? 3 : present >> N_BASE_LISTS & 4 ? 2 : present >> N_BASE_LISTS & 2 ? 1 : 0;
    s->set3 = ((words * 4 + locals) * 8 + s->state) * 8;
}

/* Probability of a one in 1..65535 of 65536 for bit k (7 first) after node c0 (1..255). */
static inline __attribute__((always_inline)) uint32_t NAME(predict)(const Model *m, Scratch *s, uint32_t c0, int k) {
    int16_t *in = s->in;
    const int lanes = s->lanes;
    const uint32_t cell0 = (uint32_t)(7 - k) << 8;
    int32_t found = 0, primer[2] = { 0, 0 };
    s->match_cell = s->primer_cell[0] = s->primer_cell[1] = -1;
    if (s->match_len && (s->match_byte | 256u) >> (k + 1) == c0) {
        s->match_cell = (int)(MIN(s->match_len, 31) * 8 + (7 - (uint32_t)k));
        found = m->match_sm[s->match_cell];
        if (!(s->match_byte >> k & 1)) found = -found;
    }
    for (int j = 0; j < 1 + m->has_pack; j++) {
        const Primer *p = &s->primer[j];
        if (p->len && (p->byte | 256u) >> (k + 1) == c0) {
            s->primer_cell[j] = (int)(MIN(p->len, 31) * 8 + (7 - (uint32_t)k));
            primer[j] = (j ? &m->pack : &m->base)->primer_sm[s->primer_cell[j]];
            if (!(p->byte >> k & 1)) primer[j] = -primer[j];
        }
    }
    const int32_t found_long = s->match_len < 16 ? 0 : found;
    const int32_t o1 = s->o1[c0], o2 = s->o2[c0] * 16, state = m->state_sm[s->state << 8 | c0];
    uint32_t n1 = 0, n0 = 0;
#if LEVEL >= 1
    const uint8_t *y = s->sym, *v = s->weight;
    __m256i a = _mm256_or_si256(
        _mm256_or_si256(NAME(split)(y, v), _mm256_slli_epi64(NAME(split)(y + 32, v + 32), 16)),
        _mm256_or_si256(_mm256_slli_epi64(NAME(split)(y + 64, v + 64), 32), _mm256_slli_epi64(NAME(split)(y + 96, v + 96), 48)));
    __m256i b = NAME(split)(y + 128, v + 128);
    uint32_t more = NAME(greater)(a), more_local = NAME(greater)(b) & 0x03030303;
    if (lanes > LANES_BASE)
        b = _mm256_or_si256(b, _mm256_or_si256(_mm256_slli_epi64(NAME(split)(y + 160, v + 160), 16), _mm256_slli_epi64(NAME(split)(y + 192, v + 192), 32)));
    n1 = (uint32_t)(__builtin_popcount(more & 0x55555555) + __builtin_popcount(more_local & 0x55555555));
    n0 = (uint32_t)(__builtin_popcount(more & 0xAAAAAAAA) + __builtin_popcount(more_local & 0xAAAAAAAA));
    _mm256_store_si256((__m256i *)s->cell, NAME(cells)(a, cell0));
    _mm256_store_si256((__m256i *)(s->cell + 16), NAME(cells)(b, cell0));
    const uint16_t *cell = s->cell;
    const int16_t *sm = m->base.sm, *local = m->local_sm;
#define S(i) sm[(i) * SM_CELLS + cell[i]]
#define L(i) local[(i) * SM_CELLS + cell[CELL[N_STATIC + (i)]]]
    __m128i x0 = _mm_setr_epi16(S(0), S(1), S(2), S(3), S(4), S(5), S(6), S(7));
    __m128i x1 = _mm_setr_epi16(S(8), S(9), S(10), S(11), L(0), L(1), L(2), L(3));
    __m128i x2 = _mm_setr_epi16(L(4), L(5), L(6), L(7), (short)o1, (short)o2, (short)found, (short)found_long);
    __m128i x3 = _mm_setr_epi16((short)primer[0], 0, (short)state, 0, 0, 0, 0, 256);
#undef S
#undef L
    _mm256_store_si256((__m256i *)in, _mm256_setr_m128i(x0, x1));
    _mm256_store_si256((__m256i *)(in + 16), _mm256_setr_m128i(x2, x3));
    if (lanes > LANES_BASE) {
        sm = m->pack.sm;
#define P(i) sm[(i) * SM_CELLS + cell[CELL[N_BASE_LISTS + (i)]]]
        __m128i x4 = _mm_setr_epi16(P(0), P(1), P(2), P(3), P(4), P(5), P(6), P(7));
#undef P
        _mm256_store_si256((__m256i *)(in + 32), _mm256_setr_m128i(x4, _mm_setr_epi16((short)primer[1], 0, 0, 0, 0, 0, 0, 0)));
    }
#else
    for (int i = 0; i < s->lists; i++) {
        const uint8_t *sym = s->sym + LIST_LEN * SLOT[i], *w = s->weight + LIST_LEN * SLOT[i];
        uint32_t one = 0, zero = 0;
        for (int j = 0; j < LIST_LEN; j++) { if (sym[j] & 128) one += w[j]; else zero += w[j]; }
        one = MIN(one, 255); zero = MIN(zero, 255);
        if (i < N_BASE_LISTS) { n1 += one > zero; n0 += zero > one; }
        uint32_t cell = cell0 | bucket(one) << 4 | bucket(zero);
        s->cell[CELL[i]] = (uint16_t)cell;
        if (i < N_STATIC) in[i] = m->base.sm[i * SM_CELLS + (int)cell];
        else if (i < N_BASE_LISTS) in[i] = m->local_sm[(i - N_STATIC) * SM_CELLS + (int)cell];
        else in[LANE_PACK + i - N_BASE_LISTS] = m->pack.sm[(i - N_BASE_LISTS) * SM_CELLS + (int)cell];
    }
    in[LANE_O1] = (int16_t)o1; in[LANE_O2] = (int16_t)o2; in[LANE_STATE] = (int16_t)state;
    in[LANE_MATCH] = (int16_t)found; in[LANE_MATCH + 1] = (int16_t)found_long;
    in[LANE_PRIMER] = (int16_t)primer[0]; in[LANE_PACK_PRIMER] = (int16_t)primer[1];
    in[LANE_BIAS] = 256;
#endif
    uint32_t group = k == 7 ? 0 : k >= 4 ? 1 : 2;
    s->row[0] = SET_BASE[0] + s->set0 * 3 + group;
    s->row[1] = SET_BASE[1] + c0;
    s->row[2] = SET_BASE[2] + ((uint32_t)s->context.hist & 0xFF);
    s->row[3] = SET_BASE[3] + s->set3 + (uint32_t)(7 - k);
    s->row[4] = SET_BASE[4] + (MIN(n1, 15) * 16 + MIN(n0, 15)) * 3 + group;
    const int16_t *fw = s->final_weights + c0 * 8;
    int32_t total = 0;
#if LEVEL >= 1
    __m128i sum[N_SETS];
    for (int j = 0; j < N_SETS; j++) sum[j] = NAME(dot)(in, s->weights + (size_t)s->row[j] * LANES, lanes);
    __m128i four = _mm_hadd_epi32(_mm_hadd_epi32(sum[0], sum[1]), _mm_hadd_epi32(sum[2], sum[3]));
    __m128i last = _mm_hadd_epi32(sum[4], _mm_setzero_si128());
    last = _mm_hadd_epi32(last, _mm_setzero_si128());
    const __m128i most = _mm_set1_epi32(2047), least = _mm_set1_epi32(-2047);
    four = _mm_max_epi32(_mm_min_epi32(_mm_srai_epi32(four, 8), most), least);
    last = _mm_max_epi32(_mm_min_epi32(_mm_srai_epi32(last, 8), most), least);
    _mm_storeu_si128((__m128i *)s->dot, four);
    s->dot[4] = _mm_cvtsi128_si32(last);
    /* final weights 5..7 meet zeros */
    __m128i parts = _mm_madd_epi16(_mm_packs_epi32(four, last), _mm_loadu_si128((const __m128i *)fw));
    parts = _mm_add_epi32(parts, _mm_shuffle_epi32(parts, 0x4E));
    total = _mm_cvtsi128_si32(_mm_add_epi32(parts, _mm_shuffle_epi32(parts, 0xB1)));
#else
    for (int j = 0; j < N_SETS; j++) {
        int32_t d = NAME(dot)(in, s->weights + (size_t)s->row[j] * LANES, lanes) >> 8;
        d = d > 2047 ? 2047 : d < -2047 ? -2047 : d;
        s->dot[j] = d;
        total += d * fw[j];
    }
#endif
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
    NAME(look_ahead)(m, s);
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
        if (i < n) NAME(end_byte)(m, s, c);
    }
    record_end(s);
    return NBMF_OK;
}

static long NAME(run_decode)(const Model *m, Scratch *s, int type, Decoder *rc, uint8_t *out, size_t cap) {
    record_begin(m, s, type, out);
    NAME(look_ahead)(m, s);
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
        NAME(end_byte)(m, s, c);
    }
    record_end(s);
    return result;
}
