#include "sampling.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <limits>
#include <type_traits>

#include "kernels/sampling.h"

namespace seesaw {

namespace {

using std::int64_t;

constexpr float kInfinity = std::numeric_limits<float>::infinity();

constexpr std::size_t aligned(std::size_t bytes) { return (bytes + 63) / 64 * 64; }

// What one thread works in, in one piece of memory.
struct Work {
    Bucket* buckets;
    double* chunk_sums;
    std::uint64_t* keys;  // what is sorted: the higher half by value, the lower the id
    std::uint32_t* ids;
    float* weights;

    static std::size_t bytes(int64_t vocab) {
        Work work{};
        return work.lay_out(nullptr, vocab);
    }
    Work(void* memory, int64_t vocab) { lay_out(static_cast<char*>(memory), vocab); }

private:
    Work() = default;
    std::size_t lay_out(char* memory, int64_t vocab) {
        const std::size_t n = static_cast<std::size_t>(vocab);
        const std::size_t chunks = n / kChunk + 1;
        std::size_t used = 0;
        const auto take = [&](auto*& pointer, std::size_t count) {
            pointer = reinterpret_cast<std::remove_reference_t<decltype(pointer)>>(
                reinterpret_cast<std::uintptr_t>(memory) + used);
            used += aligned(count * sizeof *pointer);
        };
        take(buckets, kBuckets);
        take(chunk_sums, chunks);
        take(keys, n);
        take(ids, n);
        take(weights, std::max<std::size_t>(n, kChunk));
        return used;
    }
};

std::uint32_t bits_of(float x) {
    std::uint32_t bits;
    std::memcpy(&bits, &x, sizeof bits);
    return bits;
}

float float_of(std::uint32_t bits) {
    float x;
    std::memcpy(&x, &bits, sizeof x);
    return x;
}

// The most probable tokens of a row: all of the buckets before `bucket`, the first `count` of it.
struct Kept {
    int bucket;
    int64_t count;
    double weight;
};

// A row by descending probability.
class OrderedRow {
public:
    OrderedRow(const LogitRow& row, const Work& work) : row_(row), work_(work) {
        sampling_kernels().histogram(row, work.buckets);
    }

    Kept all() const {
        Kept kept{kFarBucket - 1, work_.buckets[kFarBucket - 1].count, 0.0};
        for (int b = 0; b < kFarBucket; ++b) kept.weight += work_.buckets[b].weight;
        return kept;
    }

    // The first k, or all where there are fewer.
    Kept first(int64_t k) {
        double weight = 0.0;
        for (int b = 0; b < kFarBucket; ++b) {
            const Bucket& bucket = work_.buckets[b];
            if (bucket.count >= k) {
                if (bucket.count == k) return {b, k, weight + bucket.weight};
                sort(b);
                for (int64_t i = 0; i < k; ++i) weight += static_cast<double>(work_.weights[i]);
                return {b, k, weight};
            }
            k -= bucket.count;
            weight += bucket.weight;
        }
        return all();
    }

    // The fewest of `kept` that weigh `wanted` or more: one at least, all where these weigh less.
    Kept reaching(double wanted, const Kept& kept) {
        double weight = 0.0;
        for (int b = 0; b <= kept.bucket; ++b) {
            const Bucket& bucket = work_.buckets[b];
            const int64_t count = b == kept.bucket ? kept.count : bucket.count;
            if (count == 0) continue;
            const double through = b == kept.bucket ? kept.weight : weight + bucket.weight;
            if (through >= wanted) {
                sort(b);
                for (int64_t i = 0; i < count; ++i) {
                    weight += static_cast<double>(work_.weights[i]);
                    if (weight >= wanted) return {b, i + 1, weight};
                }
                return {b, count, weight};  // the sum in another order is less by a rounding
            }
            weight = through;
        }
        return kept;
    }

