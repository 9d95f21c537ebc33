#include "kernel_state.h"
#if (defined(__x86_64__) || defined(__i386__)) && defined(__GNUC__)
#define HAVE_X86 1
#include <immintrin.h>
#endif

/* Mass or count on a logarithmic scale, 16 steps. */
const uint8_t BUCKET[256] = {
#define R4(x) x, x, x, x
#define R16(x) R4(x), R4(x), R4(x), R4(x)
#define R32(x) R16(x), R16(x)
    0, 1, 2, 3, 4, 5, 5, 6, 6, 7, 7, 7, 7, 8, 8, 8,
    8, 9, 9, 9, 9, 9, 9, 9, 9, 10, 10, 10, 10, 10, 10, 10,
    10, 11, 11, 11, 11, 11, 11, 11, 11, 11, 11, 11, 11, 11, 11, 11,
    11, 12, 12, 12, 12, 12, 12, 12, 12, 12, 12, 12, 12, 12, 12, 12,
    12, 12, 12, 12, 12, 12, 12, 12, 12, 13, 13, 13, 13, 13, 13, 13,
    R32(13), R16(14), R16(14), R16(14), R16(14), R16(14), R16(15), R16(15), R16(15), R16(15),
};

#define LEVEL 0
#define NAME(x) x##_plain
#include "kernel_loop.h"
#undef LEVEL
#undef NAME
#ifdef HAVE_X86
#pragma GCC push_options
#pragma GCC target("avx2,bmi,bmi2,lzcnt,popcnt")
#define LEVEL 1
#define NAME(x) x##_avx2
#include "kernel_loop.h"
#undef LEVEL
#undef NAME
#pragma GCC pop_options
#endif

Scratch *nbmf_scratch_new(void) {
    void *p = NULL;
    if (posix_memalign(&p, 64, sizeof(Scratch))) return NULL;
    memset(p, 0, sizeof(Scratch));
    return p;
}
void nbmf_scratch_free(Scratch *s) { free(s); }

static int simd = -1;
static int simd_level(void) {
    if (simd < 0) {
        simd = 0;
#ifdef HAVE_X86
        if (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("bmi2")) simd = 1;
#endif
    }
    return simd;
}

static int run_encode(const Model *m, Scratch *s, int type, const uint8_t *raw, size_t n, Encoder *rc, uint16_t *cost) {
#ifdef HAVE_X86
    if (simd_level() >= 1) return run_encode_avx2(m, s, type, raw, n, rc, cost);
#endif
    return run_encode_plain(m, s, type, raw, n, rc, cost);
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

long nbmf_encode(const Model *m, Scratch *s, int type, const uint8_t *raw, size_t n, uint8_t *out, size_t cap) {
    Encoder e = { 0, 0xFFFFFFFFu, 0, 1, out, 0, cap, 1 };
    run_encode(m, s, type, raw, n, &e, NULL);
    encoder_flush(&e);
    return e.n > cap ? NBMF_SPACE : (long)e.n;
}

int nbmf_costs(const Model *m, Scratch *s, int type, const uint8_t *raw, size_t n, uint16_t *cost) {
    return run_encode(m, s, type, raw, n, NULL, cost);
}

long nbmf_decode(const Model *m, Scratch *s, int type, const uint8_t *in, size_t n, uint8_t *out, size_t cap) {
    Decoder d = { 0, 0xFFFFFFFFu, in, n, 0, 0 };
    for (int i = 0; i < 4; i++) d.code = d.code << 8 | decoder_byte(&d);
    long r;
#ifdef HAVE_X86
    if (simd_level() >= 1) r = run_decode_avx2(m, s, type, &d, out, cap);
    else
#endif
    r = run_decode_plain(m, s, type, &d, out, cap);
    if (r >= 0 && d.pos < n) return NBMF_STREAM;    /* bytes after the end */
    return r;
}

const char *nbmf_simd(void) { return simd_level() == 1 ? "avx2" : "plain"; }
int nbmf_set_simd(const char *name) {
    if (!strcmp(name, "plain")) { simd = 0; return 0; }
#ifdef HAVE_X86
    if (!strcmp(name, "avx2") && __builtin_cpu_supports("avx2")) { simd = 1; return 0; }
#endif
    return -1;
}
