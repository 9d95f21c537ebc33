/* The dense profile's network (docs/spec/model.md): its contexts, and what it keeps while a record is coded. */
#ifndef NBMF_KERNEL_DENSE_H
#define NBMF_KERNEL_DENSE_H
#include "kernel_state.h"

#define DENSE_ONE 1024            /* of a weight of the bit network */

/* Where the rows of each context begin in the embedding table. */
#define D_CONTEXTS 15
enum {
    D_ORDER1 = 0, D_ORDER2 = D_ORDER1 + 256, D_ORDER3 = D_ORDER2 + 4096, D_WORD = D_ORDER3 + 8192, D_WORD1 = D_WORD + 8192, D_WORD2 = D_WORD1 + 8192,
    D_KEY = D_WORD2 + 4096, D_UP = D_KEY + 2048, D_SET = D_UP + 1024, D_POS = D_SET + 128, D_MATCH = D_POS + 64, D_BYTE = D_MATCH + 32,
    D_TYPE = D_BYTE + 257, D_MISS = D_TYPE + 64, D_PACK = D_MISS + 32, D_ROWS = D_PACK + 17
};

static inline uint32_t dense_hash(uint32_t kind, uint32_t a, uint32_t b, int bits) { return (uint32_t)(hash_pair(kind, a, b) >> (64 - bits)); }

/* 0..63 on a logarithmic scale, four steps an octave. */
static inline uint32_t dense_log(uint32_t n) {
    if (n < 4) return n;
    uint32_t lg = 31 - (uint32_t)__builtin_clz(n);
    return MIN(lg * 4 + (n >> (lg - 2) & 3) - 4, 63);
}

/* The embedding row of each context of the next byte. */
static inline void dense_rows(const Scratch *s, const int pack, uint32_t *r) {
    const Context *x = &s->context;
    const uint32_t t = (uint32_t)x->hist, d = x->depth, tree = d != 0;
    r[0] = D_ORDER1 + (t & 0xFF);
    r[1] = D_ORDER2 + dense_hash(40, 0, t & 0xFFFF, 12);
    r[2] = D_ORDER3 + dense_hash(41, 0, t & 0xFFFFFF, 13);
    r[3] = D_WORD + dense_hash(42, x->word, x->word ? 0 : (t & 0xFF) + 1, 13);
    r[4] = D_WORD1 + dense_hash(43, x->word1, 0, 13);
    r[5] = D_WORD2 + dense_hash(44, x->word2, 0, 12);
    r[6] = D_KEY + dense_hash(45, tree ? x->key[d] : x->shape, tree, 11);
    r[7] = D_UP + dense_hash(46, tree ? x->key[d - 1] : x->field, tree, 10);
    r[8] = D_SET + (s->set3 >> 3);
    r[9] = D_POS + dense_log((uint32_t)s->pos);
    r[10] = D_MATCH + MIN(s->match_len, 31);
    r[11] = D_BYTE + (s->match_len ? s->match_byte + 1 : 0);
    r[12] = D_TYPE + s->dense.type * 16 + MIN(d, 7) * 2 + x->in_string;
    r[13] = D_MISS + MIN(s->dense.miss >> 12, 31);
    r[14] = D_PACK + (pack ? 1 + (s->set3 >> 6 & 3) * 4 + length_class(s->primer[1].len) : 0);
}

static inline void dense_begin_record(Scratch *s, int type) {
    memset(s->dense.state, 0, sizeof s->dense.state);
    s->dense.type = (uint32_t)type;
    s->dense.miss = 1u << 15;
}

/* After each bit and each byte: how wrong the mixer is of late. */
static inline void dense_miss(Scratch *s, const Bit *b, int bit) { s->dense.missed += bit ? 65535 - b->p : b->p; }
static inline void dense_end_byte(Scratch *s) {
    s->dense.miss += (uint32_t)((int32_t)(s->dense.missed - s->dense.miss) >> 4);
}
#endif
