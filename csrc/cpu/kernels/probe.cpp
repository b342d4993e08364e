#include "../probe.h"

#include "../simd.h"

namespace seesaw::SEESAW_ISA {

namespace {

// Enough for two instructions a cycle of a latency of up to six, in as many registers as there are.
#if defined(__AVX512F__)
constexpr int kChains = 24;
#else
constexpr int kChains = 12;
#endif

// Not known to the compiler, which would otherwise compute with it.
volatile float unknown = 0.5f;

std::uint32_t read(const unsigned char* data, std::size_t nbytes) {
    constexpr int kVectors = 8;
    constexpr std::size_t kStep = kVectors * sizeof(vu);
    vu sums[kVectors] = {};
    const std::size_t whole = nbytes - nbytes % kStep;
    for (std::size_t at = 0; at < whole; at += kStep) {
#pragma GCC unroll 8
        for (int v = 0; v < kVectors; ++v) {
            sums[v] += *reinterpret_cast<const vu_any*>(data + at + v * sizeof(vu));
        }
    }
    std::uint32_t total = 0;
    for (int v = 0; v < kVectors; ++v) {
        for (int i = 0; i < W; ++i) total += sums[v][i];
    }
    for (std::size_t at = whole; at < nbytes; ++at) total += data[at];
    return total;
}

float total_of(const vf (&chains)[kChains]) {
    float total = 0;
    for (const vf& chain : chains) total += sum_of(chain);
    return total;
}

float multiply_f32(std::int64_t steps) {
    vf chains[kChains];
    for (int c = 0; c < kChains; ++c) chains[c] = splat(unknown * c);
    const vf factor = splat(unknown), more = splat(unknown);  // towards 1, whatever they begin with
    for (std::int64_t step = 0; step < steps; ++step) {
#pragma GCC unroll 24
        for (int c = 0; c < kChains; ++c) chains[c] = chains[c] * factor + more;
    }
    return total_of(chains);
}

#if defined(__AVX512BF16__)
constexpr std::int64_t kBf16Flops = 2 * 2 * W * kChains;

float multiply_bf16(std::int64_t steps) {
    vf chains[kChains];
    for (int c = 0; c < kChains; ++c) chains[c] = splat(unknown * c);
    const __m512bh a = _mm512_cvtne2ps_pbh((__m512)splat(unknown), (__m512)splat(unknown));
    for (std::int64_t step = 0; step < steps; ++step) {
#pragma GCC unroll 24
        for (int c = 0; c < kChains; ++c) chains[c] = (vf)_mm512_dpbf16_ps((__m512)chains[c], a, a);
    }
    return total_of(chains);
}
#else
constexpr std::int64_t kBf16Flops = 2 * W * kChains;

float multiply_bf16(std::int64_t steps) { return multiply_f32(steps); }
#endif

}  // namespace

extern const ProbeKernels probe_kernels = {
    read, multiply_bf16, multiply_f32, kBf16Flops, 2 * W * kChains,
};

}  // namespace seesaw::SEESAW_ISA
