#include "pack.h"

#include "../simd.h"

namespace seesaw::SEESAW_ISA {

namespace {

template <int... I>
struct Lanes {};
template <int N, int... I>
struct LanesTo : LanesTo<N - 1, N - 1, I...> {};
template <int... I>
struct LanesTo<0, I...> {
    using type = Lanes<I...>;
};

// Of rows D apart: what is D columns apart crosswise changes places.
template <int D, int... I>
SEESAW_INLINE void exchange(vu& a, vu& b, Lanes<I...>) {
#if defined(__clang__)
    const vu upper = __builtin_shufflevector(a, b, (I & D ? I - D + W : I)...);
    b = __builtin_shufflevector(a, b, (I & D ? I + W : I + D)...);
#else  // GCC has that one only since 12
    const vu upper = __builtin_shuffle(a, b, vu{(I & D ? I - D + W : I)...});
    b = __builtin_shuffle(a, b, vu{(I & D ? I + W : I + D)...});
#endif
    a = upper;
}

template <int D>
SEESAW_INLINE void transpose_block(vu (&block)[W]) {
#pragma GCC unroll 16
    for (int i = 0; i < W; ++i) {
        if (!(i & D)) exchange<D>(block[i], block[i + D], typename LanesTo<W>::type{});
    }
    if constexpr (D > 1) transpose_block<D / 2>(block);
}

void transpose(const unsigned char* source, std::ptrdiff_t source_stride, unsigned char* target,
               std::ptrdiff_t target_stride, std::ptrdiff_t rows, std::ptrdiff_t words) {
    const std::ptrdiff_t whole_rows = rows / W * W, whole_words = words / W * W;
    for (std::ptrdiff_t j = 0; j < whole_words; j += W) {
        for (std::ptrdiff_t i = 0; i < whole_rows; i += W) {
            vu block[W];
#pragma GCC unroll 16
            for (int r = 0; r < W; ++r) {
                const unsigned char* from = source + (i + r) * source_stride + j * 4;
                block[r] = *reinterpret_cast<const vu_any*>(from);
            }
            transpose_block<W / 2>(block);
#pragma GCC unroll 16
            for (int r = 0; r < W; ++r) {
                unsigned char* to = target + (j + r) * target_stride + i * 4;
                *reinterpret_cast<vu_any*>(to) = block[r];
            }
        }
    }
    for (std::ptrdiff_t j = 0; j < words; ++j) {
        for (std::ptrdiff_t i = j < whole_words ? whole_rows : 0; i < rows; ++i) {
            __builtin_memcpy(target + j * target_stride + i * 4,
                             source + i * source_stride + j * 4, 4);
        }
    }
}

}  // namespace

extern const PackKernels pack_kernels = {transpose};

}  // namespace seesaw::SEESAW_ISA
