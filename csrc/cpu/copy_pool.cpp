#include "copy_pool.h"

#include <algorithm>
#include <cstring>
#include <stdexcept>
#include <utility>

#if defined(__x86_64__)
#include <emmintrin.h>
#endif

#include "blocked_signals.h"

namespace seesaw {

namespace {

// A thread takes about this much at a time: some tens of microseconds of copying.
constexpr std::int64_t kGrabBytes = 256 * 1024;

struct Tile {
    const unsigned char* source = nullptr;
    unsigned char* target = nullptr;
};

// Past the caches, where what computes beside has its data: nobody reads a tile soon, and a line that
// is written whole need not be read first, which is a third of what memory has to do. Tiles are too
// short, and lie too far apart, for the processor to foresee the next one: it is fetched meanwhile.
void copy_tile(const Tile& tile, const Tile& next, std::size_t bytes) {
#if defined(__x86_64__)
    if (bytes % 64 == 0 && reinterpret_cast<std::uintptr_t>(tile.target) % 16 == 0) {
        for (std::size_t at = 0; at < bytes; at += 64) {
            _mm_prefetch(reinterpret_cast<const char*>(next.source) + at, _MM_HINT_T0);
            const auto* from = reinterpret_cast<const __m128i*>(tile.source + at);
            auto* to = reinterpret_cast<__m128i*>(tile.target + at);
            const __m128i a = _mm_loadu_si128(from), b = _mm_loadu_si128(from + 1);
            const __m128i c = _mm_loadu_si128(from + 2), d = _mm_loadu_si128(from + 3);
            _mm_stream_si128(to, a);
            _mm_stream_si128(to + 1, b);
            _mm_stream_si128(to + 2, c);
            _mm_stream_si128(to + 3, d);
        }
        return;
    }
#endif
    static_cast<void>(next);
    std::memcpy(tile.target, tile.source, bytes);
}

// What copy_tile wrote is seen by whoever is told afterwards.
void end_copies() {
#if defined(__x86_64__)
    _mm_sfence();
#endif
}

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
    Tile tile;
    for (std::int64_t unit = begin; unit < end; ++unit) {
        const auto piece = static_cast<std::size_t>(unit / job.counts[0]);
        const std::int64_t outer = unit % job.counts[0];
        const unsigned char* source =
            job.source + job.source_offsets[piece] + outer * job.source_strides[0];
        unsigned char* target =
            job.target + job.target_offsets[piece] + outer * job.target_strides[0];
        for (std::int64_t i = 0; i < job.counts[1]; ++i) {
            for (std::int64_t j = 0; j < job.counts[2]; ++j) {
                const Tile next{source + i * job.source_strides[1] + j * job.source_strides[2],
                                target + i * job.target_strides[1] + j * job.target_strides[2]};
                if (tile.source != nullptr) copy_tile(tile, next, job.tile_bytes);
                tile = next;
                num_bytes += job.tile_bytes;
            }
        }
    }
    if (tile.source != nullptr) copy_tile(tile, tile, job.tile_bytes);
    end_copies();
    return num_bytes;
}

}  // namespace seesaw
