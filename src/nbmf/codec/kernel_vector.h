/* Rows of floats to a stream and back. Functions, fields and their order are those of vector_reference.py and docs/spec/vector.md. */
#ifndef NBMF_KERNEL_VECTOR_H
#define NBMF_KERNEL_VECTOR_H
#include <stddef.h>
#include <stdint.h>

enum { VECTOR_FLOATS, VECTOR_DIRECTION, VECTOR_LATTICE };

typedef struct { double cosine, margin, most; } VectorBounds;
typedef struct { int mode, half, unit; size_t n, d; } VectorShape;

/* The tables as vector_tables.py packs them; a transform and its dual as vector_transform.py does. 0, or -1 where the size is wrong. */
#define VECTOR_FAMILIES 2
#define VECTOR_CLASSES 37
#define VECTOR_SYMBOLS 97
#define VECTOR_FLOAT_SYMBOLS 122
#define VECTOR_EDGES 128
typedef struct {
    const uint16_t *cum;          /* [family][q][class][VECTOR_SYMBOLS + 1] */
    const uint8_t *start;         /* [family][q][class][256] */
    const uint16_t *float_cum;    /* [family][8][VECTOR_FLOAT_SYMBOLS + 1] */
    const double *shrink;         /* [class] */
    const int64_t *weight;        /* [class] */
    const double *edge;           /* [VECTOR_EDGES] */
} VectorTables;
typedef struct {
    int32_t dim, m, dim_padded, m_padded, sides, sides_padded;     /* padded: up to a multiple of 32, with zeros */
    const int32_t *mean;          /* [dim_padded] */
    const int32_t *scale, *level, *side_scale, *side_offset;       /* [m_padded] */
    const int8_t *columns;        /* [dim_padded][m_padded] */
    const int8_t *side_rows;      /* [m_padded][sides_padded] */
    const int32_t *offset;        /* [m_padded]; NULL without the dual */
    const int16_t *dual;          /* [m_padded][dim_padded] */
} VectorTransform;

int nbmf_vector_tables(VectorTables *, const uint8_t *data, size_t n);
int nbmf_vector_transform(VectorTransform *, const uint8_t *data, size_t n, const uint8_t *dual, size_t n_dual);

/* Rows [n][d] of float32 or float16 bits in the machine's order; sides: int16[n][sides] or NULL. The stream is *out (to be freed) and
   what it decodes to is in made, of the rows' size. Its length, or NBMF_SPACE; how many rows are written as they are in *as_they_are, and in
   *unit whether all norms are 1 and left out. */
long nbmf_vector_encode(const VectorTables *, const VectorTransform *, const VectorShape *, const VectorBounds *, const void *rows,
                        const int16_t *sides, uint8_t **out, void *made, size_t *as_they_are, int *unit);
/* NBMF_OK, NBMF_STREAM or NBMF_SPACE. With points, these and the first byte of every row of a direction are given in place of rows:
   int32[n][m], or [n][d] without a transform; 0 where a row has none. */
typedef struct { int32_t *points; uint8_t *first; } VectorPoints;
long nbmf_vector_decode(const VectorTables *, const VectorTransform *, const VectorShape *, const uint8_t *stream, size_t n_stream,
                        const int16_t *sides, void *rows, const VectorPoints *points);

typedef struct { size_t n; int half, zeros, family, scale; } VectorFloats;
long nbmf_floats_encode(const VectorTables *, const VectorFloats *, const uint32_t *bits, uint8_t **out);
long nbmf_floats_decode(const VectorTables *, const VectorFloats *, const uint8_t *stream, size_t n_stream, uint32_t *bits);
#endif
