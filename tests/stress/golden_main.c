/* Decodes golden streams and encodes them again; both must give the stored bytes, on every architecture and SIMD level.

   golden_main MODEL PACK|- STREAMS [LEVEL]
   STREAMS: text lines `type hexraw hexpayload pack`, where pack is 0 or 1, or 2 or 3 in the dense profile, and `-` stands for no bytes; lines that begin
   with # and empty lines are passed over. A payload of `?` is not compared: the line is printed with the payload that
   this machine makes. Ends with 0 all equal, 1 a difference, 2 an error, 3 no such LEVEL on this machine. */
#include "kernel.h"
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static void stop(const char *what, const char *why) { fprintf(stderr, "%s: %s\n", what, why); exit(2); }

static uint8_t *read_file(const char *path, size_t *n) {
    FILE *f = fopen(path, "rb");
    if (!f || fseek(f, 0, SEEK_END)) stop(path, "cannot be read");
    *n = (size_t)ftell(f);
    rewind(f);
    uint8_t *p = malloc(*n + 1);
    if (!p || fread(p, 1, *n, f) != *n) stop(path, "cannot be read");
    fclose(f);
    return p;
}

static int digit(char c) { return c >= '0' && c <= '9' ? c - '0' : c >= 'a' && c <= 'f' ? c - 'a' + 10 : c >= 'A' && c <= 'F' ? c - 'A' + 10 : -1; }

static uint8_t *unhex(const char *text, size_t *n, const char *where) {
    size_t length = strcmp(text, "-") ? strlen(text) : 0;
    uint8_t *p = malloc(length / 2 + 1);
    if (!p || length % 2) stop(where, "bad hex");
    for (size_t i = 0; i < length; i += 2) {
        int a = digit(text[i]), b = digit(text[i + 1]);
        if (a < 0 || b < 0) stop(where, "bad hex");
        p[i / 2] = (uint8_t)(a << 4 | b);
    }
    *n = length / 2;
    return p;
}

int main(int argc, char **argv) {
    if (argc < 4) { fputs("golden_main MODEL PACK|- STREAMS [LEVEL]\n", stderr); return 2; }
    if (argc > 4 && nbmf_set_simd(argv[4]) < 0) return 3;
    char error[128], where[32];
    size_t n_model, n_pack = 0;
    const uint8_t *model = read_file(argv[1], &n_model), *pack = strcmp(argv[2], "-") ? read_file(argv[2], &n_pack) : NULL;
    Model models[2];
    if (nbmf_model_open(&models[0], model, n_model, NULL, 0, error) < 0) stop(argv[1], error);
    if (pack && nbmf_model_open(&models[1], model, n_model, pack, n_pack, error) < 0) stop(argv[2], error);
    Scratch *s = nbmf_scratch_new();
    if (!s) stop("scratch", "out of memory");
    FILE *f = fopen(argv[3], "r");
    if (!f) stop(argv[3], "cannot be read");
    char *line = NULL;
    size_t room = 0;
    long at = 0, streams = 0, bad = 0;
    while (getline(&line, &room, f) > 0) {
        snprintf(where, sizeof where, "line %ld", ++at);
        char *type_text = strtok(line, " \r\n");
        if (!type_text || *type_text == '#') continue;
        char *raw_text = strtok(NULL, " \r\n"), *payload_text = strtok(NULL, " \r\n"), *pack_text = strtok(NULL, " \r\n");
        if (!pack_text || strtok(NULL, " \r\n")) stop(where, "not four fields");
        int type = atoi(type_text), coder = atoi(pack_text), with_pack = coder & 1, dense = coder >> 1, make = !strcmp(payload_text, "?");
        if (type < 0 || type > 3 || coder < 0 || coder > 3) stop(where, "bad type or pack");
        if (dense && !models[0].dense.width) stop(where, "needs a model with the dense profile");
        if (with_pack && !pack) stop(where, "needs a pack");
        size_t n, n_payload = 0;
        uint8_t *raw = unhex(raw_text, &n, where), *payload = make ? NULL : unhex(payload_text, &n_payload, where);
        size_t cap = 20 * n + 64;
        uint8_t *out = malloc(cap), *back = malloc(n + 1);
        if (!out || !back) stop(where, "out of memory");
        const Model *m = &models[with_pack];
        long r = nbmf_encode(m, s, type, dense, raw, n, out, cap);
        if (r < 0) stop(where, "does not encode");
        if (make) {
            printf("%d %s ", type, raw_text);
            for (long i = 0; i < r; i++) printf("%02x", out[i]);
            printf("%s %d\n", r ? "" : "-", coder);
            payload = out; n_payload = (size_t)r;
        }
        int encoded = (size_t)r == n_payload && (!n_payload || !memcmp(out, payload, n_payload));
        long d = nbmf_decode(m, s, type, dense, payload, n_payload, back, n + 1);
        int decoded = d == (long)n && !memcmp(back, raw, n);
        if (!encoded || !decoded) {
            bad++;
            fprintf(stderr, "%s:%s%s\n", where, encoded ? "" : " encodes differently", decoded ? "" : " decodes differently");
        }
        streams++;
        if (payload != out) free(payload);
        free(raw); free(out); free(back);
    }
    fprintf(stderr, "%ld streams, %ld different, level %s\n", streams, bad, nbmf_simd());
    free(line);
    fclose(f);
    nbmf_scratch_free(s);
    for (int i = 0; i < (pack ? 2 : 1); i++) nbmf_model_close(&models[i]);
    return bad || !streams;
}
