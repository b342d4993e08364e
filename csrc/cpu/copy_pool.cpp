#include "copy_pool.h"

#include <algorithm>
#include <cstring>
#include <stdexcept>
#include <utility>

#include "blocked_signals.h"

namespace seesaw {

namespace {

// A thread takes about this much at a time: some tens of microseconds of copying.
constexpr std::int64_t kGrabBytes = 256 * 1024;

}  // namespace

CopyPool::CopyPool(int num_threads, std::size_t max_jobs) : max_jobs_(max_jobs) {
    if (num_threads < 1) throw std::invalid_argument("num_threads: expected 1 or more");
    if (max_jobs < 1) throw std::invalid_argument("max_jobs: expected 1 or more");
    BlockedSignals blocked;
    try {
        for (int i = 0; i < num_threads; ++i) threads_.emplace_back([this] { run(); });
    } catch (...) {  // the system has no more threads: end those that began
        close();
        throw;
    }
}

CopyPool::~CopyPool() { close(); }

void CopyPool::submit(CopyJob job) {
    if (job.source_offsets.size() != job.target_offsets.size())
        throw std::invalid_argument("source_offsets and target_offsets differ in length");
    if (*std::min_element(job.counts.begin(), job.counts.end()) < 0)
        throw std::invalid_argument("counts: expected 0 or more");

    auto active = std::make_shared<Active>();
    const std::int64_t unit_tiles = job.counts[1] * job.counts[2];
    const std::int64_t unit_bytes = unit_tiles * static_cast<std::int64_t>(job.tile_bytes);
    const auto num_pieces = static_cast<std::int64_t>(job.source_offsets.size());
    active->num_units = unit_bytes > 0 ? num_pieces * job.counts[0] : 0;
    active->units_left = active->num_units;
    if (unit_bytes > 0) active->units_per_grab = std::max<std::int64_t>(1, kGrabBytes / unit_bytes);
    active->job = std::move(job);

    std::unique_lock lock(mutex_);
    has_room_.wait(lock, [this] { return closed_ || num_unfinished_ < max_jobs_; });
    if (closed_) throw std::runtime_error("the copy pool is closed");
    ++num_unfinished_;
    if (active->num_units == 0) {
        const auto now = Clock::now();
        active->begin = now;
        finish(*active, now);
        return;
    }
    waiting_.push_back(std::move(active));
    work_.notify_all();
}

std::optional<CopyDone> CopyPool::next_done() {
    std::unique_lock lock(mutex_);
    done_.wait(lock, [this] { return closed_ || !finished_.empty(); });
    if (closed_) return std::nullopt;
    const CopyDone done = finished_.front();
    finished_.pop_front();
    return done;
}

void CopyPool::close() {
    {
        std::lock_guard lock(mutex_);
        closed_ = true;
    }
    work_.notify_all();
    done_.notify_all();
    has_room_.notify_all();
    std::lock_guard lock(joining_);
    for (std::thread& thread : threads_)
        if (thread.joinable()) thread.join();
}

void CopyPool::run() {
    std::unique_lock lock(mutex_);
    while (true) {
        work_.wait(lock, [this] { return closed_ || !waiting_.empty(); });
        if (closed_) return;
        const std::shared_ptr<Active> active = waiting_.front();
        const std::int64_t begin = active->next_unit;
        const std::int64_t end = std::min(active->num_units, begin + active->units_per_grab);
        active->next_unit = end;
        if (begin == 0) active->begin = Clock::now();
        if (end == active->num_units) waiting_.pop_front();

        lock.unlock();
        const std::uint64_t num_bytes = copy_units(active->job, begin, end);
        const auto now = Clock::now();
        lock.lock();

        active->num_bytes += num_bytes;
        active->units_left -= end - begin;
        if (active->units_left == 0) finish(*active, now);
    }
}

// With the mutex held.
void CopyPool::finish(const Active& active, Clock::time_point end) {
    const std::chrono::duration<double> seconds = end - active.begin;
    finished_.push_back({active.job.key, active.num_bytes, seconds.count()});
    --num_unfinished_;
    done_.notify_one();
    has_room_.notify_one();
}

std::uint64_t CopyPool::copy_units(const CopyJob& job, std::int64_t begin, std::int64_t end) {
    std::uint64_t num_bytes = 0;
    for (std::int64_t unit = begin; unit < end; ++unit) {
        const auto piece = static_cast<std::size_t>(unit / job.counts[0]);
        const std::int64_t outer = unit % job.counts[0];
        const unsigned char* source =
            job.source + job.source_offsets[piece] + outer * job.source_strides[0];
        unsigned char* target =
            job.target + job.target_offsets[piece] + outer * job.target_strides[0];
        for (std::int64_t i = 0; i < job.counts[1]; ++i) {
            for (std::int64_t j = 0; j < job.counts[2]; ++j) {
                std::memcpy(target + i * job.target_strides[1] + j * job.target_strides[2],
                            source + i * job.source_strides[1] + j * job.source_strides[2],
                            job.tile_bytes);
                num_bytes += job.tile_bytes;
            }
        }
    }
    return num_bytes;
}

}  // namespace seesaw
