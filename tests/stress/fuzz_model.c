/* libFuzzer target: hostile model and pack files into nbmf_model_open; a file that opens then codes a short record.

   Input: byte 0 is flags: bit 0 open with a pack, bit 1 the rest is the file itself (else edits of a real one),
     bit 2 the edits are of the pack, bit 3 the file lies at an odd address, bits 4-5 value type,
     bit 6 short streams come from the input's last bytes, bit 7 plain C.
   An edit is 8 bytes: kind, section or field, then six of argument (edit() below).
   NBMF_FUZZ_MODEL and NBMF_FUZZ_PACK name the real files, which should be small. */
#include "kernel.h"
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define CHECK(x) do { if (!(x)) { fprintf(stderr, "%s:%d: %s does not hold\n", __FILE__, __LINE__, #x); abort(); } } while (0)
#define OUT_CAP 200

typedef struct { uint8_t *data; size_t n; } Bytes;
static Bytes real[2];              /* the model, the pack */

static Bytes read_file(const char *name) {
    const char *path = getenv(name);
    FILE *f = path ? fopen(path, "rb") : NULL;
    if (!f || fseek(f, 0, SEEK_END)) { fprintf(stderr, "%s does not name a file\n", name); exit(2); }
    Bytes b = { NULL, (size_t)ftell(f) };
    rewind(f);
    b.data = malloc(b.n);
    if (!b.data || fread(b.data, 1, b.n, f) != b.n) { perror(path); exit(2); }
    fclose(f);
    return b;
}

int LLVMFuzzerInitialize(int *argc, char ***argv) {
    (void)argc; (void)argv;
    real[0] = read_file("NBMF_FUZZ_MODEL");
    real[1] = read_file("NBMF_FUZZ_PACK");
    return 0;
}

static uint64_t get(const uint8_t *p, int bytes) { uint64_t v = 0; for (int i = bytes; i--;) v = v << 8 | p[i]; return v; }
static void put(uint8_t *p, uint64_t v, int bytes) { for (int i = 0; i < bytes; i++) p[i] = (uint8_t)(v >> 8 * i); }

static void edit(Bytes *f, const uint8_t e[8]) {
    size_t sections = (size_t)get(f->data + 6, 2);
    if (!sections || sections > FILE_SECTIONS || FILE_HEADER + sections * FILE_ENTRY > f->n) return;
    uint8_t *entry = f->data + FILE_HEADER + e[1] % sections * FILE_ENTRY;
    size_t at = (size_t)get(entry + 16, 8), n = (size_t)get(entry + 24, 8);
    int inside = at <= f->n && n <= f->n - at && n;
    switch (e[0] % 8) {
    case 0: f->data[get(e + 2, 3) % (FILE_HEADER + sections * FILE_ENTRY)] = e[5]; break;             /* a byte of the header or table */
    case 1: put(entry + (e[2] & 1 ? 16 : 24), (e[2] & 1 ? at : n) + (uint64_t)(int64_t)(int8_t)e[3], 8); break;   /* offset or length, a little off */
    case 2: put(entry + (e[2] & 1 ? 16 : 24), get(e + 3, 5) << (e[2] >> 2), 8); break;                 /* offset or length, anything */
    case 3: f->data[get(e + 2, 4) % f->n] = e[6]; break;                                               /* a byte anywhere */
    case 4: if (inside) for (size_t i = 0; i < n; i++) f->data[at + i] = e[2 + (i & 1)]; break;        /* a section of one 16-bit value */
    case 5: if (inside) f->data[at + get(e + 2, 4) % n] = e[6]; break;                                 /* a byte of a section */
    case 6: f->n = get(e + 2, 4) % (f->n + 1); if (e[6] & 1 && f->n >= 16) put(f->data + 8, f->n, 8);   /* cut short, and the header says so */
            break;
    default: if (f->n >= 16) memcpy(entry, real[0].data + FILE_HEADER + e[2] % get(real[0].data + 6, 2) * FILE_ENTRY, 16); break;   /* a section renamed */
    }
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) {
    if (!size) return 0;
    int flags = data[0], which = flags >> 2 & 1;
    const uint8_t *p = data + 1, *end = data + size;
    Bytes use[2] = { real[0], real[1] };
    Bytes b = { NULL, 0 };
    if (flags & 2) {
        b.n = size - 1;
        b.data = malloc(b.n + 1);
        CHECK(b.data);
        memcpy(b.data, p, b.n);
    } else {
        b.n = real[which].n;
        b.data = malloc(b.n);
        CHECK(b.data);
        memcpy(b.data, real[which].data, b.n);
        for (; end - p >= 8 && b.n; p += 8) if (b.n >= FILE_HEADER) edit(&b, p);
    }
    int odd = flags >> 3 & 1;
    uint8_t *file = malloc(b.n + (size_t)odd);   /* ends where the file ends: a read past it is a finding */
    CHECK(file || !(b.n + (size_t)odd));
    if (b.n) memcpy(file + odd, b.data, b.n);
    free(b.data);
    use[which].data = file + odd; use[which].n = b.n;
    Model m;
    char *error = malloc(128);
    CHECK(error);
    memset(error, 'x', 128);
    if (nbmf_set_simd(flags & 128 ? "plain" : "avx2") < 0) nbmf_set_simd("plain");
    int with_pack = flags & 1 || which;
    if (nbmf_model_open(&m, use[0].data, use[0].n, with_pack ? use[1].data : NULL, with_pack ? use[1].n : 0, error) < 0)
        CHECK(memchr(error, 0, 128));
    else {
        static const uint8_t text[] = "{\"role\":\"user\",\"content\":\"Could you move my appointment? \\u00e9\",\"n\":[1,2,[3.5]],\"role\":\"user\"}\n|a, b;c\0\xe3\x81\x82\xff";
        Scratch *s = nbmf_scratch_new();       /* one per Model: a scratch knows its Model by address */
        uint8_t out[sizeof text * 20 + 64], back[OUT_CAP];
        int type = flags >> 4 & 3, net = size & 1 && m.dense.width;
        CHECK(s);
        long r = nbmf_encode(&m, s, type, net, text, sizeof text, out, sizeof out);
        CHECK(r >= 0);
        CHECK(nbmf_decode(&m, s, type, net, out, (size_t)r, back, OUT_CAP) == (long)sizeof text && !memcmp(text, back, sizeof text));
        if (flags & 64) {
            size_t n = size < 24 ? size : 24;
            r = nbmf_decode(&m, s, type, net, end - n, n, back, OUT_CAP);
            CHECK(r >= NBMF_LIMIT && r <= OUT_CAP);
        }
        nbmf_scratch_free(s);
    }
    nbmf_model_close(&m);
    free(error);
    free(file);
    return 0;
}
