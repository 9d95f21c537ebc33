/* NBMF kernel: the integer model, its mixer and the range coder. No Python here.
   Field names and functions are those of docs/spec/model.md and reference.py. */
#ifndef NBMF_KERNEL_H
#define NBMF_KERNEL_H
#include <stddef.h>
#include <stdint.h>

/* Lists: sparse distributions over the next byte, one per context. */
#define N_STATIC 12               /* contexts looked up in the model's line table */
#define N_LOCAL 8                 /* contexts learned inside the record */
#define N_PACK 8                  /* contexts looked up in the domain pack's line table */
#define N_LISTS (N_STATIC + N_LOCAL + N_PACK)
#define N_BASE_LISTS (N_STATIC + N_LOCAL)
#define LIST_LEN 8                /* entries of one list: (symbol, weight 0..255) */

/* Mixer inputs (lanes), signed logits in 1/STRETCH_ONE nat, |x| <= 2047. */
#define STRETCH_ONE 170
#define LANE_LOCAL N_STATIC
#define LANE_O1 20
#define LANE_O2 21
#define LANE_MATCH 22             /* two lanes: expected bit, and the same when the match is long */
#define LANE_PRIMER 24
#define LANE_STATE 26             /* order-0 by record structure */
#define LANE_BIAS 31
#define LANE_PACK 32
#define LANE_PACK_PRIMER 40
#define LANE_DENSE 44
#define LANES_BASE 32
#define LANES 48

/* Mixer weight sets. */
#define N_SETS 5
#define SET_ROWS { 288, 256, 256, 1024, 768 }
#define TOTAL_ROWS (288 + 256 + 256 + 1024 + 768)
#define WEIGHT_ONE 16384

#define LINE_BYTES 64
#define LINE_ENTRIES 21
#define N_BUCKETS 16
#define SM_CELLS (8 * N_BUCKETS * N_BUCKETS)   /* bit position, mass on 1, mass on 0 */
/* In memory, apart from the file: the same cell of all lists is looked up at once, so these lie in different sets of the first-level cache. */
#define CELLS_LIST (N_BUCKETS * N_BUCKETS + 32)
#define CELLS_POSITION (N_LISTS * CELLS_LIST)
#define MATCH_CELLS 256           /* [min(length,31)][bit position] */
#define PRIMER_MIN 6
#define LOCAL_SLOTS 4096          /* per local context */
#define MATCH_SLOTS 8192
#define SEGMENT_MAX (1u << 18)

typedef struct {
    /* line table: n_lines * LINE_BYTES bytes */
    const uint8_t *lines; uint32_t n_lines;
    const uint8_t *primer; uint32_t primer_len;
    uint32_t *primer_index; uint32_t primer_bits;   /* 1 << bits entries: position after the hashed bytes, 0 none; made at load */
    const int16_t *primer_sm;     /* [MATCH_CELLS] */
} Tables;

/* The dense profile's network. */
#define DENSE_LAYERS 2
#define DENSE_WIDTH_MAX 512
#define DENSE_INPUTS 72           /* of the bit network: 32 logits, then the masses on one and on zero of 20 lists */
#define DENSE_ONES 64             /* its units in the first layer, and in the second */
#define DENSE_TWOS 32
#define DENSE_PLACES 80           /* the inputs as they lie in vectors: 32 logits, then twelve and twelve masses on one, and so on zero */
/* weights as [block of 32 outputs][four inputs][output][4]; less[o] is -128 times the sum of output o's, for inputs that are raised by 128 */
typedef struct { const int8_t *weights; const int32_t *less; const int16_t *scale, *bias; uint32_t n_in, n_out; } Affine;
typedef struct {
    uint32_t width;               /* of embeddings and state: a multiple of 32; 0 where the model has no dense profile */
    const int8_t *rows;           /* [D_ROWS][width] */
    Affine layer[DENSE_LAYERS];   /* width -> gates, then new values */
    Affine middle, context;       /* width -> middle -> DENSE_ONES */
    const int8_t *byte; const int16_t *byte_scale;   /* [256][middle], [256]: a logit by node */
    const int16_t *node;          /* [256][DENSE_ONES] */
    const int16_t *first, *second, *placed;          /* as [input pair][output][2]; placed: first, of DENSE_PLACES inputs */
    const int16_t *second_bias, *third;              /* [DENSE_TWOS], [DENSE_TWOS + 1]: the last is the bias */
    const int16_t *skip;          /* [256][32] by node */
} Dense;

