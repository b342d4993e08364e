// Waiting for other threads and processes: for a short time awake, since most waits are shorter than
// a wake-up by the system.

#pragma once

#include <chrono>

namespace seesaw {

// Longer than threads of a step drift apart, shorter than a wake-up by the system would pay.
inline constexpr std::chrono::microseconds kSpin{20};

inline void relax() {
#if defined(__x86_64__)
    __builtin_ia32_pause();
#elif defined(__aarch64__)
    asm volatile("yield");
#endif
}

// Whether ready() became true while it was asked for kSpin.
template <class Ready>
bool spin_until(Ready&& ready) {
    const auto end = std::chrono::steady_clock::now() + kSpin;
    do {
        for (int i = 0; i < 64; ++i) {
            if (ready()) return true;
            relax();
        }
    } while (std::chrono::steady_clock::now() < end);
    return false;
}

}  // namespace seesaw
