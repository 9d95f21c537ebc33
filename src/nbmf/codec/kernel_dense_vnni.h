/* The dense profile's maps of bytes where the processor multiplies bytes by bytes (AVX-512 VNNI). */
#ifndef NBMF_KERNEL_DENSE_VNNI_H
#define NBMF_KERNEL_DENSE_VNNI_H
#include "kernel_state.h"
#ifdef HAVE_X86

static int vnni;                  /* whether the level in use has them */
TARGET_BEGIN("avx512f,avx512vnni,avx512bw,avx512vl,avx2")
/* Of `blocks` blocks of 32 outputs side by side, so that an input is read once for all. No sum wraps: 512 * 255 * 128 < 2**31. */
static inline __attribute__((always_inline)) void dense_blocks_vnni(const Affine *f, const uint8_t *raised, int32_t *out, int o, const int blocks) {
    const size_t n_in = f->n_in;
    const int8_t *w = f->weights + (size_t)o * n_in;
    __m512i even[4], odd[4];      /* of 16 outputs each: sums over even and over odd fours of inputs */
    for (int k = 0; k < 2 * blocks; k++) even[k] = _mm512_loadu_si512(f->less + o + 16 * k), odd[k] = _mm512_setzero_si512();
    for (size_t i = 0; i < n_in; i += 8, w += 256) {
        int32_t four[2];
        memcpy(four, raised + i, 8);
        const __m512i x = _mm512_set1_epi32(four[0]), y = _mm512_set1_epi32(four[1]);
#define STEP(k) if (k < 2 * blocks) { \
        even[k] = _mm512_dpbusd_epi32(even[k], x, _mm512_load_si512(w + k / 2 * 32 * n_in + k % 2 * 64)); \
        odd[k] = _mm512_dpbusd_epi32(odd[k], y, _mm512_load_si512(w + k / 2 * 32 * n_in + k % 2 * 64 + 128)); }
        STEP(0) STEP(1) STEP(2) STEP(3)
#undef STEP
    }
    for (int k = 0; k < 2 * blocks; k++) _mm512_storeu_si512(out + o + 16 * k, _mm512_add_epi32(even[k], odd[k]));
}

/* dense_bytes with inputs raised by 128, for a product of unsigned and signed bytes. */
static __attribute__((noinline)) void dense_bytes_vnni(const Affine *f, const int16_t *in, int32_t *out) {
    _Alignas(64) uint8_t raised[DENSE_WIDTH_MAX];
    const int n_in = (int)f->n_in, n_out = (int)f->n_out;
    int o = 0;
    for (int i = 0; i < n_in; i += 32)
        _mm256_store_si256((__m256i *)(raised + i), _mm256_xor_si256(_mm512_cvtepi16_epi8(_mm512_loadu_si512(in + i)), _mm256_set1_epi8(-128)));
    for (; o + 64 <= n_out; o += 64) dense_blocks_vnni(f, raised, out, o, 2);
    if (o < n_out) dense_blocks_vnni(f, raised, out, o, 1);
}
TARGET_END

#endif
#endif
