#include "moe.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <limits>
#include <utility>

#include "rows.h"
#include "scratch.h"

namespace seesaw {

namespace {

// The top_k highest of `logits`, to `experts`, and their logits to `values`. One pass, in which few
// numbers but the first ones find a place.
void choose(const float* logits, int num_experts, int top_k, float* values, std::int32_t* experts) {
    int found = 0;
    for (int expert = 0; expert < num_experts; ++expert) {
        const float logit = std::isnan(logits[expert]) ? -std::numeric_limits<float>::infinity()
                                                       : logits[expert];
        if (found == top_k && !(logit > values[top_k - 1])) continue;
        int place = found < top_k ? found++ : top_k - 1;
        for (; place > 0 && logit > values[place - 1]; --place) {
            values[place] = values[place - 1];
            experts[place] = experts[place - 1];
        }
        values[place] = logit;
        experts[place] = expert;
    }
}

void route_token(const float* logits, int num_experts, bool renormalize, int top_k, float* weights,
                 std::int32_t* experts) {
    choose(logits, num_experts, top_k, weights, experts);
    const float highest = weights[0];
    for (int i = 0; i < top_k; ++i) weights[i] = std::exp(weights[i] - highest);
    float total = 0.0f;
    if (renormalize) {
        // The sum of all would cancel out, but for a NaN in it.
        const bool nan = std::any_of(logits, logits + num_experts,
                                     [](float logit) { return std::isnan(logit); });
        for (int i = 0; i < top_k; ++i) total += weights[i];
        if (nan) total = std::numeric_limits<float>::quiet_NaN();
    } else {
        for (int i = 0; i < num_experts; ++i) total += std::exp(logits[i] - highest);
    }
    for (int i = 0; i < top_k; ++i) weights[i] /= total;
}

// Rows or tokens of a piece of a loop: enough that fetching it costs little.
constexpr std::int64_t kRowsAtOnce = 8;

}  // namespace

void moe_route(Team& team, const float* logits, int num_experts, bool renormalize,
               const Choice& choice) {
    team.share(choice.tokens, kRowsAtOnce, [&](std::int64_t begin, std::int64_t end) {
        for (std::int64_t token = begin; token < end; ++token) {
            route_token(logits + token * num_experts, num_experts, renormalize, choice.top_k,
                        choice.weights + token * choice.top_k,
                        choice.experts + token * choice.top_k);
        }
    });
}

// What one thread finds out for all of them.
struct MoeCall::Sorted {
    std::int64_t rows;   // pairs of a token and an expert that is here
    std::int64_t parts;  // experts that have rows
};

// Where everything lies in scratch.
struct MoeCall::Layout {
    Layout(const Experts& experts, std::int64_t tokens, int top_k) {
        const std::size_t size = element_bytes(experts.gate_up.dtype);
        ld_rows = row_stride(experts.gate_up.depth, size);
        ld_inner = row_stride(experts.down.depth, size);
        const auto held = static_cast<std::size_t>(experts.count);
        const auto pairs = static_cast<std::size_t>(tokens) * static_cast<std::size_t>(top_k);
        const auto most_rows = static_cast<std::size_t>(tokens) *
                               static_cast<std::size_t>(std::min(top_k, experts.count));
        sorted = pieces.add(sizeof(Sorted));
        gate_up_parts = pieces.add(held * sizeof(LinearPart));
        down_parts = pieces.add(held * sizeof(LinearPart));
        starts = pieces.add(held * sizeof(std::int64_t));
        row_of = pieces.add(pairs * sizeof(std::int32_t));
        token_of = pieces.add(most_rows * sizeof(std::int32_t));
        rows = pieces.add(most_rows * static_cast<std::size_t>(ld_rows) * size);
        inner = pieces.add(most_rows * static_cast<std::size_t>(ld_inner) * size);
    }

