#include "sum.h"

#include "../simd.h"

namespace seesaw::SEESAW_ISA {

namespace {

// Registers of numbers at a time, all parts of each before the next.
constexpr int kAtOnce = 4;

template <class T>
void sum(const void* const* parts, int num_parts, void* out, std::int64_t count) {
    const auto part = [&](int p) { return static_cast<const T*>(parts[p]); };
    T* const to = static_cast<T*>(out);
    std::int64_t i = 0;
    for (; i + kAtOnce * W <= count; i += kAtOnce * W) {
        vf total[kAtOnce];
        for (int r = 0; r < kAtOnce; ++r) total[r] = load(part(0) + i + r * W);
        for (int p = 1; p < num_parts; ++p) {
            for (int r = 0; r < kAtOnce; ++r) total[r] += load(part(p) + i + r * W);
        }
        for (int r = 0; r < kAtOnce; ++r) store(to + i + r * W, total[r]);
    }
    for (; i < count; ++i) {
        float total = widen(part(0)[i]);
        for (int p = 1; p < num_parts; ++p) total += widen(part(p)[i]);
        to[i] = narrow<T>(total);
    }
}

}  // namespace

extern const SumKernels sum_kernels = {sum<bf16>, sum<float>};

}  // namespace seesaw::SEESAW_ISA
