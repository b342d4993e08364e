// Stand-alone test of csrc/cpu/thread_pool, compiled and run by test_thread_pool.py under sanitizers.
// argv[1] is the seed. Ends with 0 and prints the names of its cases, or names what failed.

#include "../../csrc/cpu/thread_pool.h"
#include "check.h"

#include <atomic>
#include <chrono>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <random>
#include <stdexcept>
#include <thread>
#include <vector>

#include <sched.h>

using seesaw::Team;
using seesaw::ThreadPool;

namespace {

std::mt19937_64 rng;

std::int64_t random_int(std::int64_t low, std::int64_t high) {
    return std::uniform_int_distribution<std::int64_t>(low, high)(rng);
}

struct Loop {
    std::int64_t count, grain;
};

std::vector<Loop> random_loops(int most) {
    std::vector<Loop> loops(static_cast<std::size_t>(random_int(1, most)));
    for (Loop& loop : loops) loop = {random_int(0, 40), random_int(1, 9)};
    return loops;
}

// Every thread is there, with a number of its own.
void test_team(ThreadPool& pool) {
    std::vector<int> seen(static_cast<std::size_t>(pool.num_threads()));
    pool.run([&](Team& team) {
        CHECK(team.size() == pool.num_threads());
        ++seen[static_cast<std::size_t>(team.index())];
    });
    for (const int times : seen) CHECK(times == 1);
}

// Plain memory: that each item is done once, and seen by all threads once the loop is over, is what a
// race would break. Loops follow one another without anything between, empty ones and single pieces
// included; what one wrote, the next reads wherever it happens to run.
void test_loops(ThreadPool& pool) {
    const std::vector<Loop> loops = random_loops(12);
    std::vector<std::vector<int>> done;
    for (const Loop& loop : loops) done.emplace_back(static_cast<std::size_t>(loop.count));
    pool.run([&](Team& team) {
        for (std::size_t i = 0; i < loops.size(); ++i) {
            const Loop loop = loops[i];
            team.share(loop.count, loop.grain, [&](std::int64_t begin, std::int64_t end) {
                CHECK(begin % loop.grain == 0 && begin < end && end <= loop.count);
                CHECK(end - begin == loop.grain || end == loop.count);
                for (std::int64_t at = begin; at < end; ++at) ++done[i][static_cast<std::size_t>(at)];
                if (i > 0) {
                    for (const int times : done[i - 1]) CHECK(times == 1);
                }
            });
            for (const int times : done[i]) CHECK(times == 1);
        }
    });
    for (const auto& loop : done) {
        for (const int times : loop) CHECK(times == 1);
    }
}

// What a thread wrote before a barrier, all read after it.
void test_barriers(ThreadPool& pool) {
    const auto size = static_cast<std::size_t>(pool.num_threads());
    constexpr int kRounds = 50;
    std::vector<int> written(size);
    pool.run([&](Team& team) {
        const auto own = static_cast<std::size_t>(team.index());
        for (int round = 1; round <= kRounds; ++round) {
            written[own] = round;
            team.barrier();
            for (const int value : written) CHECK(value == round);
            if (round % 3 == 0) {
                team.share(5, 2, [](std::int64_t, std::int64_t) {});
            } else {
                team.barrier();
            }
        }
    });
}

// Threads that come late find the others asleep: spinning ends after some microseconds.
void test_sleepers(ThreadPool& pool) {
    int value = 0;
    for (int round = 0; round < 5; ++round) {
        std::this_thread::sleep_for(std::chrono::milliseconds(1));
        pool.run([&](Team& team) {
            if (team.index() == team.size() - 1) {
                std::this_thread::sleep_for(std::chrono::milliseconds(2));
                ++value;
            }
            team.barrier();
            CHECK(value == round + 1);
        });
    }
}

void test_many_regions(ThreadPool& pool) {
    std::int64_t total = 0;
    for (int region = 1; region <= 300; ++region) {
        pool.run([&](Team& team) {
            if (region % team.size() == team.index()) total += region;
        });
        CHECK(total == static_cast<std::int64_t>(region) * (region + 1) / 2);
    }
}

// Callers take turns: a region's plain counter belongs to one of them at a time.
void test_two_callers(ThreadPool& pool) {
    std::int64_t shared = 0;
    std::thread callers[2];
    for (std::thread& caller : callers) {
        caller = std::thread([&] {
            for (int region = 0; region < 100; ++region) {
                pool.run([&](Team& team) {
                    const std::int64_t before = shared;
                    team.barrier();
                    if (team.index() == 0) shared = before + 1;
                    team.barrier();
                    team.share(3, 1, [&](std::int64_t, std::int64_t) {
                        CHECK(shared == before + 1);
                    });
                });
            }
        });
    }
    for (std::thread& caller : callers) caller.join();
    CHECK(shared == 200);
}

void test_pools_come_and_go() {
    for (int round = 0; round < 30; ++round) {
        ThreadPool pool(1 + round % 4);
        int ran = 0;
        for (int region = 0; region < round % 3; ++region) {
            pool.run([&](Team& team) {
                if (team.index() == 0) ++ran;
            });
        }
        CHECK(ran == round % 3);
    }
}

// Also one that has the id of a thread that has ended.
void test_every_caller_stays_on_the_first_core() {
    cpu_set_t usable;
    CHECK(sched_getaffinity(0, sizeof usable, &usable) == 0);
    int core = 0;
    while (!CPU_ISSET(core, &usable)) ++core;
    ThreadPool pool(1, {core});
    for (int round = 0; round < 3; ++round) {
        std::thread([&] {
            pool.run([](Team&) {});
            cpu_set_t own;
            CHECK(sched_getaffinity(0, sizeof own, &own) == 0);
            CHECK(CPU_COUNT(&own) == 1 && CPU_ISSET(core, &own));
        }).join();
    }
}

template <typename Call>
void check_refused(Call call) {
    bool refused = false;
    try {
        call();
    } catch (const std::invalid_argument&) {
        refused = true;
    }
    CHECK(refused);
}

void test_refusals() {
    check_refused([] { ThreadPool(0); });
    check_refused([] { ThreadPool(2, {0}); });
    check_refused([] { ThreadPool(2, {0, 1, 2}); });
    check_refused([] { seesaw::configure_thread_pool(-1, {}); });
}

void test_pool_of_the_process() {
    CHECK(seesaw::thread_pool().num_threads() >= 1);
    seesaw::configure_thread_pool(3, {});
    CHECK(seesaw::thread_pool().num_threads() == 3);
    test_team(seesaw::thread_pool());
    seesaw::configure_thread_pool(1, {0});
    CHECK(seesaw::thread_pool().num_threads() == 1);
    test_team(seesaw::thread_pool());
}

// Two lanes run regions at the same time, on pools of the same shape, and go over to other ones
// between regions; the process keeps its own.
void test_pools_of_lanes() {
    seesaw::configure_thread_pool(3, {});
    std::atomic<int> inside{0};
    std::vector<std::thread> lanes;
    for (int lane = 0; lane < 2; ++lane) {
        lanes.emplace_back([&inside, lane] {
            for (int round = 0; round < 20; ++round) {
                const int num_threads = 1 + round % 2;
                seesaw::configure_lane_thread_pool(lane, num_threads, {});
                CHECK(seesaw::thread_pool().num_threads() == num_threads);
                seesaw::thread_pool().run([&](Team& team) {
                    // Only where lanes do not take turns does each see the other in here.
                    if (team.index() == 0) {
                        ++inside;
                        while (inside.load() < 2 * (round + 1)) std::this_thread::yield();
                    }
                    team.barrier();
                });
            }
            test_team(seesaw::thread_pool());
        });
    }
    for (std::thread& lane : lanes) lane.join();
    CHECK(seesaw::thread_pool().num_threads() == 3);
}

}  // namespace

int main(int argc, char** argv) {
    rng.seed(argc > 1 ? std::strtoull(argv[1], nullptr, 10) : 0);
    for (const int num_threads : {1, 2, 3, 5}) {
        ThreadPool pool(num_threads);
        test_team(pool);
        for (int round = 0; round < 20; ++round) test_loops(pool);
        test_barriers(pool);
        test_sleepers(pool);
        test_many_regions(pool);
        test_two_callers(pool);
        std::printf("%d threads\n", num_threads);
    }
    test_pools_come_and_go();
    test_every_caller_stays_on_the_first_core();
    std::puts("pools come and go");
    test_refusals();
    std::puts("refusals");
    test_pool_of_the_process();
    std::puts("the pool of the process");
    test_pools_of_lanes();
    std::puts("pools of lanes");
    return 0;
}
