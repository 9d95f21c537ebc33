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
/* Of four lists, a 64-bit lane each: the weights' sum on one in the low 16 bits, on zero in the next 16; at most 8 * 255. */
static inline __m256i NAME(split)(const uint8_t *sym, const uint8_t *w) {
    const __m256i none = _mm256_setzero_si256();
    __m256i v = _mm256_load_si256((const __m256i *)w), m = _mm256_cmpgt_epi8(none, _mm256_load_si256((const __m256i *)sym));
    return _mm256_or_si256(_mm256_sad_epu8(_mm256_and_si256(v, m), none), _mm256_slli_epi64(_mm256_sad_epu8(_mm256_andnot_si256(m, v), none), 16));
}

/* Pairs (one, zero) of bytes -> cells within a bit position, 16 bits each. The steps of high nibbles all lie over those of low ones, and
   a byte of 128 or more looks up 0 among the low. */
static inline __m256i NAME(cells)(__m256i mass) {
    const __m256i low = _mm256_broadcastsi128_si256(_mm_loadu_si128((const __m128i *)BUCKET_LOW));
    const __m256i high = _mm256_broadcastsi128_si256(_mm_loadu_si128((const __m128i *)BUCKET_HIGH));
    __m256i h = _mm256_and_si256(_mm256_srli_epi16(mass, 4), _mm256_set1_epi8(15));
    return _mm256_maddubs_epi16(_mm256_max_epu8(_mm256_shuffle_epi8(low, mass), _mm256_shuffle_epi8(high, h)), _mm256_set1_epi16(0x0110));
}

