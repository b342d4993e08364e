#include "decoder.h"

#include <algorithm>
#include <cstring>
#include <optional>
#include <tuple>

#include "decoder_call.h"
#include "rows.h"

namespace seesaw {

PanelMatrix::PanelMatrix(const void* first, std::int64_t panel_bytes, std::int64_t num_panels,
                         std::int64_t columns, std::int64_t depth, const void* bias)
    : columns(columns), depth(depth), bias(bias) {
    for (std::int64_t panel = 0; panel < num_panels; ++panel) {
        panels.push_back(static_cast<const std::byte*>(first) + panel * panel_bytes);
    }
}

Linear PanelMatrix::linear(DType dtype) const {
    return {dtype, panels.data(), static_cast<std::int64_t>(panels.size()), columns, depth, bias};
}

const char* part_name(Part part) {
    switch (part) {
        case Part::before: return "before layers";
        case Part::embed: return "embed";
        case Part::norms: return "norms";
        case Part::qkv: return "qkv";
        case Part::rope_kv: return "rope_kv";
        case Part::attention: return "attention";
        case Part::o: return "o";
        case Part::route: return "route";
        case Part::gate_up: return "gate_up";
        case Part::down: return "down";
        case Part::all_reduce: return "all_reduce";
        case Part::head: return "head";
        case Part::count: break;
    }
    return "";
}

Decoder::Decoder(const DecoderShape& shape, std::shared_ptr<Comm> comm, int own_threads)
    : shape_(shape),
      comm_(std::move(comm)),
      size_(element_bytes(shape.dtype)),
      // No gaps in what ranks send each other.
      ld_hidden_(comm_ ? shape.hidden_size : row_stride(shape.hidden_size, size_)),
      own_pool_(own_threads > 0 ? std::make_unique<ThreadPool>(own_threads) : nullptr) {}

void Decoder::add_layer(DecoderLayer layer) { layers_.push_back(std::move(layer)); }

void Decoder::set_embedding(Embedding embedding) { embedding_ = std::move(embedding); }

void Decoder::set_head(const void* norm, PanelMatrix head, std::int64_t first_id) {
    final_norm_ = norm;
    head_ = std::move(head);
    head_first_id_ = first_id;
}

PartSeconds Decoder::take_profile() { return std::exchange(seconds_, {}); }

template <class Region>
void Decoder::run(ThreadPool& pool, Region&& region) {
    failure_ = nullptr;
    pool.run([&](Team& team) {
        Watch watch(profiling_ && team.index() == 0 ? &seconds_ : nullptr);
        region(team, watch);
    });
    if (failure_) std::rethrow_exception(std::exchange(failure_, nullptr));
}

void Decoder::embed(const std::int64_t* ids, std::int64_t tokens, void* hidden) {
    if (tokens == 0) return;
    const Embedding& from = embedding_;
    run(pool(), [&](Team& team, Watch& watch) {
        if (from.rows != nullptr) {
            embed_rows(team, shape_.dtype, from.rows, from.num_rows, shape_.hidden_size, ids, tokens,
                       from.first_id, from.scale, hidden, shape_.hidden_size);
        } else {
            embed_panels(team, from.table.linear(shape_.dtype), ids, tokens, from.first_id,
                         from.scale, hidden, shape_.hidden_size);
        }
        watch.mark(Part::embed);
        // Each token is held by one rank and is 0 on the others: the sum is exact.
        if (comm_) {
            all_reduce(team, hidden, tokens * shape_.hidden_size);
            watch.mark(Part::all_reduce);
        }
    });
}

void Decoder::run_layers(void* hidden, const DecoderStep& step, const KvPool& kv, int begin, int end,
                         const std::function<void(int)>& before) {
    if (step.tokens == 0 || begin == end) return;
    const std::int64_t tile = static_cast<std::int64_t>(kv.block_size) * shape_.head_dim;
    const std::int64_t block = shape_.num_kv_heads * 2 * tile;
    KvView first;
    first.dtype = shape_.dtype;
    first.k = kv.data;
    first.v = static_cast<std::byte*>(kv.data) + static_cast<std::size_t>(tile) * size_;
    first.block_stride = block;
    first.head_stride = 2 * tile;
    first.token_stride = shape_.head_dim;
    first.num_blocks = kv.num_blocks;
    first.block_size = kv.block_size;
    first.num_heads = shape_.num_kv_heads;
    first.head_dim = shape_.head_dim;
    first.panels = kv.panels;

    const DecoderLayer& some = layers_[static_cast<std::size_t>(begin)];
    const std::int64_t heads = static_cast<std::int64_t>(shape_.num_kv_heads) * shape_.group;
    Buffers shared{};
    shared.hidden = hidden;
    shared.rows = step.tokens;
    shared.ld_qkv = row_stride(some.qkv.columns, size_);
    shared.ld_attended = row_stride(heads * shape_.head_dim, size_);
    shared.apart = comm_ != nullptr || some.attention_out_norm != nullptr;
    const auto bytes = [&](auto ld) { return static_cast<std::size_t>(step.tokens * ld) * size_; };
    ThreadPool& threads = pool();  // another one may be configured before the region begins
    Pieces pieces;
    const std::size_t x = pieces.add(bytes(ld_hidden_));
    const std::size_t delta = pieces.add(shared.apart ? bytes(ld_hidden_) : 0);
    const std::size_t attention_scratch = pieces.add(
        static_cast<std::size_t>(threads.num_threads()) *
        attention_scratch_bytes(first, shape_.group));
    // A layer is through with qkv and what was attended when it comes to its MLP or experts.
    const std::size_t qkv_bytes = aligned(bytes(shared.ld_qkv));
    std::size_t rest_bytes = qkv_bytes + bytes(shared.ld_attended);
    for (int index = begin; index < end; ++index) {
        const DecoderLayer& layer = layers_[static_cast<std::size_t>(index)];
        rest_bytes = std::max(rest_bytes, mlp_bytes(layer, step.tokens));
    }
    const std::size_t rest = pieces.add(rest_bytes);
    std::byte* const base = scratch_.get(pieces.total());
    shared.x = base + x;
    shared.delta = base + delta;
    shared.attention_scratch = base + attention_scratch;
    shared.qkv = shared.mlp = base + rest;
    shared.attended = base + rest + qkv_bytes;

    std::optional<Wanted> wanted;
    if (step.num_wanted >= 0) wanted.emplace(step);

    run(threads, [&](Team& team, Watch& watch) {
        Buffers buffers = shared;
        for (int index = begin; index < end && !buffers.failed; ++index) {
            if (before) {
                if ((buffers.failed = !alone(team, [&] { before(index); }))) break;
                watch.mark(Part::before);
            }
            KvView view = first;
            const std::size_t offset = static_cast<std::size_t>(index * kv.num_blocks * block) * size_;
            view.k = static_cast<std::byte*>(first.k) + offset;
            view.v = static_cast<std::byte*>(first.v) + offset;
            run_layer(team, watch, layers_[static_cast<std::size_t>(index)], step, view,
                      wanted && index + 1 == end ? &*wanted : nullptr, buffers);
        }
        if (buffers.pending && !buffers.failed) {
            // For the sum alone; which norm follows is not known here.
            norm(team, hidden, shape_.hidden_size, buffers.delta, hidden, some.input_norm,
                 buffers.rows, buffers.x);
            watch.mark(Part::norms);
        }
    });
}

void Decoder::run_layer(Team& team, Watch& watch, const DecoderLayer& layer,
                        const DecoderStep& step, const KvView& kv, const Wanted* wanted,
                        Buffers& buffers) {
    const std::int64_t tokens = step.tokens;
    void* const hidden = buffers.hidden;
    const auto next_norm = [&](const void* weight) {
        norm(team, hidden, shape_.hidden_size, buffers.pending ? buffers.delta : nullptr, hidden,
             weight, buffers.rows, buffers.x);
        buffers.pending = false;
        watch.mark(Part::norms);
    };

    next_norm(layer.input_norm);
    linear(team, layer.qkv.linear(shape_.dtype), buffers.x, ld_hidden_, tokens, buffers.qkv,
           buffers.ld_qkv);
    watch.mark(Part::qkv);

    RopeKv rope;
    rope.tokens = tokens;
    rope.qkv = buffers.qkv;
    rope.ld_qkv = buffers.ld_qkv;
    rope.head_step = shape_.head_step;
    rope.group = shape_.group;
    std::tie(rope.cos, rope.sin) = step.cos_sin[static_cast<std::size_t>(layer.rope)];
    rope.q_norm = layer.q_norm;
    rope.k_norm = layer.k_norm;
    rope.eps = shape_.norm_eps;
    rope.plus_one = shape_.norm_plus_one;
    rope.slots = step.slots;
    rope_kv(team, rope, kv);
    watch.mark(Part::rope_kv);

    if (wanted != nullptr) {
        // All tokens have left their K and V; from here on only some matter.
        if (wanted->count == 0) return;
        const auto hidden_bytes = static_cast<std::size_t>(shape_.hidden_size) * size_;
        wanted->keep(team, buffers.qkv, static_cast<std::size_t>(layer.qkv.columns) * size_,
                     static_cast<std::size_t>(buffers.ld_qkv) * size_);
        wanted->keep(team, hidden, hidden_bytes, hidden_bytes);
        buffers.rows = wanted->count;
    }

    Attention attend;
    attend.q = buffers.qkv;
    attend.q_token_stride = buffers.ld_qkv;
    attend.q_group_stride = (shape_.group + 2) * shape_.head_step;
    attend.q_head_stride = shape_.head_step;
    attend.group = shape_.group;
    attend.scale = shape_.sm_scale;
    attend.soft_cap = shape_.attn_soft_cap;
    attend.window = layer.window;
    attend.out = buffers.attended;
    attend.ld_out = buffers.ld_attended;
    attention(team, attend, wanted != nullptr ? wanted->rows : step.rows, kv,
              buffers.attention_scratch);
    watch.mark(Part::attention);

    project(team, watch, Part::o, layer.o, buffers.attended, buffers.ld_attended,
            layer.attention_out_norm, buffers);
    if (buffers.failed) return;

    next_norm(layer.mlp_norm);
    if (layer.sparse()) return run_experts(team, watch, layer, buffers);
    const std::int64_t ld_inner = row_stride(layer.gate_up.columns / 2, size_);
    linear_gated(team, layer.gate_up.linear(shape_.dtype), shape_.activation, buffers.x, ld_hidden_,
                 buffers.rows, buffers.mlp, ld_inner);
    watch.mark(Part::gate_up);
    project(team, watch, Part::down, layer.down, buffers.mlp, ld_inner, layer.mlp_out_norm, buffers);
}

Experts Decoder::experts_of(const DecoderLayer& layer) const {
    Experts experts;
    experts.gate_up = layer.gate_up.linear(shape_.dtype);
    experts.gate_up.num_panels /= layer.num_experts;
    experts.down = layer.down.linear(shape_.dtype);
    experts.down.num_panels /= layer.num_experts;
    experts.first = layer.first_expert;
    experts.count = layer.num_experts;
    experts.activation = shape_.activation;
    return experts;
}

std::size_t Decoder::mlp_bytes(const DecoderLayer& layer, std::int64_t tokens) const {
    if (layer.sparse()) {
        const int top_k = shape_.experts_per_token;
        return RouterScratch(tokens, layer.router.columns, top_k).pieces.total() +
               MoeCall::scratch_bytes(experts_of(layer), tokens, top_k);
    }
    return static_cast<std::size_t>(tokens * row_stride(layer.gate_up.columns / 2, size_)) * size_;
}

void Decoder::run_experts(Team& team, Watch& watch, const DecoderLayer& layer, Buffers& buffers) {
    const std::int64_t rows = buffers.rows;
    const Linear router = layer.router.linear(shape_.dtype);
    const int top_k = shape_.experts_per_token;
    const RouterScratch at(rows, router.columns, top_k);
    auto* const logits = reinterpret_cast<float*>(buffers.mlp + at.logits);
    const Choice choice{rows, top_k, reinterpret_cast<float*>(buffers.mlp + at.weights),
                        reinterpret_cast<std::int32_t*>(buffers.mlp + at.experts)};
    linear_f32(team, router, buffers.x, ld_hidden_, rows, logits, router.columns);
    moe_route(team, logits, static_cast<int>(router.columns), shape_.renormalize_experts, choice);
    const Experts experts = experts_of(layer);
    MoeCall call(experts, choice, buffers.mlp + at.pieces.total());
    call.gather(team, buffers.x, ld_hidden_, layer.expert_loads);
    watch.mark(Part::route);
    call.gate_up(team);
    watch.mark(Part::gate_up);
    call.down(team);
    if (buffers.apart) {
        call.sum(team, false, buffers.delta, ld_hidden_);
    } else {
        call.sum(team, true, buffers.hidden, shape_.hidden_size);
    }
    watch.mark(Part::down);
    end_half(team, watch, layer.mlp_out_norm, buffers);
}

// The product that ends a half-layer, into the residual stream or beside it.
void Decoder::project(Team& team, Watch& watch, Part part, const PanelMatrix& weight, const void* x,
                      std::int64_t ld_x, const void* out_norm, Buffers& buffers) {
    const std::int64_t rows = buffers.rows;
    const Linear matrix = weight.linear(shape_.dtype);
    if (buffers.apart) {
        linear(team, matrix, x, ld_x, rows, buffers.delta, ld_hidden_);
    } else {
        linear_add(team, matrix, x, ld_x, rows, buffers.hidden, shape_.hidden_size);
    }
    watch.mark(part);
    end_half(team, watch, out_norm, buffers);
}

// What a half-layer added, if it lies apart: the ranks' sum of it, and its norm.
void Decoder::end_half(Team& team, Watch& watch, const void* out_norm, Buffers& buffers) {
    if (!buffers.apart) return;
    const std::int64_t rows = buffers.rows;
    if (comm_) {
        buffers.failed = !all_reduce(team, buffers.delta, rows * ld_hidden_);
        watch.mark(Part::all_reduce);
        if (buffers.failed) return;
    }
    if (out_norm != nullptr) {
        norm(team, buffers.delta, ld_hidden_, nullptr, nullptr, out_norm, rows, buffers.x);
        std::swap(buffers.x, buffers.delta);
        watch.mark(Part::norms);
    }
    buffers.pending = true;
}

void Decoder::norm(Team& team, const void* x, std::int64_t ld_x, const void* add, void* sum,
                   const void* weight, std::int64_t rows, void* out) {
    RmsNorm args;
    args.dtype = shape_.dtype;
    args.rows = rows;
    args.size = shape_.hidden_size;
    args.x = x;
    args.ld_x = ld_x;
    args.add = add;
    args.ld_add = ld_hidden_;
    args.sum = sum;
    args.ld_sum = shape_.hidden_size;
    args.weight = weight;
    args.eps = shape_.norm_eps;
    args.plus_one = shape_.norm_plus_one;
    args.out = out;
    args.ld_out = ld_hidden_;
    rms_norm(team, args);
}

bool Decoder::all_reduce(Team& team, void* data, std::int64_t count) {
    return alone(team, [&] { comm_->all_reduce(data, count, shape_.dtype); });
}

template <class Call>
bool Decoder::alone(Team& team, Call&& call) {
    if (team.index() == 0) {
        try {
            call();
        } catch (...) {
            failure_ = std::current_exception();  // must not leave the region: others wait in it
        }
    }
    team.barrier();
    return failure_ == nullptr;
}

void Decoder::normed_rows(Team& team, const void* hidden, const std::int64_t* index,
                          std::int64_t count, std::byte* gathered, std::byte* normed) {
    const std::size_t row_bytes = static_cast<std::size_t>(shape_.hidden_size) * size_;
    team.share(count, 16, [&](std::int64_t begin, std::int64_t end) {
        for (std::int64_t row = begin; row < end; ++row) {
            std::memcpy(gathered + static_cast<std::size_t>(row * ld_hidden_) * size_,
                        static_cast<const std::byte*>(hidden) +
                            static_cast<std::size_t>(index[row]) * row_bytes,
                        row_bytes);
        }
    });
    norm(team, gathered, ld_hidden_, nullptr, nullptr, final_norm_, count, normed);
}

void Decoder::logits(const void* hidden, const std::int64_t* index, std::int64_t count,
                     float* out) {
    if (count == 0) return;
    const std::size_t bytes = aligned(static_cast<std::size_t>(count * ld_hidden_) * size_);
    std::byte* const gathered = scratch_.get(2 * bytes);
    std::byte* const normed = gathered + bytes;
    run(pool(), [&](Team& team, Watch& watch) {
        normed_rows(team, hidden, index, count, gathered, normed);
        watch.mark(Part::norms);
        linear_f32(team, head_.linear(shape_.dtype), normed, ld_hidden_, count, out, head_.columns);
        watch.mark(Part::head);
    });
}

void Decoder::highest(const void* hidden, const std::int64_t* index, std::int64_t count,
                      float* value, std::int64_t* id) {
    if (count == 0) return;
    ThreadPool& threads = pool();
    const Linear head = head_.linear(shape_.dtype);
    const std::size_t bytes = aligned(static_cast<std::size_t>(count * ld_hidden_) * size_);
    std::byte* const gathered =
        scratch_.get(2 * bytes + highest_scratch_bytes(count, threads.num_threads()));
    std::byte* const normed = gathered + bytes;
    run(threads, [&](Team& team, Watch& watch) {
        normed_rows(team, hidden, index, count, gathered, normed);
        watch.mark(Part::norms);
        linear_highest(team, head, normed, ld_hidden_, count, value, id, normed + bytes);
        watch.mark(Part::head);
    });
    for (std::int64_t row = 0; row < count; ++row) id[row] += head_first_id_;
}

}  // namespace seesaw