typedef struct {
    Tables base, pack; int has_pack;
    Dense dense;
    const int16_t *cells;         /* logits: of bit position k, list i and cell c at k * CELLS_POSITION + i * CELLS_LIST + c; made at load */
    const int16_t *o1;            /* [256][256] logits by previous byte, node */
    const uint16_t *o2_row;       /* [65536] row of the pair, 0 none */
    const int8_t *o2;             /* [rows][256] logits / 16 */
    const int16_t *state_sm;      /* [256][256] logits by (structure state, node) */
    const int16_t *match_sm;      /* [MATCH_CELLS] */
    const int16_t *weights;       /* [TOTAL_ROWS][LANES] */
    const int16_t *final_weights; /* [256][8] */
    const uint16_t *squash;       /* [4096] P(1) * 65536 at logit i - 2048 */
    const int32_t *rates;         /* [8] learning rates of the sets; the last is the final stage's */
    void *owned[64]; int n_owned; /* byte-swapped or aligned copies, and the primer indexes */
} Model;

typedef struct Scratch Scratch;   /* one per thread; holds what a record changes */

#define FILE_HEADER 64
#define FILE_ENTRY 32             /* of the section table: name[16], offset u64, length u64 */
#define FILE_SECTIONS 64
#define PRIMER_BITS_MAX 20

/* Reads a model file and, when pack is not NULL, a pack file made for it; both must outlive the Model. 0, or -1 with a sentence in error[128]. */
int nbmf_model_open(Model *, const uint8_t *model, size_t n_model, const uint8_t *pack, size_t n_pack, char *error);
void nbmf_model_close(Model *);

Scratch *nbmf_scratch_new(void);
void nbmf_scratch_free(Scratch *);

#define NBMF_OK 0
#define NBMF_STREAM (-1)          /* the stream does not decode */
#define NBMF_LIMIT (-2)           /* decoded size over the cap */
#define NBMF_SPACE (-3)           /* out of memory */

/* Encodes raw[0..n) of value type `type`, in the dense profile (which the model must have) or the fast one; returns the bytes written to out (capacity cap), or NBMF_SPACE. */
long nbmf_encode(const Model *, Scratch *, int type, int dense, const uint8_t *raw, size_t n, uint8_t *out, size_t cap);
/* Decodes one stream into out (capacity cap); returns its length or an error. Never reads past in + n. */
long nbmf_decode(const Model *, Scratch *, int type, int dense, const uint8_t *in, size_t n, uint8_t *out, size_t cap);

/* Records coded one after the other in one stream, each knowing those before it. A record alone is a sequence of one. The first
   `primed` of them are known to encoder and decoder: they are learned from, not coded. primed < count.
   dense: in which profile. */
typedef struct { size_t count, primed; const uint8_t *types; size_t *lengths; int dense; } Sequence;
/* Encodes the records, which lie end to end in raw, at most SEGMENT_MAX bytes of them; returns as nbmf_encode. */
long nbmf_encode_sequence(const Model *, Scratch *, const Sequence *, const uint8_t *raw, uint8_t *out, size_t cap);
/* Decodes the other records into out, which begins with the primed ones, end to end, and sets their lengths; returns the bytes in all,
   primed ones included, or an error. */
long nbmf_decode_sequence(const Model *, Scratch *, const Sequence *, const uint8_t *in, size_t n, uint8_t *out, size_t cap);

/* cost[i]: what byte i costs in 1/256 bit (saturating); cost[n]: the end. */
void nbmf_costs(const Model *, Scratch *, int type, int dense, const uint8_t *raw, size_t n, uint16_t *cost);
const char *nbmf_simd(void);
int nbmf_set_simd(const char *name);
#endif
