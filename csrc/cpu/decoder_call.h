// What the threads of one call into a decoder share: its clock, its buffers, the tokens it is for.
// For decoder.cpp alone.

#pragma once

#include <chrono>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <vector>

#include "decoder.h"

namespace seesaw {

// Charges the time since the last mark; on thread 0 of a decoder that is profiled, else does nothing.
class Decoder::Watch {
public:
    explicit Watch(PartSeconds* seconds) : seconds_(seconds) {
        if (seconds_ != nullptr) last_ = Clock::now();
    }
    void mark(Part part) {
        if (seconds_ == nullptr) return;
        const Clock::time_point now = Clock::now();
        (*seconds_)[static_cast<std::size_t>(part)] +=
            std::chrono::duration<double>(now - last_).count();
        last_ = now;
    }

private:
    using Clock = std::chrono::steady_clock;
    PartSeconds* const seconds_;
    Clock::time_point last_;
};

// What the layers of one call share. `delta` is what a half-layer adds to `hidden`, not yet added
// where `pending`, so that the add and the next norm are one pass. Each thread has this struct, all
// with the same contents.
struct Decoder::Buffers {
    void* hidden;
    std::byte* x;      // a norm's output: [tokens, ld_hidden]
    std::byte* delta;  // the same; only where deltas are kept apart
    std::byte* qkv;    // [tokens, ld_qkv]
    std::byte* attended;  // [tokens, ld_attended]
    std::byte* mlp;    // what an MLP or experts need, in the place of qkv
    std::byte* attention_scratch;
    std::int64_t ld_qkv;
    std::int64_t ld_attended;
    std::int64_t rows;  // of hidden: all tokens of the step, then perhaps those that are wanted
    bool apart;        // sums of ranks or norms come between a product and the residual
    bool pending = false;
    bool failed = false;
};

// The tokens of a step of which the last layer's output is wanted, as rows of one query each.
struct Decoder::Wanted {
    explicit Wanted(const DecoderStep& step) : index(step.wanted), count(step.num_wanted) {
        const AttentionRows& from = step.rows;
        std::int64_t row = 0;
        for (std::int64_t i = 0; i < count; ++i) {
            while (from.cu_seqlens_q[row + 1] <= index[i]) ++row;
            cu_seqlens.push_back(i);
            seq_lens.push_back(from.seq_lens[row] - (from.cu_seqlens_q[row + 1] - 1 - index[i]));
            const std::int32_t* blocks = from.block_table + row * from.table_stride;
            table.insert(table.end(), blocks, blocks + from.table_stride);
        }
        cu_seqlens.push_back(count);
        rows = {count, cu_seqlens.data(), seq_lens.data(), table.data(), from.table_stride};
    }

    // Brings the rows of `data` that are wanted to its front.
    void keep(Team& team, void* data, std::size_t row_bytes, std::size_t ld_bytes) const {
        if (team.index() == 0) {
            auto* const to = static_cast<std::byte*>(data);
            for (std::int64_t i = 0; i < count; ++i) {
                if (index[i] == i) continue;
                std::memcpy(to + static_cast<std::size_t>(i) * ld_bytes,
                            to + static_cast<std::size_t>(index[i]) * ld_bytes, row_bytes);
            }
        }
        team.barrier();
    }

    const std::int64_t* const index;
    const std::int64_t count;
    AttentionRows rows;

private:
    std::vector<std::int64_t> cu_seqlens;
    std::vector<std::int64_t> seq_lens;
    std::vector<std::int32_t> table;
};

// Where the router's results lie, in front of a MoeCall's scratch.
struct Decoder::RouterScratch {
    RouterScratch(std::int64_t tokens, std::int64_t num_experts, int top_k) {
        const auto rows = static_cast<std::size_t>(tokens);
        logits = pieces.add(rows * static_cast<std::size_t>(num_experts) * sizeof(float));
        weights = pieces.add(rows * static_cast<std::size_t>(top_k) * sizeof(float));
        experts = pieces.add(rows * static_cast<std::size_t>(top_k) * sizeof(std::int32_t));
    }
    Pieces pieces;
    std::size_t logits, weights, experts;
};

}  // namespace seesaw
