// Transposes of 32-bit words, which is what packing is (csrc/cpu/pack.h).

#pragma once

#include <cstddef>

#include "../isa.h"

namespace seesaw {

struct PackKernels {
    // Word j of row i, at source + i * source_stride, becomes word i of row j, at
    // target + j * target_stride. Strides in bytes; words lie on even addresses at least.
    void (*transpose)(const unsigned char* source, std::ptrdiff_t source_stride,
                      unsigned char* target, std::ptrdiff_t target_stride, std::ptrdiff_t rows,
                      std::ptrdiff_t words);
};

SEESAW_KERNELS(PackKernels, pack_kernels)

}  // namespace seesaw
