#include "thread_pool.h"

#include <map>
#include <memory>
#include <stdexcept>
#include <string>
#include <tuple>
#include <utility>

#if defined(__linux__)
#include <pthread.h>
#include <sched.h>
#endif

#include "blocked_signals.h"
#include "wait.h"

namespace seesaw {

namespace {

int usable_cores() {
#if defined(__linux__)
    cpu_set_t set;
    if (sched_getaffinity(0, sizeof set, &set) == 0) return std::max(1, CPU_COUNT(&set));
#endif
    return std::max(1u, std::thread::hardware_concurrency());
}

}  // namespace

void Signal::set(std::uint32_t value) {
    // In the one order of all, in which notify_all looks for sleepers after it: a mere release might be
    // seen only after that look, by one who has just gone to sleep.
    value_.store(value);
    value_.notify_all();
}

std::uint32_t Signal::wait_while(std::uint32_t old) const {
    std::uint32_t now = value();
    if (now != old) return now;
    if (spin_until([&] { return (now = value()) != old; })) return now;
    while ((now = value()) == old) value_.wait(old, std::memory_order_acquire);
    return now;
}

void Team::barrier() {
    if (size_ > 1) pool_.meet(size_);
}

std::atomic<std::int64_t>& Team::begin_loop() {
    // A loop's counter is cleared while its neighbour but one is in use, when nobody can be in it: a
    // barrier ends each loop.
    const std::uint32_t loop = loops_++;
    pool_.loops_[(loop + 2) % ThreadPool::kLoops].next.store(0, std::memory_order_relaxed);
    return pool_.loops_[loop % ThreadPool::kLoops].next;
}

ThreadPool::ThreadPool(int num_threads, std::vector<int> cores)
    : num_threads_(num_threads), cores_(std::move(cores)) {
    if (num_threads < 1) {
        throw std::invalid_argument("a pool needs one thread or more, got " +
                                    std::to_string(num_threads));
    }
    if (!cores_.empty() && static_cast<int>(cores_.size()) != num_threads) {
        throw std::invalid_argument("got " + std::to_string(cores_.size()) + " cores for " +
                                    std::to_string(num_threads) + " threads");
    }
    const BlockedSignals blocked;
    try {
        for (int index = 1; index < num_threads; ++index) {
            threads_.emplace_back([this, index] { work(index); });
        }
    } catch (...) {  // the system has no more threads: end those that began
        end();
        throw;
    }
}

ThreadPool::~ThreadPool() { end(); }

void ThreadPool::end() {
    closed_.store(true, std::memory_order_release);
    begun_.set(begun_.value() + 1);
    for (std::thread& thread : threads_) thread.join();
}

void ThreadPool::run(const std::function<void(Team&)>& region) {
    const std::lock_guard<std::mutex> lock(running_);
    thread_local int core = -1;  // where this thread was told to stay
    if (!cores_.empty() && core != cores_[0]) {
        pin(0);
        core = cores_[0];
    }
    Team team(*this, 0, num_threads_);
    if (num_threads_ == 1) {
        region(team);
        return;
    }
    region_ = &region;
    for (Loop& loop : loops_) loop.next.store(0, std::memory_order_relaxed);
    begun_.set(begun_.value() + 1);
    region(team);
    meet(num_threads_);
}

void ThreadPool::work(int index) {
    pin(index);
    std::uint32_t seen = 0;
    for (;;) {
        seen = begun_.wait_while(seen);
        if (closed_.load(std::memory_order_acquire)) return;
        Team team(*this, index, num_threads_);
        (*region_)(team);
        meet(num_threads_);
    }
}

void ThreadPool::meet(int size) {
    const std::uint32_t passed = passed_.value();
    if (arrived_.fetch_add(1, std::memory_order_acq_rel) + 1 == size) {
        arrived_.store(0, std::memory_order_relaxed);
        passed_.set(passed + 1);
    } else {
        passed_.wait_while(passed);
    }
}

void ThreadPool::pin(int index) const {
    if (cores_.empty()) return;
#if defined(__linux__)
    cpu_set_t set;
    CPU_ZERO(&set);
    CPU_SET(cores_[static_cast<std::size_t>(index)], &set);
    pthread_setaffinity_np(pthread_self(), sizeof set, &set);
#endif
}

namespace {

constexpr int kProcess = -1;  // whose pools are no lane's

std::mutex pool_mutex;
ThreadPool* pool_of_process = nullptr;
thread_local ThreadPool* pool_of_thread = nullptr;

// One for each configuration that was ever asked for, so that a pool which another thread of this
// process is just going to use is not taken away. Never destroyed: a program may end while a thread
// of it still computes.
ThreadPool* pool_with(int lane, int num_threads, std::vector<int> cores) {
    using Key = std::tuple<int, int, std::vector<int>>;
    static auto* made = new std::map<Key, std::unique_ptr<ThreadPool>>;
    std::unique_ptr<ThreadPool>& pool = (*made)[{lane, num_threads, cores}];
    if (!pool) pool = std::make_unique<ThreadPool>(num_threads, std::move(cores));
    return pool.get();
}

}  // namespace

ThreadPool& thread_pool() {
    if (pool_of_thread != nullptr) return *pool_of_thread;
    const std::lock_guard<std::mutex> lock(pool_mutex);
    if (pool_of_process == nullptr) pool_of_process = pool_with(kProcess, usable_cores(), {});
    return *pool_of_process;
}

void configure_thread_pool(int num_threads, std::vector<int> cores) {
    const std::lock_guard<std::mutex> lock(pool_mutex);
    pool_of_process = pool_with(kProcess, num_threads, std::move(cores));
}

void configure_lane_thread_pool(int lane, int num_threads, std::vector<int> cores) {
    const std::lock_guard<std::mutex> lock(pool_mutex);
    pool_of_thread = pool_with(lane, num_threads, std::move(cores));
}

}  // namespace seesaw
