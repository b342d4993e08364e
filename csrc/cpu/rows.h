// What a layer does token by token: norms, RoPE and the write of KV, gates, embedding.
//
// Sums and functions in float, one rounding per result; a row's result does not depend on the rows
// beside it. Called by all threads of a region; done, and seen by all, on return. Strides (ld_.. of
// rows) in elements.

#pragma once

#include <cstdint>

#include "kv_view.h"
#include "linear.h"
#include "thread_pool.h"

namespace seesaw {

// out = norm(x + add) * weight (weight + 1 with plus_one); the sum, rounded, goes to `sum`. Without
// `add` it is x, and `sum` is not written. `sum` may be x or add.
struct RmsNorm {
    DType dtype = DType::f32;
    std::int64_t rows = 0;
    std::int64_t size = 0;
    const void* x = nullptr;
    std::int64_t ld_x = 0;
    const void* add = nullptr;
    std::int64_t ld_add = 0;
    void* sum = nullptr;
    std::int64_t ld_sum = 0;
    const void* weight = nullptr;
    float eps = 0.0f;
    bool plus_one = false;
    void* out = nullptr;
    std::int64_t ld_out = 0;
};
void rms_norm(Team& team, const RmsNorm& args);

// Heads x [tokens, outer, inner, head_dim], of any strides but the last: RoPE by halves, to `out`,
// which is contiguous and does not overlap x.
struct Rope {
    DType dtype = DType::f32;
    std::int64_t tokens = 0;
    std::int64_t outer = 0;
    std::int64_t inner = 0;
    int head_dim = 0;           // even
    const void* x = nullptr;
    std::int64_t token_stride = 0;
    std::int64_t outer_stride = 0;
    std::int64_t inner_stride = 0;
    const void* cos = nullptr;  // [tokens, head_dim / 2] of the dtype
    const void* sin = nullptr;
    void* out = nullptr;
};
void rope(Team& team, const Rope& args);

// k and v [tokens, heads, head_dim] to the slots of the pool.
struct KvWrite {
    std::int64_t tokens = 0;
    const void* k = nullptr;
    std::int64_t k_token_stride = 0;
    std::int64_t k_head_stride = 0;
    const void* v = nullptr;
    std::int64_t v_token_stride = 0;
    std::int64_t v_head_stride = 0;
    const std::int64_t* slots = nullptr;  // block * block_size + offset, of each token
};
void kv_write(Team& team, const KvWrite& args, const KvView& kv);

// Of each token's fused QKV (per KV head `group` query heads, K, V, each in `head_step` elements,
// of which head_dim count): norms of q and k if there are weights, rounded as rms_norm() does, then
// RoPE by halves; q is left in place, k and v go to the slots of the pool. head_dim is even and at
// most kMaxRopeHead.
inline constexpr int kMaxRopeHead = 512;
struct RopeKv {
    std::int64_t tokens = 0;
    void* qkv = nullptr;
    std::int64_t ld_qkv = 0;
    std::int64_t head_step = 0;
    int group = 1;
    const void* cos = nullptr;  // [tokens, head_dim / 2] of the dtype
    const void* sin = nullptr;
    const void* q_norm = nullptr;  // [head_dim]; or null
    const void* k_norm = nullptr;
    float eps = 0.0f;
    bool plus_one = false;
    const std::int64_t* slots = nullptr;  // block * block_size + offset, of each token
};
void rope_kv(Team& team, const RopeKv& args, const KvView& kv);

// out[r] = act(x[r, :size]) * x[r, size:].
void gated_activation(Team& team, DType dtype, Activation activation, const void* x,
                      std::int64_t ld_x, std::int64_t rows, std::int64_t size, void* out,
                      std::int64_t ld_out);

// out[t] = the sum over n < terms of weights[t, n] * rows[row_of[t, n]], in that order, without the
// terms whose row is -1; with `add`, what is in `out` comes first. `rows` and `out` do not overlap.
struct WeightedSum {
    DType dtype = DType::f32;
    std::int64_t tokens = 0;
    std::int64_t size = 0;
    int terms = 0;
    const float* weights = nullptr;
    const std::int32_t* row_of = nullptr;
    const void* rows = nullptr;
    std::int64_t ld_rows = 0;
    bool add = false;
    void* out = nullptr;
    std::int64_t ld_out = 0;
};
void weighted_sum(Team& team, const WeightedSum& args);

// out[t] = scale * row ids[t] - first of the table, 0 where it is not in 0 .. columns. From the
// panels of a tied head, or from plain rows.
void embed_panels(Team& team, const Linear& table, const std::int64_t* ids, std::int64_t tokens,
                  std::int64_t first, float scale, void* out, std::int64_t ld_out);
void embed_rows(Team& team, DType dtype, const void* table, std::int64_t num_rows,
                std::int64_t size, const std::int64_t* ids, std::int64_t tokens,
                std::int64_t first, float scale, void* out, std::int64_t ld_out);

}  // namespace seesaw
