// What attention does in one instruction set: one chunk of keys for the query rows of one KV head.

#pragma once

#include <cstdint>

#include "../isa.h"
#include "../kv_view.h"

namespace seesaw {

// Keys that one softmax runs over; results of chunks are then merged in order. Short enough that
// scores and values stay in the nearest caches.
inline constexpr int kChunkPieces = 8;
inline constexpr int kChunkTokens = kChunkPieces * kPieceTokens;

// Per row the highest score and the sum of 2^(score - highest), in units of log2, and the values
// weighted so, rows `columns` apart. highest = -inf: the row has seen no key, the rest is undefined.
struct AttentionResult {
    float* highest = nullptr;
    float* sum = nullptr;
    float* values = nullptr;
};

struct AttentionChunk {
    DType dtype = DType::f32;
    int head_dim = 0;
    int rows = 0;                   // row r is query head r % group at `position` + r / group
    int group = 1;
    std::int64_t position = 0;      // as number of a key; a query sees that key and those before it
    std::int64_t window = 0;        // 0 = all of them
    float scale = 1.0f;
    float soft_cap = 0.0f;          // 0 = none
    const void* q = nullptr;        // [rows, head_dim]
    std::int64_t first_key = 0;     // of the first piece; a multiple of 32
    int num_pieces = 0;
    const void* const* k = nullptr; // pieces as in KvView; of V [.., columns] with columns >= 32
    const void* const* v = nullptr;
    int columns = 0;                // head_dim, or 32 where that is less
    const void* const* next_k = nullptr;  // pieces that will be wanted after these
    int num_next = 0;
    AttentionResult result;
};

struct AttentionFinish {
    DType dtype = DType::f32;
    int head_dim = 0;
    int rows = 0;
    int group = 1;
    int columns = 0;
    AttentionResult result;
    void* out = nullptr;            // row r goes to out + (r / group) * ld_out + (r % group) * head_dim
    std::int64_t ld_out = 0;
};

// Tokens of a plain tile to a piece: token t of K lies at k + t * token_stride. What comes after
// `tokens` is left as it is.
struct AttentionGather {
    DType dtype = DType::f32;
    int head_dim = 0;
    int columns = 0;
    int tokens = 0;
    int offset = 0;                 // place of the first one in the piece
    std::int64_t token_stride = 0;
    const void* k = nullptr;
    const void* v = nullptr;
    void* k_piece = nullptr;
    void* v_piece = nullptr;
};

struct AttentionKernels {
    void (*attend)(const AttentionChunk& chunk);
    // `into` goes on with what `from` has seen.
    void (*merge)(int rows, int columns, const AttentionResult& into, const AttentionResult& from);
    void (*finish)(const AttentionFinish& args);
    void (*gather)(const AttentionGather& args);
};

SEESAW_KERNELS(AttentionKernels, attention_kernels)

}  // namespace seesaw
