/* Training passes over many records: counting, applying chosen lists, measuring cells, fitting the mixer. Floats live here only. */
#ifndef NBMF_KERNEL_TRAIN_H
#define NBMF_KERNEL_TRAIN_H
#include "kernel.h"

/* Records lie end to end in data; record r is data[offset[r] .. offset[r+1]) of value type type[r].
   A position is a byte of a record or its end; record r's first position is offset[r] + r - (offset[0]), counted over first..last. */
typedef struct { const uint8_t *data; const int64_t *offset; const uint8_t *type; int64_t first, last; } Records;

/* Whether this processor runs the passes below: on x86-64 they are compiled for AVX2 alone. */
int nbmf_train_supported(void);
/* One 64-bit key per first occurrence in its record of (context, symbol): hash's top 44 bits, symbol 8, cost 12 (1/64 bit). Returns how many.
   context: 0..N_STATIC-1 the model's, 100 + i the pack's. */
int64_t nbmf_train_keys(const Records *, int context, const uint16_t *cost, uint64_t *key);
/* Bit counts after one and two bytes: o1[256][256][2], o2[65536][256][2] */
void nbmf_train_orders(const Records *, uint32_t *o1, uint32_t *o2);
/* cost[position] from the model's o1 and o2 alone, 1/256 bit */
void nbmf_train_cost(const Records *, const Model *, uint16_t *cost);
/* Lowers cost[] by mixing in the lists: context j (hash44 sorted ascending) has entries start[j]..start[j+1]) */
int nbmf_train_apply(const Records *, int context, int64_t n, const uint64_t *hash44, const uint32_t *start, const uint8_t *sym, const float *prob,
                     float share, uint16_t *cost);
/* Counts of ones and zeros by cell: lists[N_LISTS][SM_CELLS][2], match[3][MATCH_CELLS][2] (wrong, right), state[256*256][2] */
void nbmf_train_cells(const Records *, const Model *, uint32_t *lists, uint32_t *match, uint32_t *state);
/* One pass of gradient descent over the records: w[TOTAL_ROWS][LANES], f[256][8]; returns the bits that were spent. */
double nbmf_train_fit(const Records *, const Model *, float *w, float *f, float rate, float final_rate);
/* What the dense profile's networks look at: in[position][8][DENSE_INPUTS], rows[position][D_CONTEXTS] of the embedding, bits[position][8]. */
void nbmf_train_inputs(const Records *, const Model *, int16_t *in, uint16_t *rows, uint8_t *bits);
/* cost[position] as the codec would spend it in a profile, 1/256 bit */
void nbmf_train_costs(const Records *, const Model *, int dense, uint16_t *cost);
#endif
