// Stand-alone test of csrc/cpu/copy_pool, compiled and run by test_copy_pool.py under sanitizers.
// argv[1] is the seed. Ends with 0 and prints the names of its cases, or names what failed.

#include <algorithm>
#include <atomic>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <memory>
#include <numeric>
#include <random>
#include <set>
#include <stdexcept>
#include <thread>
#include <vector>

#include "../../csrc/cpu/copy_pool.h"
#include "check.h"

using seesaw::CopyDone;
using seesaw::CopyJob;
using seesaw::CopyPool;

namespace {

std::mt19937_64 rng;

std::int64_t random_int(std::int64_t low, std::int64_t high) {
    return std::uniform_int_distribution<std::int64_t>(low, high)(rng);
}

using Bytes = std::vector<unsigned char>;

// A job between two buffers of its own, and what its target must hold afterwards. Tiles lie in
// random places of the target, with gaps, so that a copy to anywhere else shows.
struct Case {
    Bytes source, target, expected;
    CopyJob job;
    std::uint64_t num_bytes = 0;

    void check() const { CHECK(target == expected); }
};

std::unique_ptr<Case> random_case(std::uint64_t key, std::int64_t most_pieces) {
    auto made = std::make_unique<Case>();
    CopyJob& job = made->job;
    job.key = key;
    job.counts = {random_int(1, 5), random_int(1, 4), random_int(1, 2)};
    // Whole cache lines at aligned addresses are copied in another way than what is odd.
    const bool odd = random_int(0, 1);
    const std::int64_t unit = odd ? 1 : 64;
    job.tile_bytes = static_cast<std::size_t>(unit * random_int(1, odd ? 200 : 5));
    const auto tile = static_cast<std::int64_t>(job.tile_bytes);
    const std::int64_t gap = random_int(0, 1) ? 1 : 16;
    const std::int64_t num_pieces = random_int(1, most_pieces);
    // Strides of a random nesting of the dims (the order differs between pool and tier), gaps
    // included; returns the size of a piece.
    const auto nest = [&](std::array<std::int64_t, 3>& strides) {
        std::array<int, 3> order{0, 1, 2};
        std::shuffle(order.begin(), order.end(), rng);
        std::int64_t size = tile;
        for (const int dim : order) {
            strides[dim] = size + gap * random_int(0, 7);
            size = strides[dim] * job.counts[dim];
        }
        return size;
    };
    const std::int64_t source_size = nest(job.source_strides);
    const std::int64_t target_size = nest(job.target_strides);
    std::vector<std::int64_t> places(static_cast<std::size_t>(num_pieces + 2));
    std::iota(places.begin(), places.end(), 0);
    for (std::int64_t piece = 0; piece < num_pieces; ++piece)
        job.source_offsets.push_back(random_int(0, num_pieces) * source_size);
    std::shuffle(places.begin(), places.end(), rng);
    for (std::int64_t piece = 0; piece < num_pieces; ++piece)
        job.target_offsets.push_back(places[static_cast<std::size_t>(piece)] * target_size);
    made->source.resize(static_cast<std::size_t>((num_pieces + 1) * source_size));
    made->target.resize(static_cast<std::size_t>((num_pieces + 2) * target_size));
    for (auto& byte : made->source) byte = static_cast<unsigned char>(rng());
    for (auto& byte : made->target) byte = static_cast<unsigned char>(rng());
    job.source = made->source.data();
    job.target = made->target.data();

    made->expected = made->target;
    for (std::size_t piece = 0; piece < job.source_offsets.size(); ++piece)
        for (std::int64_t a = 0; a < job.counts[0]; ++a)
            for (std::int64_t b = 0; b < job.counts[1]; ++b)
                for (std::int64_t c = 0; c < job.counts[2]; ++c)
                    for (std::int64_t byte = 0; byte < tile; ++byte) {
                        const auto at = [&](const std::vector<std::int64_t>& offsets,
                                            const std::array<std::int64_t, 3>& strides) {
                            return static_cast<std::size_t>(offsets[piece] + a * strides[0] +
                                                            b * strides[1] + c * strides[2] + byte);
                        };
                        made->expected[at(job.target_offsets, job.target_strides)] =
                            made->source[at(job.source_offsets, job.source_strides)];
                        ++made->num_bytes;
                    }
    return made;
}

// Part `key` of 4 of one buffer to the same place of another, in tiles of 64 KiB: takes a while.
CopyJob long_job(std::uint64_t key, const Bytes& source, Bytes& target) {
    CopyJob job;
    job.key = key;
    job.source = source.data();
    job.target = target.data();
    job.tile_bytes = 64 * 1024;
    job.counts = {1, 1, 1};
    const std::size_t part = source.size() / 4;
    for (std::size_t at = key * part; at < (key + 1) * part; at += job.tile_bytes)
        job.source_offsets.push_back(static_cast<std::int64_t>(at));
    job.target_offsets = job.source_offsets;
    return job;
}

void test_random_jobs(int num_threads, std::size_t max_jobs) {
    constexpr std::uint64_t kJobs = 120;
    std::vector<std::unique_ptr<Case>> cases;
    for (std::uint64_t key = 0; key < kJobs; ++key)
        cases.push_back(random_case(key, key % 10 == 0 ? 600 : 6));
    CopyPool pool(num_threads, max_jobs);
    std::thread submitters[2];
    for (std::uint64_t part = 0; part < 2; ++part)
        submitters[part] = std::thread([&, part] {
            for (std::uint64_t key = part; key < kJobs; key += 2) pool.submit(cases[key]->job);
        });
    std::set<std::uint64_t> seen;
    for (std::uint64_t i = 0; i < kJobs; ++i) {
        const auto done = pool.next_done();
        CHECK(done.has_value());
        CHECK(seen.insert(done->key).second);
        CHECK(done->num_bytes == cases[done->key]->num_bytes);
        CHECK(done->seconds >= 0.0);
        cases[done->key]->check();  // complete when it is reported, not later
    }
    for (auto& submitter : submitters) submitter.join();
    pool.close();
    for (const auto& made : cases) made->check();
}

void test_large_tiles() {
    const Bytes source(8 << 20, static_cast<unsigned char>(3));
    Bytes target(8 << 20);
    CopyPool pool(2, 8);
    for (std::uint64_t key = 0; key < 4; ++key) {
        CopyJob job = long_job(key, source, target);
        job.tile_bytes = 2 << 20;
        job.source_offsets.resize(1);
        job.target_offsets.resize(1);
        pool.submit(std::move(job));
    }
    for (int i = 0; i < 4; ++i) CHECK(pool.next_done()->num_bytes == 2 << 20);
    CHECK(target == source);
}

void test_empty_jobs() {
    CopyPool pool(2, 8);
    const auto made = random_case(0, 3);
    std::vector<CopyJob> empty(5, made->job);
    empty[0].source_offsets.clear(), empty[0].target_offsets.clear();
    for (std::size_t dim = 0; dim < 3; ++dim) empty[1 + dim].counts[dim] = 0;
    empty[4].tile_bytes = 0;
    const Bytes before = made->target;
    for (const CopyJob& job : empty) {
        pool.submit(job);
        const auto done = pool.next_done();
        CHECK(done.has_value());
        CHECK(done->num_bytes == 0);
    }
    CHECK(made->target == before);
}

template <typename Error, typename Call>
void check_throws(Call call) {
    bool thrown = false;
    try {
        call();
    } catch (const Error&) {
        thrown = true;
    }
    CHECK(thrown);
}

void test_refusals() {
    check_throws<std::invalid_argument>([] { CopyPool(0, 1); });
    check_throws<std::invalid_argument>([] { CopyPool(1, 0); });
    CopyPool pool(1, 1);
    const auto made = random_case(0, 3);
    CopyJob uneven = made->job;
    uneven.source_offsets.push_back(0);
    check_throws<std::invalid_argument>([&] { pool.submit(uneven); });
    CopyJob negative = made->job;
    negative.counts[1] = -1;
    check_throws<std::invalid_argument>([&] { pool.submit(negative); });
    pool.submit(made->job);  // and is still of use
    CHECK(pool.next_done().has_value());
    made->check();
    pool.close();
    check_throws<std::runtime_error>([&] { pool.submit(made->job); });
    CHECK(!pool.next_done().has_value());
}

// Whatever is on its way when the pool is closed, its memory can be freed right afterwards.
void test_close_with_jobs_in_flight() {
    for (int round = 0; round < 20; ++round) {
        auto source = std::make_unique<Bytes>(4 << 20, static_cast<unsigned char>(7));
        auto target = std::make_unique<Bytes>(4 << 20);
        CopyPool pool(3, 64);
        for (std::uint64_t key = 0; key < 4; ++key) pool.submit(long_job(key, *source, *target));
        if (round % 2 == 0) std::this_thread::yield();
        pool.close();
        source.reset();
        target.reset();
        pool.close();
    }
}

void test_close_wakes_all_who_wait() {
    const Bytes source(16 << 20);
    Bytes target(16 << 20);
    CopyPool pool(1, 1);
    std::atomic<int> refused{0};
    pool.submit(long_job(0, source, target));
    std::thread submitter([&] {
        try {
            // Of these the second at least finds the pool full, or closed.
            while (true) pool.submit(long_job(1, source, target));
        } catch (const std::runtime_error&) {
            ++refused;
        }
    });
    CopyPool idle(2, 1);
    std::thread waiter([&] { CHECK(!idle.next_done().has_value()); });
    std::thread closers[2];
    for (auto& closer : closers)
        closer = std::thread([&] {
            pool.close();
            idle.close();
        });
    for (auto& closer : closers) closer.join();
    submitter.join();
    waiter.join();
    CHECK(refused == 1);
}

// A short job behind a long one is not held up by who waits for the long one's report.
void test_room_is_made_without_a_reader() {
    const auto first = random_case(0, 400);
    const auto second = random_case(1, 2);
    CopyPool pool(2, 1);
    pool.submit(first->job);
    pool.submit(second->job);  // waits for room, not for next_done()
    for (int i = 0; i < 2; ++i) CHECK(pool.next_done().has_value());
    first->check();
    second->check();
}

}  // namespace

int main(int argc, char** argv) {
    rng.seed(argc > 1 ? std::strtoull(argv[1], nullptr, 10) : 0);
    for (const int num_threads : {1, 2, 5})
        for (const std::size_t max_jobs : {1, 3, 1000}) test_random_jobs(num_threads, max_jobs);
    std::puts("random jobs");
    test_large_tiles();
    std::puts("large tiles");
    test_empty_jobs();
    std::puts("empty jobs");
    test_refusals();
    std::puts("refusals");
    test_close_with_jobs_in_flight();
    std::puts("close with jobs in flight");
    test_close_wakes_all_who_wait();
    std::puts("close wakes all who wait");
    test_room_is_made_without_a_reader();
    std::puts("room is made without a reader");
    return 0;
}