    Pieces pieces;
    std::int64_t ld_rows, ld_inner;
    std::size_t sorted, gate_up_parts, down_parts, starts, row_of, token_of, rows, inner;
};

std::size_t MoeCall::scratch_bytes(const Experts& experts, std::int64_t tokens, int top_k) {
    return Layout(experts, tokens, top_k).pieces.total();
}

MoeCall::MoeCall(const Experts& experts, const Choice& choice, void* scratch)
    : experts_(experts), choice_(choice) {
    const Layout layout(experts, choice.tokens, choice.top_k);
    const auto at = [=](std::size_t offset) { return static_cast<std::byte*>(scratch) + offset; };
    sorted_ = reinterpret_cast<Sorted*>(at(layout.sorted));
    gate_up_parts_ = reinterpret_cast<LinearPart*>(at(layout.gate_up_parts));
    down_parts_ = reinterpret_cast<LinearPart*>(at(layout.down_parts));
    starts_ = reinterpret_cast<std::int64_t*>(at(layout.starts));
    row_of_ = reinterpret_cast<std::int32_t*>(at(layout.row_of));
    token_of_ = reinterpret_cast<std::int32_t*>(at(layout.token_of));
    rows_ = at(layout.rows);
    inner_ = at(layout.inner);
    ld_rows_ = layout.ld_rows;
    ld_inner_ = layout.ld_inner;
}

// A counting sort of pairs by expert, in the order of tokens within one.
void MoeCall::sort(std::int64_t* loads, int num_threads) {
    const std::int64_t pairs = choice_.tokens * choice_.top_k;
    const auto local = [&](std::int64_t pair) { return choice_.experts[pair] - experts_.first; };
    const auto here = [&](std::int64_t expert) { return expert >= 0 && expert < experts_.count; };
    std::fill_n(starts_, experts_.count, 0);
    for (std::int64_t pair = 0; pair < pairs; ++pair) {
        if (here(local(pair))) ++starts_[local(pair)];
    }
    std::int64_t rows = 0;
    std::int64_t parts = 0;
    for (int expert = 0; expert < experts_.count; ++expert) {
        const std::int64_t count = std::exchange(starts_[expert], rows);
        if (count == 0) continue;
        gate_up_parts_[parts] = {experts_.gate_up.panels + expert * experts_.gate_up.num_panels,
                                 rows, count};
        down_parts_[parts] = {experts_.down.panels + expert * experts_.down.num_panels, rows,
                              count};
        ++parts;
        ++loads[expert];
        rows += count;
    }
    for (std::int64_t pair = 0; pair < pairs; ++pair) {
        row_of_[pair] = -1;
        if (!here(local(pair))) continue;
        const std::int64_t row = starts_[local(pair)]++;
        row_of_[pair] = static_cast<std::int32_t>(row);
        token_of_[row] = static_cast<std::int32_t>(pair / choice_.top_k);
    }
    cut_parts(experts_.gate_up, gate_up_parts_, parts, num_threads);
    cut_parts(experts_.down, down_parts_, parts, num_threads);
    *sorted_ = {rows, parts};
}

void MoeCall::gather(Team& team, const void* x, std::int64_t ld_x, std::int64_t* loads) {
    if (team.index() == 0) sort(loads, team.size());
    team.barrier();
    const std::size_t size = element_bytes(experts_.gate_up.dtype);
    const auto row_bytes = static_cast<std::size_t>(experts_.gate_up.depth) * size;
    team.share(sorted_->rows, kRowsAtOnce, [&](std::int64_t begin, std::int64_t end) {
        for (std::int64_t row = begin; row < end; ++row) {
            std::memcpy(rows_ + static_cast<std::size_t>(row * ld_rows_) * size,
                        static_cast<const std::byte*>(x) +
                            static_cast<std::size_t>(token_of_[row] * ld_x) * size,
                        row_bytes);
        }
    });
}

void MoeCall::gate_up(Team& team) {
    linear_gated_parts(team, experts_.gate_up, experts_.activation, gate_up_parts_, sorted_->parts,
                       rows_, ld_rows_, inner_, ld_inner_);
}

void MoeCall::down(Team& team) {
    linear_parts(team, experts_.down, down_parts_, sorted_->parts, inner_, ld_inner_, rows_,
                 ld_rows_);
}

void MoeCall::sum(Team& team, bool add, void* out, std::int64_t ld_out) {
    WeightedSum args;
    args.dtype = experts_.down.dtype;
    args.tokens = choice_.tokens;
    args.size = experts_.down.columns;
    args.terms = choice_.top_k;
    args.weights = choice_.weights;
    args.row_of = row_of_;
    args.rows = rows_;
    args.ld_rows = ld_rows_;
    args.add = add;
    args.out = out;
    args.ld_out = ld_out;
    weighted_sum(team, args);
}

}  // namespace seesaw
