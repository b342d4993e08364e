// One rank's share of a model: embedding, layers and head over weights that lie in panels.
//
// Holds pointers from load time on and owns no weights: whoever makes it keeps them alive. What it
// owns is scratch, which grows with the largest step. embed, run_layers, logits and highest are one
// parallel region each; one thread at a time may call them. Numbers are local ones: layers, heads
// and columns of this rank.

#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <exception>
#include <functional>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "attention.h"
#include "comm.h"
#include "linear.h"
#include "moe.h"
#include "scratch.h"
#include "thread_pool.h"

namespace seesaw {

// A matrix whose panels are `panel_bytes` apart.
struct PanelMatrix {
    std::vector<const void*> panels;
    std::int64_t columns = 0;
    std::int64_t depth = 0;
    const void* bias = nullptr;

    PanelMatrix() = default;
    PanelMatrix(const void* first, std::int64_t panel_bytes, std::int64_t num_panels,
                std::int64_t columns, std::int64_t depth, const void* bias);
    Linear linear(DType dtype) const;
};

struct DecoderLayer {
    const void* input_norm = nullptr;
    const void* attention_out_norm = nullptr;  // both or neither of these two (Gemma)
    const void* mlp_norm = nullptr;
    const void* mlp_out_norm = nullptr;
    const void* q_norm = nullptr;
    const void* k_norm = nullptr;
    PanelMatrix qkv;      // per KV head `group` query heads, K, V, each padded to head_step columns
    PanelMatrix o;
    PanelMatrix gate_up;  // panels of 16 columns of gate and the same 16 of up
    PanelMatrix down;
    std::int64_t window = 0;
    int rope = 0;         // which cosines and sines of a step
    // With a router, one column for each expert of the model, `gate_up` and `down` hold the panels of
    // experts first_expert .. first_expert + num_experts one after another, and the columns of one.
    // Each time that an expert has a token, its number of expert_loads goes up by 1.
    PanelMatrix router;
    int first_expert = 0;
    int num_experts = 0;
    std::int64_t* expert_loads = nullptr;

    bool sparse() const { return router.columns > 0; }
};

struct DecoderShape {
    DType dtype = DType::f32;
    std::int64_t hidden_size = 0;
    int head_dim = 0;
    std::int64_t head_step = 0;
    int num_kv_heads = 0;
    int group = 1;
    float norm_eps = 0.0f;
    bool norm_plus_one = false;
    float sm_scale = 1.0f;
    float attn_soft_cap = 0.0f;
    Activation activation = Activation::silu;
    int experts_per_token = 0;
    bool renormalize_experts = false;
};

// Where the ids of a token table begin, and how it lies: in panels, or (no panels) as plain rows.
struct Embedding {
    PanelMatrix table;
    const void* rows = nullptr;
    std::int64_t num_rows = 0;
    std::int64_t first_id = 0;
    float scale = 1.0f;
};

struct DecoderStep {
    std::int64_t tokens = 0;
    AttentionRows rows;
    const std::int64_t* slots = nullptr;
    std::vector<std::pair<const void*, const void*>> cos_sin;  // of each RoPE, [tokens, head_dim / 2]
    // Tokens, ascending, of which the last layer's output is wanted: it leaves `hidden` with these
    // alone, one after another. -1 of them = all.
    const std::int64_t* wanted = nullptr;
    std::int64_t num_wanted = -1;
};

// [layer][block][kv_head][k|v][block_size][head_dim], contiguous.
struct KvPool {
    void* data = nullptr;
    std::int64_t num_blocks = 0;
    int block_size = 0;
    bool panels = false;
};

enum class Part {
    before, embed, norms, qkv, rope_kv, attention, o, route, gate_up, down, all_reduce, head, count
};
const char* part_name(Part part);

// Seconds that thread 0 spent in each part of a decoder's regions, barriers included.
using PartSeconds = std::array<double, static_cast<std::size_t>(Part::count)>;

class Decoder {
public:
    // Without `comm` the rank is alone. `own_threads`: a pool of its own of so many threads, 0 = that
    // of the process.
    Decoder(const DecoderShape& shape, std::shared_ptr<Comm> comm, int own_threads);

    void add_layer(DecoderLayer layer);
    void set_embedding(Embedding embedding);
    // `first_id`: that of the head's first column.
    void set_head(const void* norm, PanelMatrix head, std::int64_t first_id);

    // Rows of hidden states are contiguous, hidden_size elements each.
    void embed(const std::int64_t* ids, std::int64_t tokens, void* hidden);
    // Layers begin .. end in place; rethrows what `comm` or `before` threw. Of `step.wanted`, see
    // there; the last layer is that before `end`. `before`, where given, is called with each layer
    // when all of those before it are done and none of it has begun, on the thread that calls this.
    void run_layers(void* hidden, const DecoderStep& step, const KvPool& kv, int begin, int end,
                    const std::function<void(int)>& before = {});
    // [count, columns of the head] of the tokens at `index`, before any soft cap.
    void logits(const void* hidden, const std::int64_t* index, std::int64_t count, float* out);
    // The highest of each row of those and its id, the lowest of equals.
    void highest(const void* hidden, const std::int64_t* index, std::int64_t count, float* value,
                 std::int64_t* id);

    void set_profiling(bool on) { profiling_ = on; }
    // Since the last call.
    PartSeconds take_profile();

private:
    class Watch;
    struct Buffers;
    struct Wanted;
    struct RouterScratch;

    ThreadPool& pool() const { return own_pool_ ? *own_pool_ : thread_pool(); }
    template <class Region>
    void run(ThreadPool& pool, Region&& region);
    void run_layer(Team& team, Watch& watch, const DecoderLayer& layer, const DecoderStep& step,
                   const KvView& kv, const Wanted* wanted, Buffers& buffers);
    void norm(Team& team, const void* x, std::int64_t ld_x, const void* add, void* sum,
              const void* weight, std::int64_t rows, void* out);
    Experts experts_of(const DecoderLayer& layer) const;
    std::size_t mlp_bytes(const DecoderLayer& layer, std::int64_t tokens) const;
    void run_experts(Team& team, Watch& watch, const DecoderLayer& layer, Buffers& buffers);
    void project(Team& team, Watch& watch, Part part, const PanelMatrix& weight, const void* x,
                 std::int64_t ld_x, const void* out_norm, Buffers& buffers);
    void end_half(Team& team, Watch& watch, const void* out_norm, Buffers& buffers);
    bool all_reduce(Team& team, void* data, std::int64_t count);
    // `call` on thread 0, which all others wait for; false where it threw, which `run` passes on.
    template <class Call>
    bool alone(Team& team, Call&& call);
    // Normed rows of the tokens at `index`, in scratch.
    void normed_rows(Team& team, const void* hidden, const std::int64_t* index, std::int64_t count,
                     std::byte* gathered, std::byte* normed);

    const DecoderShape shape_;
    const std::shared_ptr<Comm> comm_;
    const std::size_t size_;       // bytes of an element
    const std::int64_t ld_hidden_;  // of buffers of hidden states, elements
    std::unique_ptr<ThreadPool> own_pool_;
    std::vector<DecoderLayer> layers_;
    Embedding embedding_;
    const void* final_norm_ = nullptr;
    PanelMatrix head_;
    std::int64_t head_first_id_ = 0;
    Scratch scratch_;
    std::exception_ptr failure_;
    bool profiling_ = false;
    PartSeconds seconds_{};
};

}  // namespace seesaw
