#include "kernel_dense.h"
#include "kernel_dense_vnni.h"
#include "kernel_train.h"
#include <math.h>

int nbmf_train_supported(void) {
#ifdef HAVE_X86
    return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && __builtin_cpu_supports("bmi2");
#else
    return 1;
#endif
}

#ifdef HAVE_X86
TARGET_BEGIN("avx2,fma,bmi,bmi2,lzcnt,popcnt")
#define LEVEL 1
#else
#define LEVEL 0
#endif
#define NAME(x) x##_train
#include "kernel_loop.h"

static uint64_t one_hash(const Context *x, int context) {
    uint64_t h[N_STATIC], p[N_PACK];
    context_hashes(x, h);
    if (context < 100) return h[context];
    pack_hashes(x, h, p);
    return p[context - 100];
}

int64_t nbmf_train_keys(const Records *t, int context, const uint16_t *cost, uint64_t *key) {
    enum { SEEN = 1 << 18 };
    uint64_t *seen = malloc(SEEN * sizeof *seen);
    uint32_t *stamp = calloc(SEEN, sizeof *stamp), epoch = 0;
    int64_t out = 0, pos = 0;
    for (int64_t r = t->first; r < t->last; r++) {
        Context x;
        context_reset(&x, t->type[r]);
        epoch++;
        size_t n = (size_t)(t->offset[r + 1] - t->offset[r]);
        const uint8_t *b = t->data + t->offset[r];
        for (size_t i = 0; i <= n; i++, pos++) {
            uint32_t c = i < n ? b[i] : 0;
            uint64_t k = (one_hash(&x, context) & ~0xFFFFFull) | c << 12;
            uint32_t at = (uint32_t)(mix64(k) >> 46);
            int found = 0;
            for (int probe = 0; probe < 64 && stamp[at] == epoch; probe++) {
                if (seen[at] == k) { found = 1; break; }
                at = (at + 1) & (SEEN - 1);
            }
            if (!found) {
                stamp[at] = epoch; seen[at] = k;
                uint32_t v = cost ? (uint32_t)(cost[pos] >> 2) : 0;
                key[out++] = k | (v > 4095 ? 4095 : v);
            }
            if (i < n) context_update(&x, c);
        }
    }
    free(seen); free(stamp);
    return out;
}

void nbmf_train_orders(const Records *t, uint32_t *o1, uint32_t *o2) {
    for (int64_t r = t->first; r < t->last; r++) {
        size_t n = (size_t)(t->offset[r + 1] - t->offset[r]);
        const uint8_t *b = t->data + t->offset[r];
        uint32_t h = t->type[r];
        for (size_t i = 0; i <= n; i++) {
            uint32_t c = i < n ? b[i] : 0, c0 = 1;
            for (int k = 7; k >= 0; k--) {
                uint32_t bit = c >> k & 1;
                o1[((h & 0xFF) << 8 | c0) * 2 + bit]++;
                o2[((size_t)(h & 0xFFFF) << 8 | c0) * 2 + bit]++;
                c0 = c0 * 2 + bit;
            }
            h = h << 8 | c;
        }
    }
}

void nbmf_train_cost(const Records *t, const Model *m, uint16_t *cost) {
    int64_t pos = 0;
    for (int64_t r = t->first; r < t->last; r++) {
        size_t n = (size_t)(t->offset[r + 1] - t->offset[r]);
        const uint8_t *b = t->data + t->offset[r];
        uint32_t h = t->type[r];
        for (size_t i = 0; i <= n; i++, pos++) {
            uint32_t c = i < n ? b[i] : 0, c0 = 1, spent = 0, row = m->o2_row[h & 0xFFFF];
            for (int k = 7; k >= 0; k--) {
                uint32_t bit = c >> k & 1;
                int32_t l = row ? m->o2[(size_t)row * 256 + c0] * 16 : m->o1[(h & 0xFF) << 8 | c0];
                uint32_t p = m->squash[l + 2048];
                spent += bit_cost(bit ? p : 65536 - p);
                c0 = c0 * 2 + bit;
            }
            cost[pos] = (uint16_t)(spent > 16383 ? 16383 : spent);
            h = h << 8 | c;
        }
    }
}

