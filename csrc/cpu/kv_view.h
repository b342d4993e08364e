// One layer's KV pool as kernels see it: tiles of block_size tokens of one KV head.
//
// A tile is either plain, tokens one after another, or in panels, which kernels read without
// rearranging: for every 32 tokens a piece of 32 * head_dim elements, of K a panel whose columns are
// the tokens and whose k runs over head_dim, of V one whose columns are head_dim and whose k runs over
// the tokens (for bf16: K [head_dim / 2][32][2], V [16][head_dim][2]; for float: K [head_dim][32],
// V [32][head_dim]). Panels need a block_size that is a multiple of 32.

#pragma once

#include <cstdint>

#include "numbers.h"

namespace seesaw {

struct KvView {
    DType dtype = DType::f32;
    void* k = nullptr;                  // tile of block 0, head 0
    void* v = nullptr;
    std::int64_t block_stride = 0;      // elements, of K and V alike
    std::int64_t head_stride = 0;
    std::int64_t token_stride = 0;      // of plain tiles; the last dim is contiguous
    std::int64_t num_blocks = 0;
    int block_size = 0;
    int num_heads = 0;
    int head_dim = 0;
    bool panels = false;
};

inline constexpr int kPieceTokens = 32;

}  // namespace seesaw
