// The threads that kernels run on. A parallel region runs one function on all of them, like a small
// machine of its own: threads share out loops and meet at barriers, so a whole step of a model is
// one region and threads are woken once for it.
//
// A thread that waits spins for a short time, then sleeps in the kernel until it is woken; between
// regions all of them sleep. The thread that calls run() is one of the team.

#pragma once

#include <algorithm>
#include <atomic>
#include <cstdint>
#include <functional>
#include <mutex>
#include <thread>
#include <vector>

namespace seesaw {

// A counter that is waited for; on a cache line of its own.
class alignas(64) Signal {
public:
    std::uint32_t value() const { return value_.load(std::memory_order_acquire); }
    void set(std::uint32_t value);
    // Returns the first value seen that is not `old`.
    std::uint32_t wait_while(std::uint32_t old) const;

private:
    std::atomic<std::uint32_t> value_{0};
};

class ThreadPool;

// What one thread of a region knows of it. All threads make the same calls in the same order.
class Team {
public:
    int index() const { return index_; }
    int size() const { return size_; }

    void barrier();

    // Calls body(begin, end) for pieces of 0 .. count of `grain` items (the last may be shorter), each
    // piece on whichever thread is free. All pieces are done, and seen by all threads, on return.
    template <class Body>
    void share(std::int64_t count, std::int64_t grain, Body&& body) {
        if (size_ == 1) {
            // In the same pieces, so that a loop that depends on them is the same with one thread.
            for (std::int64_t begin = 0; begin < count; begin += grain) {
                body(begin, std::min(count, begin + grain));
            }
            return;
        }
        if (count > 0) {
            std::atomic<std::int64_t>& next = begin_loop();
            for (;;) {
                const std::int64_t begin = next.fetch_add(grain, std::memory_order_relaxed);
                if (begin >= count) break;
                body(begin, std::min(count, begin + grain));
            }
        }
        barrier();
    }

private:
    friend class ThreadPool;
    Team(ThreadPool& pool, int index, int size) : pool_(pool), index_(index), size_(size) {}
    std::atomic<std::int64_t>& begin_loop();

    ThreadPool& pool_;
    const int index_;
    const int size_;
    std::uint32_t loops_ = 0;
};

class ThreadPool {
public:
    // `cores`: thread i stays on cores[i]; empty = wherever the system puts them. The thread that
    // calls run() is thread 0 and stays on cores[0] from then on. Throws std::invalid_argument.
    explicit ThreadPool(int num_threads, std::vector<int> cores = {});
    ~ThreadPool();
    ThreadPool(const ThreadPool&) = delete;
    ThreadPool& operator=(const ThreadPool&) = delete;

    int num_threads() const { return num_threads_; }
    // Runs `region` on all threads; returns when all are through. It must not throw. Callers of
    // several threads take turns. A region must not call run().
    void run(const std::function<void(Team&)>& region);

private:
    friend class Team;
    // Loops that threads may be in at a time: the next one can begin while some still leave one.
    static constexpr int kLoops = 4;
    struct alignas(64) Loop {
        std::atomic<std::int64_t> next{0};
    };

    void end();
    void work(int index);
    void meet(int size);
    void pin(int index) const;

    const int num_threads_;
    const std::vector<int> cores_;
    std::mutex running_;
    const std::function<void(Team&)>* region_ = nullptr;
    std::atomic<bool> closed_{false};
    Signal begun_;     // number of regions begun
    Signal passed_;    // number of barriers passed
    alignas(64) std::atomic<int> arrived_{0};
    Loop loops_[kLoops];
    std::vector<std::thread> threads_;
};

// The pool for regions of the calling thread: its own one if it has one, else that of the process, made
// at its first use with the cores that it may run on. `configure` sets another one for regions to come.
ThreadPool& thread_pool();
void configure_thread_pool(int num_threads, std::vector<int> cores);
// One of its own for the calling thread, the same for the same arguments. Threads of different lanes
// share none, so they never take turns.
void configure_lane_thread_pool(int lane, int num_threads, std::vector<int> cores);

}  // namespace seesaw