int nbmf_train_apply(const Records *t, int context, int64_t n, const uint64_t *hash44, const uint32_t *start, const uint8_t *sym, const float *prob,
                     float share, uint16_t *cost) {
    int bits = 4;
    while (1ll << bits < 2 * n) bits++;
    uint32_t *table = calloc((size_t)1 << bits, sizeof *table), mask = (uint32_t)(((uint64_t)1 << bits) - 1);
    float *rest = malloc((size_t)(n + 1) * sizeof *rest);
    if (!table || !rest) return NBMF_SPACE;
    for (int64_t j = 0; j < n; j++) {
        uint32_t at = (uint32_t)(hash44[j] >> (44 - bits));
        while (table[at]) at = (at + 1) & mask;
        table[at] = (uint32_t)j + 1;
        float sum = 0;
        for (uint32_t e = start[j]; e < start[j + 1]; e++) sum += prob[e];
        rest[j] = 1 - sum;
    }
    static float power[16384];
    for (int i = 0; i < 16384; i++) power[i] = exp2f(-(float)i / 256);
    int64_t pos = 0;
    for (int64_t r = t->first; r < t->last; r++) {
        Context x;
        context_reset(&x, t->type[r]);
        size_t len = (size_t)(t->offset[r + 1] - t->offset[r]);
        const uint8_t *b = t->data + t->offset[r];
        for (size_t i = 0; i <= len; i++, pos++) {
            uint32_t c = i < len ? b[i] : 0;
            uint64_t h = one_hash(&x, context) >> 20;
            uint32_t at = (uint32_t)(h >> (44 - bits)), j;
            while ((j = table[at]) && hash44[j - 1] != h) at = (at + 1) & mask;
            if (j--) {
                float old = power[cost[pos]], p = rest[j] * old;
                for (uint32_t e = start[j]; e < start[j + 1]; e++) if (sym[e] == c) { p += prob[e]; break; }
                p = (1 - share) * old + share * p;
                float v = -256 * log2f(p);
                cost[pos] = (uint16_t)(v > 16383 ? 16383 : v < 0 ? 0 : v);
            }
            if (i < len) context_update(&x, c);
        }
    }
    free(table); free(rest);
    return NBMF_OK;
}

#define EACH_BIT(...) \
    for (int64_t r = t->first; r < t->last; r++) { \
        size_t n = (size_t)(t->offset[r + 1] - t->offset[r]); \
        const uint8_t *b = t->data + t->offset[r]; \
        Bit found; \
        record_begin(m, s, t->type[r], b); \
        NAME(look_ahead)(m, s); \
        for (size_t i = 0; i <= n; i++) { \
            uint32_t c = i < n ? b[i] : 0, c0 = 1; \
            NAME(begin_byte)(m, s, m->has_pack); \
            for (int k = 7; k >= 0; k--) { \
                uint32_t bit = c >> k & 1; \
                __VA_ARGS__ \
                c0 = c0 * 2 + bit; \
            } \
            NAME(guess_byte)(m, s, c); \
            if (i < n) NAME(end_byte)(m, s, c); \
        } \
        record_end(s); \
    }

void nbmf_train_cells(const Records *t, const Model *m, uint32_t *lists, uint32_t *match, uint32_t *state) {
    Scratch *s = nbmf_scratch_new();
    const int n_lists = m->has_pack ? N_LISTS : N_BASE_LISTS;
    EACH_BIT({
        NAME(predict)(m, s, &found, c0, k, m->has_pack);
        for (int i = 0; i < n_lists; i++) lists[((size_t)i * SM_CELLS + (size_t)(7 - k) * 256 + s->cell[CELL[i]]) * 2 + bit]++;
        if (found.match_cell >= 0) match[found.match_cell * 2 + (bit == (s->match_byte >> k & 1))]++;
        for (int j = 0; j < 2; j++)
            if (found.primer_cell[j] >= 0) match[(MATCH_CELLS * (1 + j) + found.primer_cell[j]) * 2 + (bit == (s->primer[j].byte >> k & 1))]++;
        state[(s->state << 8 | c0) * 2 + bit]++;
        NAME(narrow)(s->sym, s->weight, n_lists, (int)bit);
    })
    nbmf_scratch_free(s);
}

