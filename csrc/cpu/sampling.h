// Draws tokens from rows of logits, and says how probable tokens are.
//
// Rows are not sorted. One pass puts the tokens of a row into buckets by their distance from the
// highest logit; what top_k and top_p keep and where the random number falls is found bucket by
// bucket, and only the buckets where these lie are sorted.
//
// Called by all threads of a region, a row per thread at a time; done, and seen by all, on return.

#pragma once

#include <cstddef>
#include <cstdint>

#include "thread_pool.h"

namespace seesaw {

struct Sampling {
    std::int64_t rows = 0;
    std::int64_t vocab = 0;               // 1 .. 2^31 - 1
    const float* logits = nullptr;
    std::int64_t ld_logits = 0;
    // Of each row. 0 = the highest logit, the lowest id of equals, whatever else is set.
    const float* temperature = nullptr;
    const std::int64_t* top_k = nullptr;  // 0 or vocab and more = all
    const float* top_p = nullptr;         // 1 = all
    const float* min_p = nullptr;         // 0 = all
    const double* uniform = nullptr;      // in [0, 1)
    std::int64_t* tokens = nullptr;
};
// Probable tokens first, equals by id, where top_k or top_p is set, else by id, the token in which
// the sum of probabilities passes the uniform number. Weights in float, their sums in double. A row
// without a finite highest logit gives its highest.
void sample(Team& team, const Sampling& args, void* scratch);

struct Logprobs {
    std::int64_t rows = 0;
    std::int64_t vocab = 0;
    const float* logits = nullptr;
    std::int64_t ld_logits = 0;
    const std::int64_t* tokens = nullptr;  // of each row
    std::int64_t top = 0;                  // 0 .. vocab
    float* logprobs = nullptr;             // of those tokens
    std::int64_t* ranks = nullptr;         // 1 + number of higher logits
    std::int64_t* top_ids = nullptr;       // [rows, top] highest first, equals by id
    float* top_logprobs = nullptr;
};
void logprobs(Team& team, const Logprobs& args, void* scratch);

// Per thread; scratch is so many bytes for each, 64-byte aligned.
std::size_t sampling_scratch_bytes(std::int64_t vocab);

}  // namespace seesaw
