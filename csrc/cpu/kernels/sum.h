// Sums of the same numbers of several ranks.

#pragma once

#include <cstdint>

#include "../isa.h"
#include "../numbers.h"

namespace seesaw {

struct SumKernels {
    // out[i] = parts[0][i] + parts[1][i] + ..., in this order, in float, rounded once. `out` may be
    // one of the parts.
    void (*sum_bf16)(const void* const* parts, int num_parts, void* out, std::int64_t count);
    void (*sum_f32)(const void* const* parts, int num_parts, void* out, std::int64_t count);
};

SEESAW_KERNELS(SumKernels, sum_kernels)

inline void sum_parts(DType dtype, const void* const* parts, int num_parts, void* out,
                      std::int64_t count) {
    const SumKernels& kernels = sum_kernels();
    (dtype == DType::bf16 ? kernels.sum_bf16 : kernels.sum_f32)(parts, num_parts, out, count);
}

}  // namespace seesaw
