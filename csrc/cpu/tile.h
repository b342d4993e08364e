// The register block that linear layers and attention are made of: R rows times a panel of 32
// columns, accumulated in float over all of k.
//
// The order of additions of an element depends on k alone, not on R or on the rows beside it, so a
// row's result is the same bits whatever batch it is computed in.

#pragma once

#include "simd.h"

namespace seesaw::SEESAW_ISA {

// Most rows of a block: as many as leave the accumulators in registers.
#if defined(__AVX512F__)
inline constexpr int kTileRows = 12;
#elif defined(__AVX2__)
inline constexpr int kTileRows = 3;
#elif defined(__aarch64__)
inline constexpr int kTileRows = 3;
#else
inline constexpr int kTileRows = 1;
#endif

// Bytes of a panel's row, for prefetching.
inline constexpr int kRowBytes = 128;

template <int R>
struct Tile {
    vf acc[R][NV];

    SEESAW_INLINE void zero() {
        for (int r = 0; r < R; ++r) {
            for (int v = 0; v < NV; ++v) acc[r][v] = vf{};
        }
    }

    // acc[r][c] += sum over s < steps, d < kDepth of a[r * lda + s * kDepth + d] * b(s, c, d), where
    // row s of b lies at b + s * b_step (elements) as in a panel. `ahead`: what will be wanted next is
    // fetched from there, `ahead_step` bytes in each step, kRowBytes or at most half of it; null =
    // nothing. An even trickle keeps memory busy and out of the way of what is computed.
    SEESAW_INLINE void multiply(const bf16* a, std::ptrdiff_t lda, const bf16* b,
                                std::ptrdiff_t b_step, std::ptrdiff_t steps, const char* ahead,
                                std::ptrdiff_t ahead_step = kRowBytes) {
        for (std::ptrdiff_t s = 0; s < steps; ++s, b += b_step, a += 2) {
            fetch(ahead, ahead_step);
#if defined(__AVX512BF16__)
            __m512bh column[NV];
            for (int v = 0; v < NV; ++v) column[v] = (__m512bh)_mm512_loadu_si512(b + v * 2 * W);
#pragma GCC unroll 12
            for (int r = 0; r < R; ++r) {
                std::int32_t pair;
                __builtin_memcpy(&pair, a + r * lda, 4);
                const __m512bh both = (__m512bh)_mm512_set1_epi32(pair);
                for (int v = 0; v < NV; ++v) {
                    acc[r][v] = (vf)_mm512_dpbf16_ps((__m512)acc[r][v], both, column[v]);
                }
            }
#else
            if constexpr (W == 16) {
                vf first[NV], second[NV];
                for (int v = 0; v < NV; ++v) {
                    const vu pairs = load_pairs(b + v * 2 * W);
                    first[v] = even_of(pairs);
                    second[v] = odd_of(pairs);
                }
#pragma GCC unroll 12
                for (int r = 0; r < R; ++r) {
                    const vu both = splat_pair(a + r * lda);
                    const vf even = even_of(both), odd = odd_of(both);
                    for (int v = 0; v < NV; ++v) acc[r][v] += even * first[v];
                    for (int v = 0; v < NV; ++v) acc[r][v] += odd * second[v];
                }
            } else {  // with few registers the numbers of the rows are what stays in them
                vf even[R], odd[R];
#pragma GCC unroll 12
                for (int r = 0; r < R; ++r) {
                    const vu both = splat_pair(a + r * lda);
                    even[r] = even_of(both);
                    odd[r] = odd_of(both);
                }
#pragma GCC unroll 8
                for (int v = 0; v < NV; ++v) {
                    const vu pairs = load_pairs(b + v * 2 * W);
                    const vf first = even_of(pairs), second = odd_of(pairs);
#pragma GCC unroll 12
                    for (int r = 0; r < R; ++r) {
                        acc[r][v] += even[r] * first;
                        acc[r][v] += odd[r] * second;
                    }
                }
            }
#endif
        }
    }

    SEESAW_INLINE void multiply(const float* a, std::ptrdiff_t lda, const float* b,
                                std::ptrdiff_t b_step, std::ptrdiff_t steps, const char* ahead,
                                std::ptrdiff_t ahead_step = kRowBytes) {
        for (std::ptrdiff_t s = 0; s < steps; ++s, b += b_step, a += 1) {
            fetch(ahead, ahead_step);
            vf column[NV];
            for (int v = 0; v < NV; ++v) column[v] = load(b + v * W);
#pragma GCC unroll 12
            for (int r = 0; r < R; ++r) {
                const vf both = splat(a[r * lda]);
                for (int v = 0; v < NV; ++v) acc[r][v] += both * column[v];
            }
        }
    }

private:
    static SEESAW_INLINE void fetch(const char*& ahead, std::ptrdiff_t step) {
        if (ahead != nullptr) {
            __builtin_prefetch(ahead);
            if (step == kRowBytes) __builtin_prefetch(ahead + kRowBytes / 2);
            ahead += step;
        }
    }
};

template <int R>
struct Rows {
    static constexpr int value = R;
};

// Calls f(Rows<R>{}) with R = rows, which is 1 .. kTileRows.
template <int R = kTileRows, class F>
SEESAW_INLINE void with_rows(int rows, F&& f) {
    if constexpr (R > 1) {
        if (rows < R) return with_rows<R - 1>(rows, static_cast<F&&>(f));
    }
    f(Rows<R>{});
}

}  // namespace seesaw::SEESAW_ISA