double nbmf_train_fit(const Records *t, const Model *m, float *w, float *f, float rate, float final_rate) {
    Scratch *s = nbmf_scratch_new();
    const int lanes = m->has_pack ? LANES : LANES_BASE, n_lists = m->has_pack ? N_LISTS : N_BASE_LISTS;
    double bits = 0;
    EACH_BIT({
        NAME(predict)(m, s, &found, c0, k, m->has_pack);
        float in[LANES], d[N_SETS], total = 0;
        for (int l = 0; l < lanes; l++) in[l] = (float)s->in[l] * (1.0f / STRETCH_ONE);
        float *fw = f + c0 * 8;
        for (int j = 0; j < N_SETS; j++) {
            const float *v = w + (size_t)found.row[j] * LANES;
            float x = 0;
            for (int l = 0; l < lanes; l++) x += in[l] * v[l];
            d[j] = x > 12 ? 12 : x < -12 ? -12 : x;
            total += fw[j] * d[j];
        }
        total = total > 12 ? 12 : total < -12 ? -12 : total;
        float p = 1 / (1 + expf(-total));
        float q = bit ? p : 1 - p;
        if (q < 1.0f / 65536) q = 1.0f / 65536;
        bits -= log2f(q);
        float e = ((float)bit - p) * final_rate;
        for (int j = 0; j < N_SETS; j++) fw[j] += e * d[j];
        for (int j = 0; j < N_SETS; j++) {
            float g = ((float)bit - 1 / (1 + expf(-d[j]))) * rate;
            float *v = w + (size_t)found.row[j] * LANES;
            for (int l = 0; l < lanes; l++) v[l] += g * in[l];
        }
        NAME(narrow)(s->sym, s->weight, n_lists, (int)bit);
    })
    nbmf_scratch_free(s);
    return bits;
}

void nbmf_train_inputs(const Records *t, const Model *m, int16_t *in, uint16_t *rows, uint8_t *bits) {
    Scratch *s = nbmf_scratch_new();
    for (int64_t r = t->first; r < t->last; r++) {
        size_t n = (size_t)(t->offset[r + 1] - t->offset[r]);
        const uint8_t *b = t->data + t->offset[r];
        Bit found;
        record_begin(m, s, t->type[r], b);
        dense_begin_record(s, t->type[r]);
        NAME(look_ahead)(m, s);
        for (size_t i = 0; i <= n; i++) {
            uint32_t c = i < n ? b[i] : 0, c0 = 1, row[D_CONTEXTS];
            NAME(begin_byte)(m, s, m->has_pack);
            dense_rows(s, m->has_pack, row);
            for (int j = 0; j < D_CONTEXTS; j++) *rows++ = (uint16_t)row[j];
            s->dense.missed = 0;
            for (int k = 7; k >= 0; k--) {
                int bit = c >> k & 1;
                NAME(predict)(m, s, &found, c0, k, m->has_pack);
                NAME(dense_inputs)(s, &found, found.total, in);
                in += DENSE_INPUTS;
                *bits++ = (uint8_t)bit;
                NAME(update)(m, s, &found, c0, bit, m->has_pack);
                dense_miss(s, &found, bit);
                c0 = c0 * 2 + (uint32_t)bit;
            }
            dense_end_byte(s);
            NAME(guess_byte)(m, s, c);
            if (i < n) NAME(end_byte)(m, s, c);
        }
        record_end(s);
    }
    nbmf_scratch_free(s);
}

void nbmf_train_costs(const Records *t, const Model *m, int dense, uint16_t *cost) {
    Scratch *s = nbmf_scratch_new();
    for (int64_t r = t->first; r < t->last; r++) {
        size_t n = (size_t)(t->offset[r + 1] - t->offset[r]);
        const Sequence one = { 1, 0, t->type + r, &n, dense };
        NAME(run_encode)(m, s, &one, t->data + t->offset[r], NULL, cost);
        cost += n + 1;
    }
    nbmf_scratch_free(s);
}
#ifdef HAVE_X86
TARGET_END
#endif
