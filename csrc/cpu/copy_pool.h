// Threads that copy KV tiles between a device pool and the host tier while Python computes.
//
// Owns the threads and the order of copies; knows nothing of Python, blocks or layouts. A job is
// strided: `pieces` (device blocks) times a box of tiles. Whoever submits has checked that it stays
// within its memory, and keeps both sides alive until the job is reported by next_done() or the
// pool is closed.

#pragma once

#include <array>
#include <chrono>
#include <condition_variable>
#include <cstddef>
#include <cstdint>
#include <deque>
#include <memory>
#include <mutex>
#include <optional>
#include <thread>
#include <vector>

namespace seesaw {

struct CopyJob {
    std::uint64_t key = 0;  // comes back in CopyDone
    const unsigned char* source = nullptr;
    unsigned char* target = nullptr;
    // Where each piece begins on both sides, in bytes; as many here as there.
    std::vector<std::int64_t> source_offsets;
    std::vector<std::int64_t> target_offsets;
    // Tiles of a piece: counts[0] x counts[1] x counts[2], and how far apart they lie, in bytes.
    std::array<std::int64_t, 3> counts{};
    std::array<std::int64_t, 3> source_strides{};
    std::array<std::int64_t, 3> target_strides{};
    std::size_t tile_bytes = 0;
};

struct CopyDone {
    std::uint64_t key = 0;
    std::uint64_t num_bytes = 0;  // counted while copying
    double seconds = 0.0;         // from the begin of the first copy to the end of the last
};

class CopyPool {
public:
    // At most `max_jobs` are unfinished at a time. Throws std::invalid_argument.
    CopyPool(int num_threads, std::size_t max_jobs);
    ~CopyPool();  // as close()
    CopyPool(const CopyPool&) = delete;
    CopyPool& operator=(const CopyPool&) = delete;

    // Returns at once, unless max_jobs are unfinished: then waits for one of them to finish. Jobs
    // begin in order and may end in any. Throws std::invalid_argument for a malformed job and
    // std::runtime_error where the pool is closed.
    void submit(CopyJob job);

    // Waits for a job that has finished and not been reported yet; nothing once the pool is closed.
    std::optional<CopyDone> next_done();

    // Stops after the copies of single pieces that are under way; jobs not finished by then are
    // dropped. No memory is touched after it returns. Wakes all who wait. Safe to call twice.
    void close();

private:
    using Clock = std::chrono::steady_clock;

    struct Active {
        CopyJob job;
        std::int64_t num_units = 0;       // (piece, first dim): what threads share out
        std::int64_t units_per_grab = 1;  // enough to make the lock cheap
        std::int64_t next_unit = 0;
        std::int64_t units_left = 0;
        std::uint64_t num_bytes = 0;
        Clock::time_point begin;
    };

    void run();
    void finish(const Active& active, Clock::time_point end);
    static std::uint64_t copy_units(const CopyJob& job, std::int64_t begin, std::int64_t end);

    const std::size_t max_jobs_;
    std::mutex mutex_;
    std::condition_variable work_;      // a job to begin or go on with, or closed
    std::condition_variable done_;      // something in finished_, or closed
    std::condition_variable has_room_;  // fewer than max_jobs_, or closed
    std::deque<std::shared_ptr<Active>> waiting_;  // those with units that nobody has taken
    std::deque<CopyDone> finished_;
    std::size_t num_unfinished_ = 0;
    bool closed_ = false;
    std::mutex joining_;  // two may close at a time
    std::vector<std::thread> threads_;
};

}  // namespace seesaw
