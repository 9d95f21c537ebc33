/* Contexts: what the model knows of the bytes before the next one. Pure function of the record so far. */
#ifndef NBMF_KERNEL_CONTEXT_H
#define NBMF_KERNEL_CONTEXT_H
#include "kernel.h"
#include <string.h>

#define DEPTH_MAX 16
#define PRIME 0x2C1B3C6Du
#define MIX_A 0x9E3779B97F4A7C15ull
#define MIX_B 0xD6E8FEB86659FD93ull

typedef struct {
    uint64_t hist;                /* last eight bytes, newest lowest */
    uint32_t word, word1, word2;  /* hash of the unit so far, of the one before, and before that */
    uint32_t line, shape, field, token;   /* hashes since the line began: bytes, character classes; separators seen; bytes since the last one */
    uint32_t string, value;       /* hashes since the JSON string, the JSON value began */
    uint32_t last_string;
    uint32_t key[DEPTH_MAX], prev_key[DEPTH_MAX];
    uint8_t is_array[DEPTH_MAX];
    uint8_t depth, in_string, escaped, in_value, char_class;
} Context;

/* Bijective on 64 bits, so distinct contexts of one kind collide only in the bits that are kept. */
static inline uint64_t mix64(uint64_t x) {
    x *= MIX_A; x ^= x >> 32; x *= MIX_B; x ^= x >> 29;
    return x;
}
static inline uint64_t hash_pair(uint32_t kind, uint32_t a, uint32_t b) {
    return mix64((((uint64_t)a << 32) | b) ^ (kind * 0xA24BAED4963EE407ull));
}
static inline uint32_t fold(uint32_t h, uint32_t x) { h = (h + x + 1) * PRIME; return h ^ (h >> 15); }

static inline void context_reset(Context *c, int type) {
    memset(c, 0, sizeof *c);
    c->hist = (uint64_t)type;     /* types are small: no byte of text equals them, so the first byte knows its type */
}

static inline int is_letter(uint32_t c) { return (c | 32) - 'a' < 26u || c >= 128; }

static inline void context_update(Context *x, uint32_t c) {
    x->hist = (x->hist << 8) | c;
    int letter = is_letter(c);
    if (x->word && (!letter || (c >= 0xE3 && c <= 0xED))) { x->word2 = x->word1; x->word1 = x->word; x->word = 0; }
    if (letter) x->word = fold(x->word, c < 128 ? (c | 32) : c);
    if (c == '\n') {
        x->line = x->shape = x->field = x->token = 0; x->char_class = 0; x->in_string = 0;
    } else {
        uint8_t class = c - '0' < 10u ? 1 : letter ? 2 : c == ' ' ? 3 : 4;
        x->line = fold(x->line, c);
        if (class != x->char_class || class == 4) x->shape = fold(x->shape, class == 4 ? c : class);
        x->char_class = class;
        if (c == ' ' || c == ',' || c == '\t' || c == '|' || c == ';') { x->field++; x->token = 0; }
        else x->token = fold(x->token, c);
    }
    uint8_t d = x->depth;
    if (x->in_value) x->value = fold(x->value, c);
    if (x->in_string) {
        if (x->escaped) { x->escaped = 0; x->string = fold(x->string, c); }
        else if (c == '\\') x->escaped = 1;
        else if (c == '"') { x->in_string = 0; x->last_string = x->string; }
        else x->string = fold(x->string, c);
        return;
    }
    switch (c) {
    case '"': x->in_string = 1; x->escaped = 0; x->string = 0; break;
    case ':': if (d && !x->is_array[d] && !x->in_value) { x->key[d] = x->last_string; x->in_value = 1; x->value = 0; } break;
    case ',': if (d) { if (!x->is_array[d]) { x->prev_key[d] = x->key[d]; x->in_value = 0; x->string = 0; } x->value = 0; } break;
    case '{': case '[':
        if (d < DEPTH_MAX - 1) d = ++x->depth;
        x->is_array[d] = c == '[';
        x->key[d] = c == '[' ? x->key[d - 1] : 0;
        x->prev_key[d] = 0; x->in_value = c == '['; x->value = 0; x->string = 0;
        break;
    case '}': case ']':
        if (d) { x->depth = --d; x->in_value = 1; x->value = 1; }
        break;
    default: break;
    }
}

