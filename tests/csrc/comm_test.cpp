// Stand-alone test of csrc/cpu/{shm,tcp}_comm, compiled and run by test_comm.py under sanitizers:
// ranks are threads, over one piece of memory or over pairs of sockets. argv[1] is the seed. Ends
// with 0 and prints the names of its cases, or names what failed.

#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <functional>
#include <memory>
#include <new>
#include <random>
#include <stdexcept>
#include <string>
#include <thread>
#include <vector>

#include <sys/socket.h>
#include <unistd.h>

#include "../../csrc/cpu/shm_comm.h"
#include "../../csrc/cpu/tcp_comm.h"
#include "check.h"

using namespace seesaw;

namespace {

std::uint64_t seed = 0;
constexpr double kTimeoutS = 60.0;
constexpr int kRingSlots = 2;
constexpr std::int64_t kSlotBytes = 4000;

using Bytes = std::vector<unsigned char>;
using Rng = std::mt19937_64;

std::int64_t random_int(Rng& rng, std::int64_t low, std::int64_t high) {
    return std::uniform_int_distribution<std::int64_t>(low, high)(rng);
}

void dawdle(Rng& rng) {
    const std::int64_t kind = random_int(rng, 0, 19);
    if (kind == 0) std::this_thread::sleep_for(std::chrono::microseconds(300));
    if (kind == 1) std::this_thread::yield();
}

// What ranks are connected by.
struct Ground {
    virtual ~Ground() = default;
    virtual std::unique_ptr<Links> join(int rank) = 0;
};

struct ShmGround : Ground {
    explicit ShmGround(int num_ranks) : shape{num_ranks, kRingSlots, kSlotBytes} {
        const auto size = static_cast<std::size_t>(ShmMemory::num_bytes(shape));
        memory = ::operator new(size, std::align_val_t(64));
        std::memset(memory, 0, size);
    }
    ~ShmGround() override { ::operator delete(memory, std::align_val_t(64)); }
    std::unique_ptr<Links> join(int rank) override {
        return std::make_unique<ShmLinks>(memory, shape, rank, kTimeoutS);
    }
    ShmShape shape;
    void* memory;
};

struct TcpGround : Ground {
    explicit TcpGround(int num_ranks) {
        const auto count = static_cast<std::size_t>(num_ranks);
        sockets.assign(count, std::vector<int>(count, -1));
        for (std::size_t a = 0; a < count; ++a) {
            for (std::size_t b = 0; b < a; ++b) {
                int pair[2];
                CHECK(socketpair(AF_UNIX, SOCK_STREAM, 0, pair) == 0);
                sockets[a][b] = pair[0];
                sockets[b][a] = pair[1];
            }
        }
    }
    std::unique_ptr<Links> join(int rank) override {
        return std::make_unique<TcpLinks>(sockets[static_cast<std::size_t>(rank)], rank, kRingSlots,
                                          kTimeoutS);
    }
    std::vector<std::vector<int>> sockets;
};

using Task = std::function<void(Links&, int rank, Rng&)>;
using Make = std::function<std::unique_ptr<Ground>(int num_ranks)>;

void run_ranks(const Make& make, int num_ranks, const Task& task) {
    const auto ground = make(num_ranks);
    std::vector<std::thread> ranks;
    for (int rank = 0; rank < num_ranks; ++rank) {
        ranks.emplace_back([&, rank] {
            Rng rng(seed + static_cast<std::uint64_t>(rank) * 7919);
            const auto links = ground->join(rank);
            task(*links, rank, rng);
        });
    }
    for (std::thread& rank : ranks) rank.join();
}

float widen(bf16 x) {
    const std::uint32_t bits = static_cast<std::uint32_t>(x.bits) << 16;
    float out;
    std::memcpy(&out, &bits, 4);
    return out;
}

bf16 narrow(float x) {
    std::uint32_t bits;
    std::memcpy(&bits, &x, 4);
    return {static_cast<std::uint16_t>((bits + 0x7fffu + ((bits >> 16) & 1u)) >> 16)};
}

// Numbers of a rank, the same whoever asks.
std::vector<float> numbers(int turn, int rank, std::int64_t count) {
    auto state = static_cast<std::uint32_t>(seed * 31 + static_cast<std::uint64_t>(turn * 64 + rank));
    std::vector<float> out(static_cast<std::size_t>(count));
    for (float& x : out) {
        state = state * 1664525u + 1013904223u;
        x = static_cast<float>(static_cast<int>(state >> 8) - (1 << 23)) / 1000.0f;
    }
    return out;
}

void check_sum(Comm& comm, const std::vector<int>& members, int turn, std::int64_t count) {
    const int own = members[static_cast<std::size_t>(comm.rank())];
    std::vector<float> floats = numbers(turn, own, count), total(floats.size(), 0.0f);
    std::vector<float> halves_total(floats.size(), 0.0f);
    std::vector<bf16> halves(floats.size());
    for (std::size_t i = 0; i < floats.size(); ++i) halves[i] = narrow(floats[i]);
    for (const int member : members) {
        const std::vector<float> theirs = numbers(turn, member, count);
        for (std::size_t i = 0; i < total.size(); ++i) {
            total[i] = member == members[0] ? theirs[i] : total[i] + theirs[i];
            const float half = widen(narrow(theirs[i]));
            halves_total[i] = member == members[0] ? half : halves_total[i] + half;
        }
    }
    comm.all_reduce(floats.data(), count, DType::f32);
    comm.all_reduce(halves.data(), count, DType::bf16);
    for (std::size_t i = 0; i < total.size(); ++i) {
        CHECK(floats[i] == total[i]);
        CHECK(halves[i].bits == narrow(halves_total[i]).bits);
    }
}

void check_gather(Comm& comm, const std::vector<int>& members, int turn, std::int64_t count) {
    const int own = members[static_cast<std::size_t>(comm.rank())];
    const std::vector<float> in = numbers(turn, own, count);
    std::vector<float> out(in.size() * members.size());
    comm.all_gather(in.data(), out.data(), count * 4);
    for (std::size_t i = 0; i < members.size(); ++i) {
        const std::vector<float> theirs = numbers(turn, members[i], count);
        CHECK(std::equal(theirs.begin(), theirs.end(), out.begin() + i * in.size()));
    }
}

// Sizes around what is sent at a time, and beyond.
constexpr std::int64_t kCounts[] = {1, 3, 64, 4097, 8192, 0, 30011, 33000, 70003};

void test_sums_and_gathers(const Make& make, int num_ranks) {
    run_ranks(make, num_ranks, [&](Links& links, int rank, Rng& rng) {
        // Groups of all ranks and, in turns with them, of pairs.
        std::vector<int> all, pair{rank / 2 * 2, rank / 2 * 2 + 1};
        for (int i = 0; i < num_ranks; ++i) all.push_back(i);
        const auto whole = links.comm(all);
        const auto half = num_ranks == 4 ? links.comm(pair) : nullptr;
        CHECK(whole->size() == num_ranks);
        CHECK(whole->rank() == rank);
        for (int turn = 0; turn < 9; ++turn) {
            const std::int64_t count = kCounts[turn % 9];
            dawdle(rng);
            check_sum(*whole, all, turn, count);
            dawdle(rng);
            if (half) check_sum(*half, pair, turn, count / 3);
            check_gather(*whole, all, turn, count / 2);
            if (half) check_gather(*half, pair, turn, count);
        }
        // So many in a row that nothing but the ranks' own order keeps them apart.
        for (int turn = 0; turn < 100; ++turn) {
            float x = static_cast<float>(turn + rank);
            whole->all_reduce(&x, 1, DType::f32);
            CHECK(x == static_cast<float>(num_ranks * turn + num_ranks * (num_ranks - 1) / 2));
        }
    });
}

Bytes message(int from, int to, int number) {
    Rng rng(seed + static_cast<std::uint64_t>((from * 8 + to) * 1000 + number));
    Bytes out(static_cast<std::size_t>(number % 7 == 6 ? 250000 : random_int(rng, 1, 12000)));
    const auto first = static_cast<unsigned char>(rng());
    for (std::size_t i = 0; i < out.size(); ++i) out[i] = static_cast<unsigned char>(first + 7 * i);
    return out;
}

// From each rank to the next, which may be late; the memory is used again at once.
void test_hand_over(const Make& make, int num_ranks) {
    run_ranks(make, num_ranks, [&](Links& links, int rank, Rng& rng) {
        for (int number = 0; number < 20; ++number) {
            dawdle(rng);
            if (rank > 0) {
                const Bytes expected = message(rank - 1, rank, number);
                Bytes got(expected.size());
                links.receive(rank - 1, got.data(), static_cast<std::int64_t>(got.size()));
                CHECK(got == expected);
            }
            if (rank + 1 < num_ranks) {
                Bytes out = message(rank, rank + 1, number);
                links.send(rank + 1, out.data(), static_cast<std::int64_t>(out.size()));
                std::fill(out.begin(), out.end(), static_cast<unsigned char>(0));
            }
        }
    });
}

// All send all others more than slots and sockets hold, and only then receive.
void test_exchange(const Make& make, int num_ranks) {
    run_ranks(make, num_ranks, [&](Links& links, int rank, Rng& rng) {
        for (int turn = 0; turn < 2; ++turn) {
            std::vector<Bytes> out, in, expected;
            std::vector<Parcel> sends, receives;
            for (int number = turn; number < turn + 8; ++number) {
                for (int peer = 0; peer < num_ranks; ++peer) {
                    if (peer == rank) continue;
                    out.push_back(message(rank, peer, number));
                    expected.push_back(message(peer, rank, number));
                    in.emplace_back(expected.back().size());
                    sends.push_back({peer, out.back().data(),
                                     static_cast<std::int64_t>(out.back().size())});
                    receives.push_back({peer, in.back().data(),
                                        static_cast<std::int64_t>(in.back().size())});
                }
            }
            dawdle(rng);
            links.exchange(sends, receives);
            CHECK(in == expected);
        }
    });
}

template <typename Call>
void check_fails(const char* about, Call call) {
    try {
        call();
    } catch (const std::runtime_error& error) {
        if (std::strstr(error.what(), about) != nullptr) return;
        std::fprintf(stderr, "'%s' is not about '%s'\n", error.what(), about);
        std::exit(1);
    }
    CHECK(!"no error");
}

// What a rank sent before it left still arrives; then it is an error to wait for it.
void test_leaving(const Make& make) {
    run_ranks(make, 3, [&](Links& links, int rank, Rng&) {
        const auto comm = links.comm({0, 1, 2});
        float x = 1.0f;
        comm->all_reduce(&x, 1, DType::f32);
        CHECK(x == 3.0f);
        int number = 17;
        if (rank == 1) {
            links.send(2, &number, sizeof number);
            links.close();
            check_fails("rank 1 has left", [&] { links.send(2, &number, sizeof number); });
            return;
        }
        std::this_thread::sleep_for(std::chrono::milliseconds(rank == 2 ? 20 : 0));
        if (rank == 2) {
            number = 0;
            links.receive(1, &number, sizeof number);
            CHECK(number == 17);
            check_fails("rank 1", [&] { links.receive(1, &number, sizeof number); });
        } else {
            check_fails("rank 1", [&] { links.receive(1, &number, sizeof number); });
        }
        // The two that are left still reach each other.
        const int other = 2 - rank;
        links.send(other, &rank, sizeof rank);
        links.receive(other, &number, sizeof number);
        CHECK(number == other);
        check_fails("rank 1", [&] { comm->all_reduce(&x, 1, DType::f32); });
        Bytes large(5000000);
        check_fails("rank 1", [&] {
            links.exchange({{1, large.data(), 5000000}}, {{1, large.data(), 10}});
        });
    });
}

void test_silence() {
    const ShmShape shape{2, kRingSlots, kSlotBytes};
    Bytes memory(static_cast<std::size_t>(ShmMemory::num_bytes(shape)) + 64);
    void* at = memory.data();
    std::size_t space = memory.size();
    at = std::align(64, memory.size() - 64, at, space);
    check_fails("rank 1: nothing heard of it", [&] { ShmLinks(at, shape, 0, 0.3); });

    int pair[2];
    CHECK(socketpair(AF_UNIX, SOCK_STREAM, 0, pair) == 0);
    TcpLinks one({-1, pair[0]}, 0, kRingSlots, 0.3), other({pair[1], -1}, 1, kRingSlots, 0.3);
    char byte = 0;
    check_fails("rank 1 is gone: it sent nothing", [&] { one.receive(1, &byte, 1); });
    std::vector<char> large(5000000);
    check_fails("rank 1 is gone: it took nothing", [&] {
        for (int i = 0; i < 9; ++i) one.send(1, large.data(), 5000000);
    });
}

// A peer that is played by hand: it has sent its numbers before it reads any. What it then reads are
// this rank's own numbers, though sums have come to stand in their place.
void test_slow_reader(std::int64_t count) {
    int pair[2];
    CHECK(socketpair(AF_UNIX, SOCK_STREAM, 0, pair) == 0);
    TcpLinks links({-1, pair[0]}, 0, kRingSlots, kTimeoutS);
    const std::vector<float> ours = numbers(1, 0, count), theirs = numbers(1, 1, count);
    std::vector<float> total = ours, read(ours.size());
    std::thread summing([&] {
        links.comm({0, 1})->all_reduce(total.data(), count, DType::f32);
    });
    std::thread writing([&] {
        const auto* at = reinterpret_cast<const char*>(theirs.data());
        for (std::size_t left = theirs.size() * 4; left > 0;) {
            const ssize_t sent = ::send(pair[1], at, left, 0);
            CHECK(sent > 0);
            at += sent;
            left -= static_cast<std::size_t>(sent);
        }
    });
    std::this_thread::sleep_for(std::chrono::milliseconds(200));
    const auto size = static_cast<ssize_t>(read.size() * 4);
    CHECK(recv(pair[1], read.data(), read.size() * 4, MSG_WAITALL) == size);
    summing.join();
    writing.join();
    ::close(pair[1]);
    CHECK(read == ours);
    for (std::size_t i = 0; i < total.size(); ++i) CHECK(total[i] == ours[i] + theirs[i]);
}

template <typename Call>
void check_refused(Call call) {
    try {
        call();
    } catch (const std::invalid_argument&) {
        return;
    }
    CHECK(!"not refused");
}

void test_refusals(const Make& make) {
    check_refused([] { ShmMemory::num_bytes({1, 2, 100}); });
    check_refused([] { ShmMemory::num_bytes({2, 3, 100}); });
    check_refused([] { ShmMemory::num_bytes({2, 2, 0}); });
    check_refused([] { TcpLinks({}, 0, 2, 1.0); });
    run_ranks(make, 2, [](Links& links, int rank, Rng&) {
        check_refused([&] { links.comm({1 - rank}); });
        check_refused([&] { links.comm({0, 1, 2}); });
    });
}

}  // namespace

int main(int argc, char** argv) {
    seed = argc > 1 ? std::strtoull(argv[1], nullptr, 10) : 0;
    const std::pair<const char*, Make> kinds[] = {
        {"shm", [](int num_ranks) { return std::make_unique<ShmGround>(num_ranks); }},
        {"tcp", [](int num_ranks) { return std::make_unique<TcpGround>(num_ranks); }},
    };
    for (const auto& [name, make] : kinds) {
        for (const int num_ranks : {2, 3, 4}) {
            test_sums_and_gathers(make, num_ranks);
            test_hand_over(make, num_ranks);
            test_exchange(make, num_ranks);
        }
        test_leaving(make);
        test_refusals(make);
        std::printf("%s\n", name);
        std::fflush(stdout);
    }
    test_slow_reader(65536);
    test_slow_reader(150001);
    std::puts("slow reader");
    test_silence();
    std::puts("silence");
    return 0;
}
