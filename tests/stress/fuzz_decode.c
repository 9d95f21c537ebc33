/* libFuzzer target: hostile streams into nbmf_decode, and round trips of hostile records.

   Input: byte 0 is flags, byte 1 the output cap (or the options of a round trip), the rest is the stream or the record.
     flags: bits 0-1 value type, bit 2 round trip, bit 4 use the pack, bit 5 also encode what was decoded;
            bits 3 and 6 both set: compare the SIMD levels, of short outputs; bits 5 and 6 set: compare with a scratch that has coded nothing;
            bit 3 without bit 6: a sequence of 2 to 5 records, the first of which may be primed;
            bit 7: in the dense profile, where the model has it.
   Caps are small and the dear comparisons few, because executions count for more than the bytes of one.
   NBMF_FUZZ_MODEL names the model file, NBMF_FUZZ_PACK (optional) a pack made for it.
   NBMF_FUZZ_SEEDS: write seeds there, from the lines of standard input, and stop. */
#include "kernel.h"
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define CHECK(x) do { if (!(x)) { fprintf(stderr, "%s:%d: %s does not hold\n", __FILE__, __LINE__, #x); abort(); } } while (0)

static Model models[2];
static int n_models;
static Scratch *scratch;           /* shared by all inputs and both models: no record may leave anything in it */
static const char *const LEVELS[] = { "plain", "avx2", "avx2-vnni", "avx512" };

static uint8_t *read_file(const char *path, size_t *n) {
    FILE *f = fopen(path, "rb");
    if (!f || fseek(f, 0, SEEK_END)) { perror(path); exit(2); }
    *n = (size_t)ftell(f);
    rewind(f);
    uint8_t *p = malloc(*n);       /* exactly the file, so that a read past its end is seen */
    if (!p || fread(p, 1, *n, f) != *n) { perror(path); exit(2); }
    fclose(f);
    return p;
}

static void write_seed(const char *folder, int at, const char *kind, const uint8_t head[2], const uint8_t *data, size_t n) {
    char path[4096];
    snprintf(path, sizeof path, "%s/%s-%04d", folder, kind, at);
    FILE *f = fopen(path, "wb");
    if (!f || fwrite(head, 1, 2, f) != 2 || fwrite(data, 1, n, f) != n || fclose(f)) { perror(path); exit(2); }
}

static void write_seeds(const char *folder) {
    static char line[1 << 16];
    for (int at = 0; fgets(line, sizeof line, stdin); at++) {
        size_t n = strcspn(line, "\n");
        int type = at & 3, pack = n_models > 1 && at & 4, net = at & 16 && models[0].dense.width;
        uint8_t *out = malloc(20 * n + 64);
        CHECK(out);
        long r = nbmf_encode(&models[pack ? 1 : 0], scratch, type, net, (uint8_t *)line, n, out, 20 * n + 64);
        CHECK(r >= 0);
        uint8_t decode[2] = { (uint8_t)(type | (pack ? 16 : 0) | (at & 8 ? 0x48 : 0) | (net ? 128 : 0)), 255 }, trip[2] = { (uint8_t)(decode[0] | 4), (uint8_t)at };
        write_seed(folder, at, "stream", decode, out, (size_t)r);
        write_seed(folder, at, "record", trip, (uint8_t *)line, n);
        free(out);
    }
}

int LLVMFuzzerInitialize(int *argc, char ***argv) {
    (void)argc; (void)argv;
    const char *path = getenv("NBMF_FUZZ_MODEL"), *pack = getenv("NBMF_FUZZ_PACK"), *seeds = getenv("NBMF_FUZZ_SEEDS");
    char error[128];
    size_t n, n_pack = 0;
    if (!path) { fputs("NBMF_FUZZ_MODEL is not set\n", stderr); exit(2); }
    uint8_t *file = read_file(path, &n), *pack_file = pack && *pack ? read_file(pack, &n_pack) : NULL;
    if (nbmf_model_open(&models[n_models++], file, n, NULL, 0, error) < 0) { fprintf(stderr, "%s\n", error); exit(2); }
    if (pack_file && nbmf_model_open(&models[n_models++], file, n, pack_file, n_pack, error) < 0) { fprintf(stderr, "%s\n", error); exit(2); }
    scratch = nbmf_scratch_new();
    CHECK(scratch);
    if (seeds) { write_seeds(seeds); exit(0); }
    return 0;
}

static int dense(const Model *m, int flags) { return flags >> 7 & (m->dense.width > 0); }

static uint8_t *exact(size_t n) {
    uint8_t *p = malloc(n);        /* no slack: a byte past the cap is a finding */
    CHECK(p || !n);
    return p;
}

/* One decode per SIMD level when asked; all of them agree, also in what they leave in out. */
static long decode(const Model *m, int flags, const uint8_t *in, size_t n, uint8_t *out, size_t cap) {
    long r = nbmf_decode(m, scratch, flags & 3, dense(m, flags), in, n, out, cap);
    CHECK(r == NBMF_STREAM || r == NBMF_LIMIT || (r >= 0 && (size_t)r <= cap));
    if ((flags & 0x48) == 0x48 && cap <= 16 && n % 8 == 5) {   /* seldom: the plain level is slow under the sanitizers */
        const char *before = nbmf_simd();
        for (size_t i = 0; i < sizeof LEVELS / sizeof *LEVELS; i++) {
            if (nbmf_set_simd(LEVELS[i]) < 0) continue;
            uint8_t *other = exact(cap);
            CHECK(nbmf_decode(m, scratch, flags & 3, dense(m, flags), in, n, other, cap) == r);
            CHECK(r < 0 || !memcmp(out, other, (size_t)r));
            free(other);
        }
        CHECK(!nbmf_set_simd(before));
    }
    if ((flags & 0x60) == 0x60) {
        Scratch *clean = nbmf_scratch_new();
        uint8_t *other = exact(cap);
        CHECK(clean && nbmf_decode(m, clean, flags & 3, dense(m, flags), in, n, other, cap) == r);
        CHECK(r < 0 || !memcmp(out, other, (size_t)r));
        free(other);
        nbmf_scratch_free(clean);
    }
    return r;
}

/* decode(encode(x)) == x, and the caps and the costs are what kernel.h says. */
static void round_trip(const Model *m, int flags, int options, const uint8_t *raw, size_t n) {
    size_t cap = 20 * n + 64;      /* a byte costs at most 8 * 16 + 10 bits */
    uint8_t *stream = exact(cap);
    long r = nbmf_encode(m, scratch, flags & 3, dense(m, flags), raw, n, stream, cap);
    CHECK(r >= 0);
    uint8_t *packed = exact((size_t)r);
    if (r) memcpy(packed, stream, (size_t)r);
    uint8_t *back = exact(n);
    CHECK(decode(m, flags, packed, (size_t)r, back, n) == (long)n && (!n || !memcmp(back, raw, n)));
    free(back);
    if (options % 8 == 1 && n) {        /* one byte of room short: refused, not overrun */
        back = exact(n - 1);
        CHECK(decode(m, flags, packed, (size_t)r, back, n - 1) == NBMF_LIMIT);
        free(back);
    }
    if (options % 16 == 2) {             /* the encoder's own cap, and each SIMD level's bytes */
        const char *before = nbmf_simd();
        for (size_t i = 0; i < sizeof LEVELS / sizeof *LEVELS; i++) {
            if (nbmf_set_simd(LEVELS[i]) < 0) continue;
            uint8_t *again = exact((size_t)r), *less = exact(r ? (size_t)r - 1 : 0);
            CHECK(nbmf_encode(m, scratch, flags & 3, dense(m, flags), raw, n, again, (size_t)r) == r && (!r || !memcmp(again, packed, (size_t)r)));
            if (r) CHECK(nbmf_encode(m, scratch, flags & 3, dense(m, flags), raw, n, less, (size_t)r - 1) == NBMF_SPACE);
            free(again); free(less);
        }
        CHECK(!nbmf_set_simd(before));
    }
    if (options % 8 == 3) {             /* the range coder loses at most 1.5/256 bit a bit to truncation; a cost is rounded by half of 1/256 */
        uint16_t *cost = malloc((n + 1) * sizeof *cost);
        uint64_t total = 0;
        CHECK(cost);
        nbmf_costs(m, scratch, flags & 3, dense(m, flags), raw, n, cost);
        for (size_t i = 0; i <= n; i++) total += cost[i];
        CHECK((uint64_t)r * 2048 <= total + (n + 1) * 9 * 2 + 5 * 2048);
        free(cost);
    }
    free(packed); free(stream);
}

/* A hostile sequence after a known record or none, and what it decoded to, there and back. */
static void sequence(const Model *m, int flags, int options, const uint8_t *in, size_t n) {
    static const uint8_t known[] = "{\"known\": 1}";
    uint8_t types[5] = { (uint8_t)(flags & 3), (uint8_t)(options & 3), 0, (uint8_t)(options >> 2 & 3), 1 };
    size_t lengths[5], primed = options & 16 ? 1 : 0, prefix = primed ? sizeof known - 1 : 0, cap = prefix + (size_t)options % 40;
    Sequence q = { 2 + (size_t)options % 4, primed, types, lengths, dense(m, flags) };
    uint8_t *out = exact(cap);
    if (primed) { memcpy(out, known, prefix); lengths[0] = prefix; }
    long r = nbmf_decode_sequence(m, scratch, &q, in, n, out, cap);
    CHECK(r == NBMF_STREAM || r == NBMF_LIMIT || (r >= (long)prefix && (size_t)r <= cap));
    if (r >= 0) {
        size_t total = 0, again = 20 * (size_t)r + 20 * q.count + 64;
        for (size_t i = 0; i < q.count; i++) total += lengths[i];
        CHECK(total == (size_t)r);
        uint8_t *stream = exact(again), *back = exact((size_t)r);
        long packed = nbmf_encode_sequence(m, scratch, &q, out, stream, again);
        CHECK(packed >= 0);
        memcpy(back, out, prefix);
        size_t found[5] = { lengths[0] };
        Sequence other = { q.count, primed, types, found, q.dense };
        CHECK(nbmf_decode_sequence(m, scratch, &other, stream, (size_t)packed, back, (size_t)r) == r && !memcmp(back, out, (size_t)r));
        CHECK(!memcmp(found, lengths, q.count * sizeof *found));
        free(stream); free(back);
    }
    free(out);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) {
    if (size < 2) return 0;
    int flags = data[0];
    const Model *m = &models[flags & 16 && n_models > 1 ? 1 : 0];
    size_t n = size - 2;
    uint8_t *in = exact(n);
    if (n) memcpy(in, data + 2, n);
    if ((flags & 0x48) == 8) sequence(m, flags, data[1], in, n);
    else if (flags & 4) round_trip(m, flags, data[1], in, n);
    else {
        size_t cap = data[1] < 248 ? data[1] % 40 : (size_t)(data[1] - 247) * 64;
        uint8_t *out = exact(cap);
        long r = decode(m, flags, in, n, out, cap);
        if (r >= 0 && flags & 32) round_trip(m, flags & 159, 0, out, (size_t)r);
        free(out);
    }
    free(in);
    return 0;
}
