// Vectors of the instruction set that a kernel file is compiled for, in the namespace SEESAW_ISA.
//
// `vf` is a register of W floats with the operators of the language (GCC and Clang vector
// extensions), so that generic code is the same for all sets, arm64 included. Only what has no
// operator is written per set.

#pragma once

#include <cstddef>
#include <cstdint>

#include "numbers.h"

#if defined(__AVX512F__) || defined(__AVX2__)
#include <immintrin.h>
#endif

#define SEESAW_INLINE inline __attribute__((always_inline))

namespace seesaw::SEESAW_ISA {

#if defined(__AVX512F__)
inline constexpr int W = 16;
#elif defined(__AVX2__)
inline constexpr int W = 8;
#else
inline constexpr int W = 4;
#endif
// Registers that one row of a panel takes.
inline constexpr int NV = kPanelColumns / W;

typedef float vf __attribute__((vector_size(W * 4)));
typedef std::int32_t vi __attribute__((vector_size(W * 4)));
typedef std::uint32_t vu __attribute__((vector_size(W * 4)));
// The same at any address.
typedef float vf_any __attribute__((vector_size(W * 4), aligned(4), may_alias));
typedef std::uint32_t vu_any __attribute__((vector_size(W * 4), aligned(2), may_alias));
typedef std::uint16_t vh __attribute__((vector_size(W * 2)));
typedef std::uint16_t vh_any __attribute__((vector_size(W * 2), aligned(2), may_alias));

SEESAW_INLINE vf splat(float x) { return vf{} + x; }
SEESAW_INLINE vf load(const float* p) { return *reinterpret_cast<const vf_any*>(p); }
SEESAW_INLINE void store(float* p, vf x) { *reinterpret_cast<vf_any*>(p) = x; }

SEESAW_INLINE float widen(bf16 x) {
    const std::uint32_t bits = static_cast<std::uint32_t>(x.bits) << 16;
    float out;
    __builtin_memcpy(&out, &bits, 4);
    return out;
}
SEESAW_INLINE float widen(float x) { return x; }

// To nearest, ties to even; a NaN stays one.
SEESAW_INLINE bf16 round_bf16(float x) {
    std::uint32_t bits;
    __builtin_memcpy(&bits, &x, 4);
    if ((bits & 0x7fffffffu) > 0x7f800000u) return {static_cast<std::uint16_t>((bits >> 16) | 64u)};
    bits += 0x7fffu + ((bits >> 16) & 1u);
    return {static_cast<std::uint16_t>(bits >> 16)};
}
template <class T>
SEESAW_INLINE T narrow(float x) {
    if constexpr (sizeof(T) == 2) {
        return round_bf16(x);
    } else {
        return x;
    }
}

// W numbers from memory, and to it.
SEESAW_INLINE vf load(const bf16* p) {
    const vh half = *reinterpret_cast<const vh_any*>(p);
    return (vf)(__builtin_convertvector(half, vu) << 16);
}
SEESAW_INLINE void store(bf16* p, vf x) {
#if defined(__AVX512BF16__)
    const __m256bh half = _mm512_cvtneps_pbh((__m512)x);
    __builtin_memcpy(p, &half, 32);
#else
    const vu bits = (vu)x;
    const vu rounded = (bits + 0x7fffu + ((bits >> 16) & 1u)) >> 16;
    const vu nan = (vu)((bits & 0x7fffffffu) > 0x7f800000u);
    const vu out = (rounded & ~nan) | (((bits >> 16) | 64u) & nan);
    *reinterpret_cast<vh_any*>(p) = __builtin_convertvector(out, vh);
#endif
}

// The lower and the upper number of W pairs of bf16.
SEESAW_INLINE vf even_of(vu pairs) { return (vf)(pairs << 16); }
SEESAW_INLINE vf odd_of(vu pairs) { return (vf)(pairs & 0xffff0000u); }
SEESAW_INLINE vu load_pairs(const bf16* p) { return *reinterpret_cast<const vu_any*>(p); }
// One pair in all places.
SEESAW_INLINE vu splat_pair(const bf16* p) {
    std::uint32_t pair;
    __builtin_memcpy(&pair, p, 4);
    return vu{} + pair;
}

SEESAW_INLINE vf max(vf a, vf b) { return a > b ? a : b; }

template <int N>
struct Floats {
    typedef float type __attribute__((vector_size(N * 4)));
};
// One number of all: halves are joined until one is left, which takes log2(W) steps in place of W.
template <int N, class Join>
SEESAW_INLINE float fold(typename Floats<N>::type x, Join join) {
    if constexpr (N == 1) {
        return x[0];
    } else {
        typename Floats<N / 2>::type halves[2];
        __builtin_memcpy(halves, &x, sizeof x);
        return fold<N / 2>(join(halves[0], halves[1]), join);
    }
}
SEESAW_INLINE float sum_of(vf x) {
    return fold<W>(x, [](auto a, auto b) { return a + b; });
}
SEESAW_INLINE float max_of(vf x) {
    return fold<W>(x, [](auto a, auto b) { return a > b ? a : b; });
}
// Whether a comparison holds anywhere.
SEESAW_INLINE bool any_of(vi mask) {
#if defined(__AVX512F__)
    return _mm512_test_epi32_mask((__m512i)mask, (__m512i)mask) != 0;
#elif defined(__AVX2__)
    return !_mm256_testz_si256((__m256i)mask, (__m256i)mask);
#else
    std::int32_t found = 0;
    for (int i = 0; i < W; ++i) found |= mask[i];
    return found != 0;
#endif
}

// e^x with an error of about two units in the last place; 0 below -87.3, where -inf belongs, and
// e^88 above 88. After Cephes: x = n ln 2 + r, and a polynomial in r of degree 6.
SEESAW_INLINE vf exp(vf x) {
    const vf low = splat(-87.3f), high = splat(88.0f);
    const vi under = x < low;
    x = x < low ? low : x;
    x = x > high ? high : x;
    const vf shifted = x * 1.44269504088896341f + 12582912.0f;  // 1.5 * 2^23: rounds to nearest
    const vf n = shifted - 12582912.0f;
    vf r = x - n * 0.693359375f;
    r = r + n * 2.12194440e-4f;
    vf p = splat(1.9875691500e-4f);
    p = p * r + 1.3981999507e-3f;
    p = p * r + 8.3334519073e-3f;
    p = p * r + 4.1665795894e-2f;
    p = p * r + 1.6666665459e-1f;
    p = p * r + 5.0000001201e-1f;
    const vf y = p * r * r + r + 1.0f;
    const vi scale = ((vi)shifted - (vi)splat(12582912.0f) + 127) << 23;
    return (vf)((vi)(y * (vf)scale) & ~under);
}

}  // namespace seesaw::SEESAW_ISA
