// Passes over one row of logits (see ../sampling.h).

#pragma once

#include <cstdint>

#include "../isa.h"

namespace seesaw {

struct Highest {
    float value;
    std::int64_t id;  // the lowest of equals; NaN is never the highest unless all are
};

// A row as it is drawn from: a token's weight is e^-distance, with its distance = highest x - x and
// x = logit / temperature; 0 where the distance is more than `most`.
struct LogitRow {
    const float* logits;
    std::int64_t vocab;
    float temperature;
    float highest;  // x
    float most;
};

struct Bucket {
    double weight;
    std::int64_t count;
};

// Distances of 0 .. 127 in buckets that grow with the distance: 2^7 from 2^e - 1 to 2^(e + 1) - 1.
// What lies beyond, and what weighs nothing because of `most`, comes last.
inline constexpr int kBucketBits = 7;
inline constexpr int kFarBucket = 7 << kBucketBits;
inline constexpr int kBuckets = kFarBucket + 1;

inline constexpr std::int64_t kChunk = 256;

struct SamplingKernels {
    Highest (*highest)(const float* logits, std::int64_t vocab);
    // Number of logits above `value`.
    std::int64_t (*count_above)(const float* logits, std::int64_t vocab, float value);
    // Sum of weights of each kChunk tokens.
    void (*chunk_sums)(const LogitRow& row, double* sums);
    // Weights of the tokens from `begin` on, of kChunk at most.
    void (*weights)(const LogitRow& row, std::int64_t begin, float* weights);
    // Fills `buckets`, kBuckets of them.
    void (*histogram)(const LogitRow& row, Bucket* buckets);
    // The tokens in buckets first .. last, by id; returns how many.
    std::int64_t (*collect)(const LogitRow& row, int first, int last, std::uint32_t* ids);
    // e^-x
    void (*decay)(const float* x, std::int64_t count, float* out);
};

SEESAW_KERNELS(SamplingKernels, sampling_kernels)

}  // namespace seesaw
