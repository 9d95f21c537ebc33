#include "kernel_dense.h"
#include "kernel_dense_vnni.h"

#define LEVEL 0
#define NAME(x) x##_plain
#include "kernel_loop.h"
#undef LEVEL
#undef NAME
#ifdef HAVE_X86
TARGET_BEGIN("avx2,bmi,bmi2,lzcnt,popcnt")
#define LEVEL 1
#define NAME(x) x##_avx2
#include "kernel_loop.h"
#undef LEVEL
#undef NAME
TARGET_END
TARGET_BEGIN("avx512f,avx512bw,avx512vl,avx512dq,avx2,bmi,bmi2,lzcnt,popcnt")
#define LEVEL 2
#define NAME(x) x##_avx512
#include "kernel_loop.h"
#undef LEVEL
#undef NAME
TARGET_END
#endif

Scratch *nbmf_scratch_new(void) {
    void *p = NULL;
    if (posix_memalign(&p, 64, sizeof(Scratch))) return NULL;
    memset(p, 0, sizeof(Scratch));
    return p;
}
void nbmf_scratch_free(Scratch *s) { free(s); }

enum { PLAIN, AVX2, AVX2_VNNI, AVX512 };
static const char *const SIMD_NAMES[] = { "plain", "avx2", "avx2-vnni", "avx512" };
static int simd = -1;             /* level in use; racing first calls write the same value */

static int simd_has(int level) {
#ifdef HAVE_X86
    const int avx2 = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("bmi2") && __builtin_cpu_supports("popcnt");
    const int avx512 = avx2 && __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512dq");
    return level == PLAIN || (level == AVX2 && avx2) || (level == AVX512 && avx512) || (level == AVX2_VNNI && avx512 && __builtin_cpu_supports("avx512vnni"));
#else
    return level == PLAIN;
#endif
}
static void simd_use(int level) {
#ifdef HAVE_X86
    vnni = level == AVX2_VNNI;
#endif
    simd = level;
}
static int simd_level(void) {
    if (simd < 0)                 /* AVX-512 throughout measured 7 % slower than AVX2 on Zen 4; it is there on request */
        simd_use(simd_has(AVX2_VNNI) ? AVX2_VNNI : simd_has(AVX2) ? AVX2 : PLAIN);
    return simd;
}

static void run_encode(const Model *m, Scratch *s, const Sequence *q, const uint8_t *raw, Encoder *rc, uint16_t *cost) {
    switch (simd_level()) {
#ifdef HAVE_X86
    case AVX512: run_encode_avx512(m, s, q, raw, rc, cost); break;
    case AVX2: case AVX2_VNNI: run_encode_avx2(m, s, q, raw, rc, cost); break;
#endif
    default: run_encode_plain(m, s, q, raw, rc, cost);
    }
}

static long run_decode(const Model *m, Scratch *s, const Sequence *q, Decoder *rc, uint8_t *out, size_t cap) {
    switch (simd_level()) {
#ifdef HAVE_X86
    case AVX512: return run_decode_avx512(m, s, q, rc, out, cap);
    case AVX2: case AVX2_VNNI: return run_decode_avx2(m, s, q, rc, out, cap);
#endif
    default: return run_decode_plain(m, s, q, rc, out, cap);
    }
}

/* Ends the stream with the fewest bytes that, followed by zeros, lie in [low, low + range). */
static void encoder_flush(Encoder *e) {
    int n = 0;
    for (; n < 4; n++) {
        uint64_t mask = (1ull << (32 - 8 * n)) - 1, v = (e->low + mask) & ~mask;
        if (v < e->low + e->range) { e->low = v; break; }
    }
    for (int i = 0; i <= n; i++) encoder_shift(e);
}

long nbmf_encode_sequence(const Model *m, Scratch *s, const Sequence *q, const uint8_t *raw, uint8_t *out, size_t cap) {
    Encoder e = { 0, 0xFFFFFFFFu, 0, 1, out, 0, cap, 1 };
    run_encode(m, s, q, raw, &e, NULL);
    encoder_flush(&e);
    return e.n > cap ? NBMF_SPACE : (long)e.n;
}

long nbmf_encode(const Model *m, Scratch *s, int type, int dense, const uint8_t *raw, size_t n, uint8_t *out, size_t cap) {
    const uint8_t types[1] = { (uint8_t)type };
    const Sequence one = { 1, 0, types, &n, dense };
    return nbmf_encode_sequence(m, s, &one, raw, out, cap);
}

void nbmf_costs(const Model *m, Scratch *s, int type, int dense, const uint8_t *raw, size_t n, uint16_t *cost) {
    const uint8_t types[1] = { (uint8_t)type };
    const Sequence one = { 1, 0, types, &n, dense };
    run_encode(m, s, &one, raw, NULL, cost);
}

long nbmf_decode_sequence(const Model *m, Scratch *s, const Sequence *q, const uint8_t *in, size_t n, uint8_t *out, size_t cap) {
    Decoder d = { 0, 0xFFFFFFFFu, in, n, 0, 0 };
    for (int i = 0; i < 4; i++) d.code = d.code << 8 | decoder_byte(&d);
    long r = run_decode(m, s, q, &d, out, cap);
    if (r >= 0 && d.pos < n) return NBMF_STREAM;    /* bytes after the end */
    return r;
}

long nbmf_decode(const Model *m, Scratch *s, int type, int dense, const uint8_t *in, size_t n, uint8_t *out, size_t cap) {
    const uint8_t types[1] = { (uint8_t)type };
    size_t length;
    const Sequence one = { 1, 0, types, &length, dense };
    return nbmf_decode_sequence(m, s, &one, in, n, out, cap);
}

const char *nbmf_simd(void) { return SIMD_NAMES[simd_level()]; }
int nbmf_set_simd(const char *name) {
    for (int level = PLAIN; level <= AVX512; level++)
        if (!strcmp(name, SIMD_NAMES[level]) && simd_has(level)) { simd_use(level); return 0; }
    return -1;
}
