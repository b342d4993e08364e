// What this machine can do at most right now, with the threads and the instruction set that kernels
// run with: reads from memory, and multiply-adds out of registers. Other figures are shares of these.

#pragma once

#include <cstddef>
#include <cstdint>

#include "isa.h"
#include "numbers.h"
#include "thread_pool.h"

namespace seesaw {

struct ProbeKernels {
    // Reads it all; the result keeps the compiler from leaving that out.
    std::uint32_t (*read)(const unsigned char* data, std::size_t nbytes);
    // `steps` times flops_per_step, on as many accumulators as hide the latency. bf16 where there is
    // no instruction for it is what kernels do then: float.
    float (*multiply_bf16)(std::int64_t steps);
    float (*multiply_f32)(std::int64_t steps);
    std::int64_t bf16_flops_per_step;
    std::int64_t f32_flops_per_step;
};
SEESAW_KERNELS(ProbeKernels, probe_kernels)

// Bytes per second of one pass over the buffer, which is to be far larger than the last cache.
double read_rate(ThreadPool& pool, const void* data, std::size_t nbytes);
// Flops per second (a multiply-add is two) over at least `seconds`.
double multiply_rate(ThreadPool& pool, DType dtype, double seconds);

}  // namespace seesaw
