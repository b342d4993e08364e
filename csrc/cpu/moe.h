// Mixtures of experts: a router chooses for each token a few of many gated MLPs.
//
//     out[t] = sum over the experts e of token t of weight * down_e(act(gate_e x[t]) * up_e x[t])
//
// Rows of tokens are put together expert by expert, so that an expert's weights are read once in a
// call, and only those of experts that some token has; the threads share the matrices of all of them
// as one loop. A rank has a range of the experts, and its part of the sum. Results of experts are
// rounded before they are weighted, and summed in float in the order of the token's list: a token's
// result does not depend on the tokens beside it.

#pragma once

#include <cstddef>
#include <cstdint>

#include "linear.h"
#include "thread_pool.h"

namespace seesaw {

// What a router has chosen: [tokens, top_k] each, no expert twice in a row.
struct Choice {
    std::int64_t tokens = 0;
    int top_k = 0;
    float* weights = nullptr;
    std::int32_t* experts = nullptr;
};

// Softmax in float over each row of `logits` [tokens, num_experts], and of it the top_k highest,
// highest first, the lowest expert of equals; `renormalize`: scaled to add up to 1. A NaN is lower
// than any number. Called by all threads of a region; done, and seen by all, on return.
void moe_route(Team& team, const float* logits, int num_experts, bool renormalize,
               const Choice& choice);

// Experts first .. first + count, of one shape. The panels of each follow those of the one before it
// in the same table.
struct Experts {
    Linear gate_up;  // of the first one
    Linear down;
    int first = 0;
    int count = 0;
    Activation activation = Activation::silu;
};

// One call, in four steps that all threads make in this order; each is done, and seen by all, on
// return. What is chosen beyond these experts counts for nothing.
class MoeCall {
public:
    static std::size_t scratch_bytes(const Experts& experts, std::int64_t tokens, int top_k);
    // `scratch`: shared by the team, on a cache line.
    MoeCall(const Experts& experts, const Choice& choice, void* scratch);

    // Puts rows of x together by expert. Of each expert that has some, `loads` goes up by 1.
    void gather(Team& team, const void* x, std::int64_t ld_x, std::int64_t* loads);
    void gate_up(Team& team);
    void down(Team& team);
    // out = the weighted sum, or out += with `add`: in float, rounded once.
    void sum(Team& team, bool add, void* out, std::int64_t ld_out);

private:
    struct Sorted;
    struct Layout;

    void sort(std::int64_t* loads, int num_threads);

    const Experts& experts_;
    const Choice choice_;
    Sorted* sorted_;
    LinearPart* gate_up_parts_;
    LinearPart* down_parts_;
    std::int64_t* starts_;    // of each expert: its first row
    std::int32_t* row_of_;    // [tokens, top_k]; -1 = of no expert here
    std::int32_t* token_of_;  // of each row
    std::byte* rows_;         // x of each row; then its result
    std::byte* inner_;
    std::int64_t ld_rows_;
    std::int64_t ld_inner_;
};

}  // namespace seesaw