    // The token of `kept` in which the sum of weights passes `target`; -1 where none weighs more
    // than 0.
    int64_t at(double target, const Kept& kept) {
        double weight = 0.0;
        int last = -1;
        for (int b = 0; b <= kept.bucket; ++b) {
            const double own =
                b == kept.bucket ? kept.weight - weight : work_.buckets[b].weight;
            if (b == kept.bucket ? kept.count > 0 : own > 0.0) last = b;
            if (weight + own > target) break;
            weight += own;
        }
        // The target may be the whole weight, or lie past the sum by a rounding.
        for (; last >= 0; --last, target = kInfinity) {
            if (work_.buckets[last].weight <= 0.0) continue;
            const int64_t count = last == kept.bucket ? kept.count : work_.buckets[last].count;
            const int64_t token = in_bucket(last, count, weight, target);
            if (token >= 0) return token;
        }
        return -1;
    }

private:
    // As `at`, of the first `count` of a bucket, before which tokens of `weight` lie; past its end
    // the last that weighs anything.
    int64_t in_bucket(int b, int64_t count, double weight, double target) {
        sort(b);
        int64_t token = -1;
        for (int64_t i = 0; i < count && work_.weights[i] > 0.0f; ++i) {
            token = static_cast<int64_t>(work_.keys[i] & 0xffffffffu);
            weight += static_cast<double>(work_.weights[i]);
            if (weight > target) break;
        }
        return token;
    }

    // Keys and weights of a bucket's tokens, the most probable first.
    void sort(int b) {
        if (b == sorted_) return;
        sorted_ = b;
        const SamplingKernels& kernels = sampling_kernels();
        const int64_t count = kernels.collect(row_, b, b, work_.ids);
        for (int64_t i = 0; i < count; ++i) {
            const std::uint32_t id = work_.ids[i];
            const float distance = row_.highest - row_.logits[id] / row_.temperature;
            work_.keys[i] = std::uint64_t{bits_of(distance)} << 32 | id;
        }
        // Many equals, which are in order of their ids already, would take long.
        if (!std::is_sorted(work_.keys, work_.keys + count)) {
            std::sort(work_.keys, work_.keys + count);
        }
        for (int64_t i = 0; i < count; ++i) {
            work_.weights[i] = float_of(static_cast<std::uint32_t>(work_.keys[i] >> 32));
        }
        kernels.decay(work_.weights, count, work_.weights);
    }

