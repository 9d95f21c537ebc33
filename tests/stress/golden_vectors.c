/* Encodes and decodes rows of floats as scripts/vector_streams.py wrote them down; streams and floats must be those bytes on every
   architecture and SIMD level.

   golden_vectors STREAMS [LEVEL]
   Ends with 0 all equal, 1 a difference, 2 an error, 3 no such LEVEL on this machine. */
#include "kernel.h"
#include "kernel_vector.h"
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define TRANSFORMS 8

typedef struct { uint8_t *data; size_t n; } Bytes;

static void stop(const char *why) { fprintf(stderr, "%s\n", why); exit(2); }

static int digit(char c) { return c >= '0' && c <= '9' ? c - '0' : c >= 'a' && c <= 'f' ? c - 'a' + 10 : -1; }

static uint8_t byte_at(const char *text) {
    int a = digit(text[0]), b = a < 0 ? -1 : digit(text[1]);
    if (b < 0) stop("bad hex");
    return (uint8_t)(a << 4 | b);
}

static int is_big(void) { const uint16_t one = 1; return *(const uint8_t *)&one == 0; }

/* Appends numbers of `width` little-endian bytes in the machine's own order; up to a multiple of `pad` bytes. */
static void append(Bytes *to, const char *text, int width, size_t pad) {
    const size_t n = strlen(text) / 2;
    to->data = realloc(to->data, to->n + n + pad + 1);
    if (!to->data) stop("out of memory");
    for (size_t i = 0; i < n; i++) {
        const size_t at = is_big() ? i - i % (size_t)width + (size_t)width - 1 - i % (size_t)width : i;
        to->data[to->n + at] = byte_at(text + 2 * i);
    }
    to->n += n;
    while (to->n % pad) to->data[to->n++] = 0;
}

/* The next field, or the fields to the line's end, as `width:hex`. */
static Bytes numbers(int all, size_t pad) {
    Bytes out = { NULL, 0 };
    for (const char *field; (field = strtok(NULL, " \r\n"));) {
        if (!strcmp(field, "-")) break;
        if (field[1] != ':') stop("a field without a width");
        append(&out, field + 2, field[0] - '0', pad);
        if (!all) break;
    }
    return out;
}

static long whole(void) { const char *field = strtok(NULL, " \r\n"); if (!field) stop("a field is missing"); return strcmp(field, "-") ? atol(field) : -1; }

static double number(void) {
    const char *field = strtok(NULL, " \r\n");
    Bytes bytes = { NULL, 0 };
    double value;
    if (!field || strlen(field) != 16) stop("not a double");
    append(&bytes, field, 8, 1);
    memcpy(&value, bytes.data, 8);
    free(bytes.data);
    return value;
}

int main(int argc, char **argv) {
    if (argc < 2) { fputs("golden_vectors STREAMS [LEVEL]\n", stderr); return 2; }
    if (argc > 2 && nbmf_set_simd(argv[2]) < 0) return 3;
    FILE *f = fopen(argv[1], "r");
    if (!f) stop("the streams cannot be read");
    VectorTables tables;
    VectorTransform transforms[TRANSFORMS];
    Bytes kept[TRANSFORMS];
    int n_whole = 0, n_known = 0, n_cases = 0, bad = 0, has_tables = 0;
    char *line = NULL;
    size_t room = 0;
    while (getline(&line, &room, f) > 0) {
        const char *what = strtok(line, " \r\n");
        if (!what) continue;
        if (!strcmp(what, "tables")) {
            Bytes t = numbers(1, 64);
            has_tables = nbmf_vector_tables(&tables, t.data, t.n) == 0;
        } else if (!strcmp(what, "whole")) {
            if (n_whole == TRANSFORMS) stop("too many transforms");
            kept[n_whole++] = numbers(1, 1);
        } else if (!strcmp(what, "dual")) {
            Bytes dual = numbers(1, 1);
            if (n_known >= n_whole || nbmf_vector_transform(&transforms[n_known], kept[n_known].data, kept[n_known].n, dual.data, dual.n) < 0) stop("no transform");
            n_known++;
        } else if (!strcmp(what, "case")) {
            if (!has_tables) stop("no tables");
            const long which = whole();
            if (which >= n_known) stop("no such transform");
            const VectorTransform *t = which < 0 ? NULL : &transforms[which];
            VectorShape shape = { 0 };
            shape.mode = (int)whole(); shape.half = (int)whole();
            shape.n = (size_t)whole(); shape.d = (size_t)whole();
            VectorBounds bounds;
            bounds.cosine = number(); bounds.margin = number(); bounds.most = number();
            const Bytes sides = numbers(0, 1), rows = numbers(0, 1);
            const char *hex = strtok(NULL, " \r\n");
            Bytes stream = { NULL, 0 };
            if (!hex) stop("no stream");
            append(&stream, hex, 1, 1);
            const Bytes wanted = numbers(0, 1);
            if (rows.n != shape.n * shape.d * (shape.half ? 2 : 4) || wanted.n != rows.n) stop("rows of a wrong size");
            uint8_t *made = malloc(rows.n + 1), *back = malloc(rows.n + 1), *out = NULL;
            if (!made || !back) stop("out of memory");
            size_t as_they_are = 0;
            const long n = nbmf_vector_encode(&tables, t, &shape, &bounds, rows.data, (const int16_t *)(const void *)sides.data, &out, made, &as_they_are, &shape.unit);
            const int encoded = n == (long)stream.n && !memcmp(out, stream.data, stream.n) && !memcmp(made, wanted.data, rows.n);
            const long r = nbmf_vector_decode(&tables, t, &shape, stream.data, stream.n, (const int16_t *)(const void *)sides.data, back, NULL);
            const int decoded = r == NBMF_OK && !memcmp(back, wanted.data, rows.n);
            n_cases++;
            if (!encoded || !decoded) {
                bad++;
                fprintf(stderr, "case %d:%s%s\n", n_cases, encoded ? "" : " encodes differently", decoded ? "" : " decodes differently");
            }
            free(made); free(back); free(out); free(rows.data); free(sides.data); free(stream.data); free(wanted.data);
        }
    }
    fprintf(stderr, "%d arrays, %d different, level %s\n", n_cases, bad, nbmf_simd());
    free(line);
    fclose(f);
    return bad || !n_cases;
}