/* A bit for each byte of the pairs that is greater than the other of its pair. */
static inline uint32_t NAME(greater)(__m256i mass) {
    const __m256i swap = _mm256_broadcastsi128_si256(_mm_setr_epi8(1, 0, 3, 2, 5, 4, 7, 6, 9, 8, 11, 10, 13, 12, 15, 14));
    return ~(uint32_t)_mm256_movemask_epi8(_mm256_cmpeq_epi8(_mm256_subs_epu8(mass, _mm256_shuffle_epi8(mass, swap)), _mm256_setzero_si256()));
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

#if LEVEL >= 1
/* Four partial sums in each half of in . w: over lane pairs, of (in*w + in*w) >> 6, arithmetic shift of each pair. */
static inline __m256i NAME(dot)(const int16_t *in, const int16_t *w, int lanes) {
    __m256i sum = _mm256_setzero_si256();
    for (int i = 0; i < lanes; i += 16)
        sum = _mm256_add_epi32(sum, _mm256_srai_epi32(_mm256_madd_epi16(_mm256_load_si256((const __m256i *)(in + i)),
                                                                        _mm256_loadu_si256((const __m256i *)(w + i))), 6));
    return sum;
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
#if LEVEL >= 1
static inline __attribute__((always_inline)) void NAME(learn)(const int16_t *in, int16_t *w, int lanes, __m256i e) {
    for (int i = 0; i < lanes; i += 16) {
        __m256i d = _mm256_mulhrs_epi16(_mm256_load_si256((const __m256i *)(in + i)), e);
        _mm256_storeu_si256((__m256i *)(w + i), _mm256_adds_epi16(_mm256_loadu_si256((const __m256i *)(w + i)), d));
    }
}
#else
static inline void NAME(learn)(const int16_t *in, int16_t *w, int lanes, int32_t e) {
    for (int i = 0; i < lanes; i++) {
        int32_t x = w[i] + ((in[i] * e + 16384) >> 15);
        w[i] = (int16_t)(x > 32767 ? 32767 : x < -32768 ? -32768 : x);
    }
}
#endif

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
        memcpy(&sym, l->sym, 8); memcpy(&count, l->count, 8);
        __m128i n = _mm_cvtsi64_si128((long long)(count & SEVEN)), zero = _mm_setzero_si128();
        __m128i hit = _mm_andnot_si128(_mm_cmpeq_epi8(n, zero), _mm_cmpeq_epi8(_mm_cvtsi64_si128((long long)sym), _mm_set1_epi8((char)c)));
        __m128i many = _mm_cmpeq_epi8(_mm_max_epu8(n, _mm_set1_epi8(3)), n);      /* n > 2 */
        __m128i less = _mm_blendv_epi8(n, _mm_avg_epu8(n, zero), many);
        __m128i next = _mm_blendv_epi8(less, _mm_adds_epu8(n, _mm_set1_epi8(1)), hit);
        uint64_t v = (uint64_t)_mm_cvtsi128_si64(next) & SEVEN, found = (uint64_t)_mm_cvtsi128_si64(hit) & SEVEN;
        if (!found) {
            /* the first of the smallest of seven */
            __m128i wide = _mm_insert_epi16(_mm_cvtepu8_epi16(next), -1, 7);
            int low = _mm_extract_epi16(_mm_minpos_epu16(wide), 1);
            v = (v & ~(255ull << 8 * low)) | 1ull << 8 * low;
            l->sym[low] = (uint8_t)c;
        }
        v |= count & ~SEVEN;              /* the eighth byte is the tag's */
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

/* Asks for what the next byte's contexts will look up: memory takes longer than all that follows. */
static inline void NAME(look_ahead)(const Model *m, Scratch *s) {
    context_hashes(&s->context, s->hash);
    local_hashes(&s->context, s->hash, s->local_hash);
    for (int i = 0; i < N_STATIC; i++)
        __builtin_prefetch(m->base.lines + (size_t)(((s->hash[i] >> 32) * m->base.n_lines) >> 32) * LINE_BYTES);
    for (int i = 0; i < N_LOCAL; i++) __builtin_prefetch(&s->local[local_slot(i, s->local_hash[i])]);
}

/* Moves the context on by byte `guess`, before the last bit of it is known, so that the lines arrive while that bit is coded. */
static inline void NAME(guess_byte)(const Model *m, Scratch *s, uint32_t guess) {
    s->before = s->context;
    s->guess = guess;
    context_update(&s->context, guess);
    NAME(look_ahead)(m, s);
}

static inline void NAME(end_byte)(const Model *m, Scratch *s, uint32_t c) {
    if (s->guess != c) {
        s->context = s->before;
        context_update(&s->context, c);
        NAME(look_ahead)(m, s);
    }
    NAME(local_update)(s, c);
    s->pos++;
    if (s->match_len) { if (s->match_byte == c) { s->match_len++; s->match_at++; } else s->match_len = 0; }
    for (int j = 0; j < 2; j++) {
        Primer *p = &s->primer[j];
        if (p->len) { if (p->byte == c) { p->len++; p->pos++; } else p->len = 0; }
    }
}

static inline __attribute__((always_inline)) void NAME(begin_byte)(const Model *m, Scratch *s, const int pack) {
    Context *x = &s->context;
    uint64_t *h = s->hash;
    uint32_t present = 0;
    for (int i = 0; i < N_LOCAL; i++) {
        uint32_t slot = local_slot(i, s->local_hash[i]);
        uint16_t tag = (uint16_t)((s->local_hash[i] >> 30) | 1);
        s->slot[i] = slot; s->slot_tag[i] = tag;
        const LocalSlot *l = &s->local[slot];
        /* symbols, and counts, of the slot in eight bytes each, where the eighth is no list's */
        uint64_t sym, count, keep = l->tag == tag ? ~0ull : 0;
        memcpy(&sym, l->sym, 8); memcpy(&count, l->count, 8);
        sym &= keep & SEVEN; count &= keep & SEVEN;
        memcpy(s->sym + 8 * SLOT[LANE_LOCAL + i], &sym, 8);
        memcpy(s->weight + 8 * SLOT[LANE_LOCAL + i], &count, 8);
        present |= (uint32_t)(keep & 1) << (LANE_LOCAL + i);
    }
    for (int i = 0; i < N_STATIC; i++)
        present |= NAME(list_load)(&m->base, h[i], s->sym + 8 * SLOT[i], s->weight + 8 * SLOT[i]) << i;
    if (pack) {
        uint64_t ph[N_PACK];
        pack_hashes(x, h, ph);
        for (int i = 0; i < N_PACK; i++)
            present |= NAME(list_load)(&m->pack, ph[i], s->sym + 8 * SLOT[N_BASE_LISTS + i], s->weight + 8 * SLOT[N_BASE_LISTS + i]) << (N_BASE_LISTS + i);
    }
    match_find(m, s);
    uint32_t t = (uint32_t)x->hist;
    s->o1 = m->o1 + (t & 0xFF) * 256;
    s->o2 = m->o2 + (size_t)m->o2_row[t & 0xFFFF] * 256;
    s->state = context_state(x);
    uint32_t top = present & 16 ? 5 : present & 8 ? 4 : present & 4 ? 3 : present & 2 ? 2 : present & 1;
    s->set0 = (top * 4 + length_class(s->match_len)) * 4 + length_class(s->primer[s->primer[1].len > s->primer[0].len].len);
    uint32_t words = present & 128 ? 3 : present & 64 ? 2 : present & 32 ? 1 : 0;
    uint32_t locals = present >> LANE_LOCAL & 16 ? 3 : present >> LANE_LOCAL & 8 ? 2 : present >> LANE_LOCAL & 4 ? 1 : 0;
    if (pack)                     /* the pack's order 6 or structure, order 4, order 3, or none of them */
        locals = present >> N_BASE_LISTS & 0x48 ? 3 : present >> N_BASE_LISTS & 4 ? 2 : present >> N_BASE_LISTS & 2 ? 1 : 0;
    s->set3 = ((words * 4 + locals) * 8 + s->state) * 8;
}

/* The logit of an expected byte's next bit, signed by that bit, when the bits before agree with it; cell: which one, or -1. */
static inline __attribute__((always_inline)) int32_t NAME(expect)(const int16_t *sm, uint32_t len, uint32_t byte, uint32_t c0, int k, int *cell) {
    *cell = -1;
    if (!len || (byte | 256u) >> (k + 1) != c0) return 0;
    *cell = (int)(MIN(len, 31) * 8 + (7 - (uint32_t)k));
    int32_t l = sm[*cell];
    return byte >> k & 1 ? l : -l;
}

/* Probability of a one in 1..65535 of 65536 for bit k (7 first) after node c0 (1..255). */
static inline __attribute__((always_inline)) uint32_t NAME(predict)(const Model *m, Scratch *s, Bit *b, uint32_t c0, int k, const int pack) {
    int16_t *in = s->in;
    const int lanes = pack ? LANES : LANES_BASE;
    const uint32_t done = 7 - (uint32_t)k;
    const int32_t found = NAME(expect)(m->match_sm, s->match_len, s->match_byte, c0, k, &b->match_cell);
    const int32_t found_long = s->match_len < 16 ? 0 : found;
    const int32_t primed = NAME(expect)(m->base.primer_sm, s->primer[0].len, s->primer[0].byte, c0, k, &b->primer_cell[0]);
    const int32_t pack_primed = pack ? NAME(expect)(m->pack.primer_sm, s->primer[1].len, s->primer[1].byte, c0, k, &b->primer_cell[1]) : (b->primer_cell[1] = -1, 0);
    const int32_t o2 = s->o2[c0] * 16;
    const int16_t *cells = m->cells + CELLS_POSITION * done;
    uint32_t n1 = 0, n0 = 0;
#if LEVEL >= 1
    const uint8_t *y = s->sym, *v = s->weight;
    __m256i a = _mm256_packus_epi16(_mm256_or_si256(NAME(split)(y, v), _mm256_slli_epi64(NAME(split)(y + 32, v + 32), 32)),
                                    _mm256_or_si256(NAME(split)(y + 64, v + 64), _mm256_slli_epi64(NAME(split)(y + 96, v + 96), 32)));
    __m256i d = NAME(split)(y + 128, v + 128);
    if (pack) d = _mm256_packus_epi16(_mm256_or_si256(d, _mm256_slli_epi64(NAME(split)(y + 160, v + 160), 32)), NAME(split)(y + 192, v + 192));
    else d = _mm256_packus_epi16(d, _mm256_setzero_si256());
    _mm256_store_si256((__m256i *)s->cell, _mm256_packus_epi16(NAME(cells)(a), NAME(cells)(d)));
    const uint64_t more = (uint64_t)(NAME(greater)(d) & 0x00330033u) << 32 | NAME(greater)(a);   /* of d, the base lists only */
    n1 = (uint32_t)__builtin_popcountll(more & 0x5555555555555555u);
    n0 = (uint32_t)__builtin_popcountll(more & 0xAAAAAAAAAAAAAAAAu);
    const uint8_t *cell = s->cell;
    FROM_MEMORY(s->cell);
#define S(i) cells[(i) * CELLS_LIST + cell[CELL[i]]]
    __m128i x0 = LANES8(S(0), S(1), S(2), S(3), S(4), S(5), S(6), S(7));
    __m128i x1 = LANES8(S(8), S(9), S(10), S(11), S(12), S(13), S(14), S(15));
    __m128i x2 = LANES8(S(16), S(17), S(18), S(19), s->o1[c0], (short)o2, (short)found, (short)found_long);
    __m128i x3 = _mm_insert_epi16(_mm_insert_epi16(_mm_setr_epi16(0, 0, 0, 0, 0, 0, 0, 256), (short)primed, 0), m->state_sm[s->state << 8 | c0], 2);
    _mm256_store_si256((__m256i *)in, _mm256_setr_m128i(x0, x1));
    _mm256_store_si256((__m256i *)(in + 16), _mm256_setr_m128i(x2, x3));
    if (pack) {
        __m128i x4 = LANES8(S(20), S(21), S(22), S(23), S(24), S(25), S(26), S(27));
        _mm256_store_si256((__m256i *)(in + 32), _mm256_setr_m128i(x4, _mm_cvtsi32_si128(pack_primed & 0xFFFF)));
    }
#undef S
#else
    for (int i = 0; i < (pack ? N_LISTS : N_BASE_LISTS); i++) {
        const uint8_t *sym = s->sym + LIST_LEN * SLOT[i], *w = s->weight + LIST_LEN * SLOT[i];
        uint32_t one = 0, zero = 0;
        for (int j = 0; j < LIST_LEN; j++) { if (sym[j] & 128) one += w[j]; else zero += w[j]; }
        one = MIN(one, 255); zero = MIN(zero, 255);
        if (i < N_BASE_LISTS) { n1 += one > zero; n0 += zero > one; }
        uint32_t cell = bucket(one) << 4 | bucket(zero);
        s->cell[CELL[i]] = (uint8_t)cell;
        in[i < N_BASE_LISTS ? i : LANE_PACK + i - N_BASE_LISTS] = cells[i * CELLS_LIST + (int)cell];
    }
    in[LANE_O1] = s->o1[c0]; in[LANE_O2] = (int16_t)o2; in[LANE_STATE] = m->state_sm[s->state << 8 | c0];
    in[LANE_MATCH] = (int16_t)found; in[LANE_MATCH + 1] = (int16_t)found_long;
    in[LANE_PRIMER] = (int16_t)primed; in[LANE_PACK_PRIMER] = (int16_t)pack_primed;
    in[LANE_BIAS] = 256;
#endif
    uint32_t group = k == 7 ? 0 : k >= 4 ? 1 : 2;
    b->row[0] = SET_BASE[0] + s->set0 * 3 + group;
    b->row[1] = SET_BASE[1] + c0;
    b->row[2] = SET_BASE[2] + ((uint32_t)s->context.hist & 0xFF);
    b->row[3] = SET_BASE[3] + s->set3 + done;
    b->row[4] = SET_BASE[4] + (MIN(n1, 15) * 16 + MIN(n0, 15)) * 3 + group;
    const int16_t *fw = s->final_weights + c0 * 8;
    int32_t total = 0;
#if LEVEL >= 1
#define DOT(j) NAME(dot)(in, s->weights + (size_t)b->row[j] * LANES, lanes)
    __m256i sums = _mm256_hadd_epi32(_mm256_hadd_epi32(DOT(0), DOT(1)), _mm256_hadd_epi32(DOT(2), DOT(3))), fifth = DOT(4);
#undef DOT
    __m128i four = _mm_add_epi32(_mm256_castsi256_si128(sums), _mm256_extracti128_si256(sums, 1));
    __m128i last = _mm_add_epi32(_mm256_castsi256_si128(fifth), _mm256_extracti128_si256(fifth, 1));
    last = _mm_add_epi32(last, _mm_shuffle_epi32(last, 0x4E));
    last = _mm_srli_si128(_mm_add_epi32(last, _mm_shuffle_epi32(last, 0xB1)), 12);     /* one sum, then zeros */
    const __m128i most = _mm_set1_epi16(2047);
    /* Saturating to 16 bits first leaves the clamp to 2047 as it is. */
    __m128i dots = _mm_packs_epi32(_mm_srai_epi32(four, 8), _mm_srai_epi32(last, 8));
    dots = _mm_max_epi16(_mm_min_epi16(dots, most), _mm_sub_epi16(_mm_setzero_si128(), most));
    _mm_store_si128((__m128i *)b->dot, dots);
    __m128i parts = _mm_madd_epi16(dots, _mm_loadu_si128((const __m128i *)fw));   /* final weights 5..7 meet zeros */
    parts = _mm_add_epi32(parts, _mm_shuffle_epi32(parts, 0x4E));
    total = _mm_cvtsi128_si32(_mm_add_epi32(parts, _mm_shuffle_epi32(parts, 0xB1)));
#else
    for (int j = 0; j < N_SETS; j++) {
        int32_t d = NAME(dot)(in, s->weights + (size_t)b->row[j] * LANES, lanes) >> 8;
        d = d > 2047 ? 2047 : d < -2047 ? -2047 : d;
        b->dot[j] = (int16_t)d;
        total += d * fw[j];
    }
#endif
    total >>= 14;
    b->total = total = total > 2047 ? 2047 : total < -2047 ? -2047 : total;
    return b->p = m->squash[total + 2048];
}

#include "kernel_dense_loop.h"

/* Probability of a one, as the profile has it. */
static inline __attribute__((always_inline)) uint32_t NAME(probability)(const Model *m, Scratch *s, Bit *b, uint32_t c0, int k, const int pack, const int dense) {
    uint32_t p = NAME(predict)(m, s, b, c0, k, pack);
    return dense ? NAME(dense_predict)(m, s, b, c0) : p;
}

static inline __attribute__((always_inline)) void NAME(update)(const Model *m, Scratch *s, const Bit *b, uint32_t c0, int bit, const int pack) {
    const int32_t goal = bit ? 65535 : 0;
#if LEVEL >= 1
    const int lanes = pack ? LANES : LANES_BASE;
    const uint16_t *q = m->squash + 2048;
    __m128i sq = _mm_setr_epi32(q[b->dot[0]], q[b->dot[1]], q[b->dot[2]], q[b->dot[3]]);
    __m128i es = _mm_srai_epi32(_mm_mullo_epi32(_mm_sub_epi32(_mm_set1_epi32(goal), sq), _mm_loadu_si128((const __m128i *)m->rates)), 8);
    __m256i both = _mm256_broadcastsi128_si256(es);
    NAME(learn)(s->in, s->weights + (size_t)b->row[0] * LANES, lanes, _mm256_shuffle_epi8(both, _mm256_set1_epi16(0x0100)));
    NAME(learn)(s->in, s->weights + (size_t)b->row[1] * LANES, lanes, _mm256_shuffle_epi8(both, _mm256_set1_epi16(0x0504)));
    NAME(learn)(s->in, s->weights + (size_t)b->row[2] * LANES, lanes, _mm256_shuffle_epi8(both, _mm256_set1_epi16(0x0908)));
    NAME(learn)(s->in, s->weights + (size_t)b->row[3] * LANES, lanes, _mm256_shuffle_epi8(both, _mm256_set1_epi16(0x0D0C)));
    NAME(learn)(s->in, s->weights + (size_t)b->row[4] * LANES, lanes, _mm256_set1_epi16((short)(((goal - (int32_t)q[b->dot[4]]) * m->rates[4]) >> 8)));
#else
    for (int j = 0; j < N_SETS; j++) {
        int32_t e = ((goal - (int32_t)m->squash[b->dot[j] + 2048]) * m->rates[j]) >> 8;
        NAME(learn)(s->in, s->weights + (size_t)b->row[j] * LANES, pack ? LANES : LANES_BASE, e);
    }
#endif
    for (int j = 0; j < N_SETS; j++) touch(s, b->row[j]);
    const int32_t e = ((goal - (int32_t)b->p) * m->rates[7]) >> 10;
    int16_t *fw = s->final_weights + c0 * 8;
#if LEVEL >= 1
    /* (dot * e + 32768) >> 16 is the product's high half, rounded by the low one's top bit: |e| < 8192 and |dot| < 2048 */
    __m128i d = _mm_load_si128((const __m128i *)b->dot), v = _mm_set1_epi16((short)e);
    __m128i step = _mm_add_epi16(_mm_mulhi_epi16(d, v), _mm_srli_epi16(_mm_mullo_epi16(d, v), 15));
    _mm_storeu_si128((__m128i *)fw, _mm_adds_epi16(_mm_loadu_si128((const __m128i *)fw), step));
#else
    for (int j = 0; j < N_SETS; j++) {
        int32_t x = fw[j] + ((b->dot[j] * e + 32768) >> 16);
        fw[j] = (int16_t)(x > 32767 ? 32767 : x < -32768 ? -32768 : x);
    }
#endif
    NAME(narrow)(s->sym, s->weight, pack ? N_LISTS : N_BASE_LISTS, bit);
}

/* One record that is known: coded when rc is not NULL, counted when cost is not, and learned from in any case. */
static inline __attribute__((always_inline)) void NAME(follow)(const Model *m, Scratch *s, const uint8_t *record, size_t n, Encoder *rc, uint16_t *cost, const int pack, const int dense) {
    Bit b;
    NAME(look_ahead)(m, s);
    for (size_t i = 0; i <= n; i++) {
        uint32_t c = i < n ? record[i] : 0, c0 = 1, spent = 0;
        NAME(begin_byte)(m, s, pack);
        if (dense) NAME(dense_begin_byte)(m, s, pack);
        for (int k = 7; k >= 0; k--) {
            int bit = c >> k & 1;
            uint32_t p = NAME(probability)(m, s, &b, c0, k, pack, dense);
            if (!k) NAME(guess_byte)(m, s, c);
            if (rc) encode_bit(rc, p, bit);
            if (cost) spent += bit_cost(bit ? p : 65536 - p);
            NAME(update)(m, s, &b, c0, bit, pack);
            if (dense) dense_miss(s, &b, bit);
            c0 = c0 * 2 + (uint32_t)bit;
        }
        if (dense) dense_end_byte(s);
        if (!c) {
            int literal = i < n;
            if (rc) encode_bit(rc, s->p_zero, literal);
            if (cost) spent += bit_cost(literal ? s->p_zero : 65536 - s->p_zero);
            zero_update(s, literal);
        }
        if (cost) cost[i] = (uint16_t)(spent > 65535 ? 65535 : spent);
        if (i < n) NAME(end_byte)(m, s, c);
    }
}

static inline void NAME(next)(Scratch *s, int type, const int dense) {
    record_next(s, type);
    if (dense) dense_begin_record(s, type);
}

/* Codes the records of a sequence, which lie end to end in raw, after learning from the first `primed` of them. cost: of one record. */
static inline __attribute__((always_inline)) void NAME(encode_loop)(const Model *m, Scratch *s, const Sequence *q, const uint8_t *raw, Encoder *rc, uint16_t *cost, const int pack, const int dense) {
    record_begin(m, s, q->types[0], raw);
    if (dense) dense_begin_record(s, q->types[0]);
    for (size_t r = 0; r < q->count; r++) {
        if (r) NAME(next)(s, q->types[r], dense);
        NAME(follow)(m, s, raw + s->pos, q->lengths[r], r < q->primed ? NULL : rc, cost, pack, dense);
    }
    record_end(s);
}

static void NAME(run_encode)(const Model *m, Scratch *s, const Sequence *q, const uint8_t *raw, Encoder *rc, uint16_t *cost) {
    if (q->dense && m->has_pack) NAME(encode_loop)(m, s, q, raw, rc, cost, 1, 1);
    else if (q->dense) NAME(encode_loop)(m, s, q, raw, rc, cost, 0, 1);
    else if (m->has_pack) NAME(encode_loop)(m, s, q, raw, rc, cost, 1, 0);
    else NAME(encode_loop)(m, s, q, raw, rc, cost, 0, 0);
}

/* Fills out and q->lengths after what the first `primed` records hold; returns how many bytes in all, or an error. */
static inline __attribute__((always_inline)) long NAME(decode_loop)(const Model *m, Scratch *s, const Sequence *q, Decoder *rc, uint8_t *out, size_t cap, const int pack, const int dense) {
    Bit b;
    record_begin(m, s, q->types[0], out);
    if (dense) dense_begin_record(s, q->types[0]);
    size_t r = 0;
    for (; r < q->primed; r++) {
        if (r) NAME(next)(s, q->types[r], dense);
        NAME(follow)(m, s, out + s->pos, q->lengths[r], NULL, NULL, pack, dense);
    }
    if (r) NAME(next)(s, q->types[r], dense);
    size_t n = s->pos, begin = n;
    long result;
    NAME(look_ahead)(m, s);
    for (;;) {
        uint32_t c0 = 1;
        NAME(begin_byte)(m, s, pack);
        if (dense) NAME(dense_begin_byte)(m, s, pack);
        for (int k = 7; k >= 0; k--) {
            uint32_t p = NAME(probability)(m, s, &b, c0, k, pack, dense);
            if (!k) NAME(guess_byte)(m, s, (c0 * 2 + (p >> 15)) & 255);
            int bit = decode_bit(rc, p);
            NAME(update)(m, s, &b, c0, bit, pack);
            if (dense) dense_miss(s, &b, bit);
            c0 = c0 * 2 + (uint32_t)bit;
        }
        if (dense) dense_end_byte(s);
        uint32_t c = c0 & 255;
        if (!c) {
            int literal = decode_bit(rc, s->p_zero);
            zero_update(s, literal);
            if (!literal) {
                q->lengths[r++] = n - begin;
                if (r == q->count) { result = (long)n; break; }
                if (rc->spent > SPENT_MAX) { result = NBMF_STREAM; break; }
                begin = n;
                NAME(next)(s, q->types[r], dense);
                NAME(look_ahead)(m, s);
                continue;
            }
        }
        if (rc->spent > SPENT_MAX) { result = NBMF_STREAM; break; }
        if (n == cap) { result = NBMF_LIMIT; break; }
        out[n++] = (uint8_t)c;
        NAME(end_byte)(m, s, c);
    }
    record_end(s);
    return result;
}

static long NAME(run_decode)(const Model *m, Scratch *s, const Sequence *q, Decoder *rc, uint8_t *out, size_t cap) {
    if (q->dense) return m->has_pack ? NAME(decode_loop)(m, s, q, rc, out, cap, 1, 1) : NAME(decode_loop)(m, s, q, rc, out, cap, 0, 1);
    return m->has_pack ? NAME(decode_loop)(m, s, q, rc, out, cap, 1, 0) : NAME(decode_loop)(m, s, q, rc, out, cap, 0, 0);
}