    const LogitRow row_;
    const Work work_;
    int sorted_ = -1;
};

// The token in which the sum of weights passes `uniform` of all, by id; -1 where none weighs more
// than 0.
int64_t draw_by_id(const LogitRow& row, double uniform, const Work& work) {
    const SamplingKernels& kernels = sampling_kernels();
    kernels.chunk_sums(row, work.chunk_sums);
    const int64_t chunks = (row.vocab + kChunk - 1) / kChunk;
    double total = 0.0;
    for (int64_t c = 0; c < chunks; ++c) total += work.chunk_sums[c];
    double left = uniform * total;
    int64_t chosen = -1;
    for (int64_t c = 0; c < chunks; ++c) {
        if (work.chunk_sums[c] <= 0.0) continue;
        chosen = c;
        if (work.chunk_sums[c] > left) break;
        left -= work.chunk_sums[c];
    }
    if (chosen < 0) return -1;
    const int64_t begin = chosen * kChunk, count = std::min(kChunk, row.vocab - begin);
    kernels.weights(row, begin, work.weights);
    int64_t token = -1;
    double weight = 0.0;
    for (int64_t i = 0; i < count; ++i) {
        if (work.weights[i] <= 0.0f) continue;
        token = begin + i;
        weight += static_cast<double>(work.weights[i]);
        if (weight > left) break;
    }
    return token;
}

int64_t draw(const Sampling& args, int64_t index, const Work& work) {
    const float* logits = args.logits + index * args.ld_logits;
    const Highest top = sampling_kernels().highest(logits, args.vocab);
    const float temperature = args.temperature[index];
    const float highest = top.value / temperature;
    if (temperature == 0.0f || !std::isfinite(highest)) return top.id;
    const float most = -std::log(args.min_p[index]);
    const LogitRow row{logits, args.vocab, temperature, highest, most};
    const int64_t k = args.top_k[index];
    const double top_p = static_cast<double>(args.top_p[index]), uniform = args.uniform[index];
    const bool has_k = k > 0 && k < args.vocab;
    int64_t token;
    if (has_k || top_p < 1.0) {
        OrderedRow ordered(row, work);
        Kept kept = has_k ? ordered.first(k) : ordered.all();
        if (top_p < 1.0) kept = ordered.reaching(top_p * kept.weight, kept);
        token = ordered.at(uniform * kept.weight, kept);
    } else {
        token = draw_by_id(row, uniform, work);
    }
    return token < 0 ? top.id : token;
}

void describe(const Logprobs& args, int64_t index, const Work& work) {
    const SamplingKernels& kernels = sampling_kernels();
    const float* logits = args.logits + index * args.ld_logits;
    const float highest = kernels.highest(logits, args.vocab).value;
    const LogitRow row{logits, args.vocab, 1.0f, highest, kInfinity};
    kernels.chunk_sums(row, work.chunk_sums);
    double total = 0.0;
    for (int64_t c = 0; c * kChunk < args.vocab; ++c) total += work.chunk_sums[c];
    const double norm = static_cast<double>(highest) + std::log(total);
    const auto logprob = [&](float logit) {
        return static_cast<float>(static_cast<double>(logit) - norm);
    };
    const float chosen = logits[args.tokens[index]];
    args.logprobs[index] = logprob(chosen);
    args.ranks[index] = kernels.count_above(logits, args.vocab, chosen) + 1;
    if (args.top == 0) return;

    kernels.histogram(row, work.buckets);
    int last = 0;
    for (int64_t found = work.buckets[0].count; found < args.top; ) {
        found += work.buckets[++last].count;
    }
    const int64_t count = kernels.collect(row, 0, last, work.ids);
    for (int64_t i = 0; i < count; ++i) {
        const std::uint32_t id = work.ids[i];
        // Bits in the order of the value; + 0.0f makes one zero of two.
        const std::uint32_t bits = bits_of(logits[id] + 0.0f);
        const std::uint32_t ascending = bits & 0x80000000u ? ~bits : bits | 0x80000000u;
        work.keys[i] = std::uint64_t{~ascending} << 32 | id;
    }
    std::partial_sort(work.keys, work.keys + args.top, work.keys + count);
    for (int64_t i = 0; i < args.top; ++i) {
        const int64_t id = static_cast<int64_t>(work.keys[i] & 0xffffffffu);
        args.top_ids[index * args.top + i] = id;
        args.top_logprobs[index * args.top + i] = logprob(logits[id]);
    }
}

// f(row, work of this thread) for each row.
template <class F>
void for_rows(Team& team, int64_t rows, int64_t vocab, void* scratch, F&& f) {
    char* own = static_cast<char*>(scratch) + static_cast<std::size_t>(team.index()) *
                                                  sampling_scratch_bytes(vocab);
    const Work work(own, vocab);
    team.share(rows, 1, [&](int64_t row, int64_t) { f(row, work); });
}

}  // namespace

std::size_t sampling_scratch_bytes(std::int64_t vocab) { return Work::bytes(vocab); }

void sample(Team& team, const Sampling& args, void* scratch) {
    for_rows(team, args.rows, args.vocab, scratch, [&](int64_t row, const Work& work) {
        args.tokens[row] = draw(args, row, work);
    });
}

void logprobs(Team& team, const Logprobs& args, void* scratch) {
    for_rows(team, args.rows, args.vocab, scratch,
             [&](int64_t row, const Work& work) { describe(args, row, work); });
}

}  // namespace seesaw
