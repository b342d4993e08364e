// Kernels of csrc/cuda as C++, compiled and run by test_cuda.py under sanitizers.
// argv[1] is the seed. Ends with 0 and prints the names of its cases, or names what failed.

#include <cmath>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <memory>
#include <random>

#include "check.h"
#include "fake_cuda.h"

namespace copying {
#include "../../csrc/cuda/copy_pieces.cu"
}
namespace reducing {
#include "../../csrc/cuda/peer_all_reduce.cu"
}

namespace {

std::mt19937_64 rng;

std::uint64_t random_int(std::uint64_t low, std::uint64_t high) {
    return std::uniform_int_distribution<std::uint64_t>(low, high)(rng);
}

std::uint64_t address(const void* x) { return reinterpret_cast<std::uint64_t>(x); }

void pieces_arrive_and_nothing_else_changes() {
    const std::uint64_t units[] = {1, 4, 16};
    std::vector<char> source(400000), target(source.size()), expected;
    for (char& byte : source) byte = static_cast<char>(rng());
    for (char& byte : target) byte = static_cast<char>(rng());
    expected = target;
    std::vector<copying::Piece> pieces;
    std::uint64_t chunks = 0, used = 0;
    while (true) {
        const std::uint64_t unit = units[random_int(0, 2)];
        const std::uint64_t rows = random_int(1, 3);
        const std::uint64_t row_bytes = random_int(1, pieces.size() % 3 == 0 ? 70000 : 300);
        const std::uint64_t pitch = (row_bytes + random_int(0, 40) + unit - 1) / unit * unit;
        const std::uint64_t start = (used + unit - 1) / unit * unit;
        if (start + rows * pitch > target.size()) break;
        used = start + rows * pitch;
        const std::uint64_t from = random_int(0, source.size() - rows * pitch) / unit * unit;
        for (std::uint64_t row = 0; row < rows; ++row) {
            std::memcpy(&expected[start + row * pitch], &source[from + row * pitch], row_bytes);
        }
        pieces.push_back({address(&target[start]), address(&source[from]), pitch, pitch, row_bytes,
                          chunks});
        chunks += rows * ((row_bytes + CHUNK - 1) / CHUNK);
    }
    pieces.push_back({0, 0, 0, 0, 0, chunks});
    const int count = static_cast<int>(pieces.size()) - 1;
    launch(static_cast<unsigned int>(random_int(1, 5)), 7,
           [&] { copying::copy_pieces(pieces.data(), count); });
    CHECK(target == expected);
    std::puts("pieces arrive and nothing else changes");
}

// Calls of all sizes, one after another without a word between the ranks but the kernel's own.
template <typename Number, typename Kernel>
void ranks_get_the_same_sum(const char* name, Kernel kernel, double tolerance) {
    using Word = typename Number::Word;
    constexpr int RANKS = 3, CALLS = 12;
    constexpr unsigned int BLOCKS = 2, THREADS = 4;
    constexpr int WIDTH = 16 / sizeof(Word);
    constexpr long long MOST = 40, SLOT_BYTES = MOST * 16;
    std::vector<std::vector<uint4>> memory(
        RANKS, std::vector<uint4>((sizeof(reducing::Buffer) + 2 * SLOT_BYTES) / 16));
    reducing::Peers peers{};
    for (int rank = 0; rank < RANKS; ++rank) peers.buffer[rank] = address(memory[rank].data());
    std::vector<std::vector<std::vector<uint4>>> x(RANKS);  // by rank, by call
    std::vector<std::vector<double>> expected(CALLS);
    std::normal_distribution<float> normal;
    for (int call = 0; call < CALLS; ++call) {
        const long long packs = static_cast<long long>(random_int(1, MOST));
        expected[call].resize(packs * WIDTH);
        for (int rank = 0; rank < RANKS; ++rank) {
            std::vector<uint4> own(packs);
            Word* words = reinterpret_cast<Word*>(own.data());
            for (long long i = 0; i < packs * WIDTH; ++i) {
                const Word word = Number::narrow(normal(rng));
                std::memcpy(&words[i], &word, sizeof(Word));
                expected[call][i] += Number::wide(word);
            }
            x[rank].push_back(std::move(own));
        }
    }
    std::vector<std::thread> ranks;
    for (int rank = 0; rank < RANKS; ++rank) {
        ranks.emplace_back([&, rank] {
            for (std::vector<uint4>& own : x[rank]) {
                launch(BLOCKS, THREADS, [&, rank] {
                    kernel(own.data(), static_cast<long long>(own.size()), peers, rank, RANKS,
                           SLOT_BYTES);
                });
            }
        });
    }
    for (std::thread& rank : ranks) rank.join();
    for (int call = 0; call < CALLS; ++call) {
        const std::size_t bytes = x[0][call].size() * 16;
        for (int rank = 1; rank < RANKS; ++rank) {
            CHECK(std::memcmp(x[0][call].data(), x[rank][call].data(), bytes) == 0);
        }
        const char* words = reinterpret_cast<const char*>(x[0][call].data());
        for (std::size_t i = 0; i < expected[call].size(); ++i) {
            Word word;
            std::memcpy(&word, words + i * sizeof(Word), sizeof(Word));
            const double got = Number::wide(word);
            CHECK(std::abs(got - expected[call][i]) <= tolerance * (1 + std::abs(expected[call][i])));
        }
    }
    std::puts(name);
}

}  // namespace

int main(int, char** argv) {
    rng.seed(std::strtoull(argv[1], nullptr, 10));
    pieces_arrive_and_nothing_else_changes();
    ranks_get_the_same_sum<reducing::Float>("float32", reducing::all_reduce_float32, 1e-6);
    ranks_get_the_same_sum<reducing::Bfloat16>("bfloat16", reducing::all_reduce_bfloat16, 5e-3);
    ranks_get_the_same_sum<reducing::Half>("float16", reducing::all_reduce_float16, 1e-3);
    return 0;
}
