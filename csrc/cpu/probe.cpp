#include "probe.h"

#include <algorithm>
#include <atomic>
#include <chrono>
#include <vector>

namespace seesaw {

namespace {

using Clock = std::chrono::steady_clock;

// Where results go that nobody wants.
std::atomic<std::uint64_t> sink{0};

// Of what all threads do between two barriers: from the first of them to begin to the last to end. One
// thread's own clock would miss what others do while the system lets it wait.
template <class Work>
double time_region(ThreadPool& pool, Work&& work) {
    std::vector<Clock::time_point> begin(static_cast<std::size_t>(pool.num_threads()));
    std::vector<Clock::time_point> end(begin.size());
    pool.run([&](Team& team) {
        const auto own = static_cast<std::size_t>(team.index());
        team.barrier();
        begin[own] = Clock::now();
        work(team);
        end[own] = Clock::now();
    });
    const auto taken = *std::max_element(end.begin(), end.end()) -
                       *std::min_element(begin.begin(), begin.end());
    return std::chrono::duration<double>(taken).count();
}

}  // namespace

double read_rate(ThreadPool& pool, const void* data, std::size_t nbytes) {
    const auto* bytes = static_cast<const unsigned char*>(data);
    const ProbeKernels& kernels = probe_kernels();
    // Pieces small enough that threads end together, large enough that handing out costs nothing.
    constexpr std::int64_t kPiece = 1 << 20;
    const double seconds = time_region(pool, [&](Team& team) {
        std::uint64_t sum = 0;
        team.share(static_cast<std::int64_t>(nbytes), kPiece,
                   [&](std::int64_t begin, std::int64_t end) {
                       sum += kernels.read(bytes + begin, static_cast<std::size_t>(end - begin));
                   });
        sink.fetch_add(sum, std::memory_order_relaxed);
    });
    return static_cast<double>(nbytes) / seconds;
}

double multiply_rate(ThreadPool& pool, DType dtype, double seconds) {
    const ProbeKernels& kernels = probe_kernels();
    const bool half = dtype == DType::bf16;
    const auto multiply = half ? kernels.multiply_bf16 : kernels.multiply_f32;
    const std::int64_t flops = half ? kernels.bf16_flops_per_step : kernels.f32_flops_per_step;
    for (std::int64_t steps = 1 << 12;; steps *= 2) {
        const double taken = time_region(pool, [&](Team&) {
            sink.fetch_add(static_cast<std::uint64_t>(multiply(steps)), std::memory_order_relaxed);
        });
        if (taken >= seconds) {
            return static_cast<double>(flops * steps * pool.num_threads()) / taken;
        }
    }
}

}  // namespace seesaw
