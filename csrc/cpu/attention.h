// Causal attention of a step's tokens over paged KV: rows that decode and chunks of prompts alike.
//
// All query heads of a KV head are computed together, so that KV is read once. Keys come in pieces of
// 32 tokens, softmax runs online over chunks of pieces that begin at multiples of the chunk, so a
// query's result does not depend on how its prompt was cut. Tiles that are not in panels are brought
// into that form in scratch, piece by piece.
//
// Called by all threads of a region; done, and seen by all, on return.

#pragma once

#include <cstddef>
#include <cstdint>

#include "kv_view.h"
#include "thread_pool.h"

namespace seesaw {

// Rows of a step: row r has the last tokens of its sequence, those at cu_seqlens_q[r] .. [r + 1] of T.
struct AttentionRows {
    std::int64_t num_rows = 0;
    const std::int64_t* cu_seqlens_q = nullptr;  // num_rows + 1
    const std::int64_t* seq_lens = nullptr;      // tokens whose KV counts, this step's included
    const std::int32_t* block_table = nullptr;   // [num_rows, table_stride]
    std::int64_t table_stride = 0;
};

struct Attention {
    const void* q = nullptr;             // [T] tokens; query head g of KV head k of a token lies at
    std::int64_t q_token_stride = 0;     //   k * q_group_stride + g * q_head_stride (elements)
    std::int64_t q_group_stride = 0;
    std::int64_t q_head_stride = 0;
    int group = 1;                       // query heads per KV head
    float scale = 1.0f;                  // more than 0
    float soft_cap = 0.0f;               // 0 = none
    std::int64_t window = 0;             // keys that a query sees, itself included; 0 = all before it
    void* out = nullptr;                 // [T, num_heads * group, head_dim], rows ld_out apart
    std::int64_t ld_out = 0;
    float* lse = nullptr;                // [T, num_heads * group] natural log of the sum of exp; or null
};

// Whether `view` can be attended over: head_dim a multiple of 16 up to 256, blocks in panels of a
// multiple of 32 tokens, plain ones of any number.
bool attention_supports(const KvView& view);
// Per thread, whatever the rows are.
std::size_t attention_scratch_bytes(const KvView& view, int group);
// `scratch`: num_threads * attention_scratch_bytes(), 64-byte aligned.
void attention(Team& team, const Attention& args, const AttentionRows& rows, const KvView& kv,
               void* scratch);

}  // namespace seesaw