/* 0..7: where in a JSON value the next byte lies, or plain text. */
static inline uint32_t context_state(const Context *x) {
    if (!x->depth) return x->in_string ? 1 : 0;
    if (x->in_value) return x->in_string ? 2 : x->is_array[x->depth] ? 3 : 4;
    return x->in_string ? 5 : x->string == 0 ? 6 : 7;
}

/* What order 6 hashes to after these bytes; matches in the primer begin with it. */
static inline uint64_t primer_hash(uint64_t hist) { return hash_pair(4, (uint32_t)(hist >> 32) & 0xFFFF, (uint32_t)hist); }

/* h[N_STATIC]: order 3, 4, 5, 6, 8, word, word pair, word triple, word skip, and three of structure. */
static inline void context_hashes(const Context *x, uint64_t *h) {
    uint64_t t = x->hist;
    uint32_t c1 = (uint32_t)t & 0xFF, edge = x->word ? 0 : c1, d = x->depth;
    h[0] = hash_pair(1, 0, (uint32_t)t & 0xFFFFFF);
    h[1] = hash_pair(2, 0, (uint32_t)t);
    h[2] = hash_pair(3, (uint32_t)(t >> 32) & 0xFF, (uint32_t)t);
    h[3] = primer_hash(t);
    h[4] = hash_pair(5, (uint32_t)(t >> 32), (uint32_t)t);
    uint32_t here = x->word ? x->word : edge, before = x->word1;
    h[5] = hash_pair(6, x->word ? 0 : before, here);
    h[6] = hash_pair(7, x->word ? before : before ^ (x->word2 * 5), here);
    h[7] = hash_pair(8, before * 3 + x->word2 * PRIME, here);
    h[8] = hash_pair(9, x->word2, here);
    if (d) {
        uint32_t key = x->key[d], up = x->key[d - 1];
        if (x->in_value) {
            h[9] = hash_pair(10, key, x->value);
            h[10] = hash_pair(11, key, x->word ? x->word : c1 + 256);
            h[11] = hash_pair(12, key * 3 + up, x->value);
        } else {
            uint32_t s = x->string * 2 + x->in_string;
            h[9] = hash_pair(13, x->prev_key[d], s);
            h[10] = hash_pair(14, up, s);
            h[11] = hash_pair(15, x->prev_key[d] * 3 + up, s);
        }
    } else {
        h[9] = hash_pair(16, 0, x->line);
        h[10] = hash_pair(17, x->field, x->token);
        h[11] = hash_pair(18, c1, x->shape);
    }
}

/* h[N_LOCAL]: order 1, 2, 3, 4, 6, word, word pair, structure. */
static inline void local_hashes(const Context *x, const uint64_t *s, uint64_t *h) {
    uint32_t t = (uint32_t)x->hist;
    h[0] = hash_pair(19, 0, t & 0xFF); h[1] = hash_pair(20, 0, t & 0xFFFF);
    h[2] = s[0]; h[3] = s[1]; h[4] = s[3]; h[5] = s[5]; h[6] = s[6]; h[7] = s[9];
}

/* h[N_PACK]: order 2, 3, 4, 6, word, word pair, structure twice. */
static inline void pack_hashes(const Context *x, const uint64_t *s, uint64_t *h) {
    h[0] = hash_pair(20, 0, (uint32_t)x->hist & 0xFFFF);
    h[1] = s[0]; h[2] = s[1]; h[3] = s[3]; h[4] = s[5]; h[5] = s[6]; h[6] = s[9]; h[7] = s[10];
}
#endif
