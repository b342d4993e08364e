#include "isa.h"

#include <atomic>
#include <cstdlib>
#include <cstring>
#include <stdexcept>
#include <string>

namespace seesaw {

namespace {

constexpr Isa kAll[] = {Isa::generic, Isa::avx2, Isa::avx512, Isa::avx512bf16};

bool has(Isa isa) {
#if defined(__x86_64__)
    __builtin_cpu_init();
    const bool avx2 = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma");
    const bool avx512 = avx2 && __builtin_cpu_supports("avx512f") &&
                        __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512vl") &&
                        __builtin_cpu_supports("avx512dq");
    switch (isa) {
        case Isa::avx512bf16: return avx512 && __builtin_cpu_supports("avx512bf16");
        case Isa::avx512: return avx512;
        case Isa::avx2: return avx2;
        default: return true;
    }
#else
    return isa == Isa::generic;
#endif
}

Isa first() {
    const char* wanted = std::getenv("SEESAW_CPU_ISA");
    if (wanted == nullptr || *wanted == '\0') return best_isa();
    const Isa isa = isa_of(wanted);
    if (!has(isa)) {
        throw std::invalid_argument(std::string("SEESAW_CPU_ISA=") + wanted +
                                    ": this processor has " + isa_name(best_isa()) +
                                    " at most. Unset it or name that one.");
    }
    return isa;
}

std::atomic<Isa>& current() {
    static std::atomic<Isa> isa{first()};
    return isa;
}

}  // namespace

Isa best_isa() {
    Isa best = Isa::generic;
    for (const Isa isa : kAll) {
        if (has(isa)) best = isa;
    }
    return best;
}

Isa isa() { return current().load(std::memory_order_relaxed); }

void set_isa(Isa wanted) {
    if (!has(wanted)) {
        throw std::invalid_argument(std::string("instruction set ") + isa_name(wanted) +
                                    ": this processor has " + isa_name(best_isa()) + " at most");
    }
    current().store(wanted, std::memory_order_relaxed);
}

const char* isa_name(Isa isa) {
    switch (isa) {
        case Isa::avx512bf16: return "avx512bf16";
        case Isa::avx512: return "avx512";
        case Isa::avx2: return "avx2";
        default: return "generic";
    }
}

Isa isa_of(const char* name) {
    for (const Isa isa : kAll) {
        if (std::strcmp(name, isa_name(isa)) == 0) return isa;
    }
    throw std::invalid_argument(std::string("instruction set '") + name +
                                "': expected generic, avx2, avx512 or avx512bf16");
}

}  // namespace seesaw
