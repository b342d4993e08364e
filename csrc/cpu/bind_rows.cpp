// Adds what is done token by token to the Python module (see seesaw/_cpu.pyi): each function is one
// parallel region.

#include <nanobind/nanobind.h>
#include <nanobind/stl/tuple.h>

#include <stdexcept>
#include <string>
#include <tuple>
#include <vector>

#include "rows.h"

namespace nb = nanobind;

namespace seesaw {

namespace {

using Address = std::uintptr_t;
using Strides = std::tuple<std::int64_t, std::int64_t, std::int64_t>;

template <class T = void>
T* at(Address address) {
    return reinterpret_cast<T*>(address);
}

DType dtype_of(int itemsize) {
    if (itemsize != 2 && itemsize != 4) {
        throw std::invalid_argument("itemsize: expected 2 (bfloat16) or 4 (float32), got " +
                                    std::to_string(itemsize));
    }
    return itemsize == 2 ? DType::bf16 : DType::f32;
}

template <class Region>
void run(Region&& region) {
    nb::gil_scoped_release release;
    thread_pool().run(region);
}

// `strides`: of block, head and token.
KvView kv_view(int itemsize, Address k, Address v, const Strides& strides, std::int64_t num_blocks,
               int block_size, int num_heads, int head_dim, bool panels) {
    if (panels && (block_size % kPieceTokens != 0 || head_dim % kDepth<bf16> != 0)) {
        throw std::invalid_argument("panels: expected an even head_dim and blocks of a multiple of "
                                    "32 tokens, got " + std::to_string(head_dim) + " and " +
                                    std::to_string(block_size));
    }
    const auto [block, head, token] = strides;
    return {dtype_of(itemsize), at(k), at(v), block, head, token,
            num_blocks, block_size, num_heads, head_dim, panels};
}

// A write elsewhere would spoil what other memory holds.
void check_slots(const std::int64_t* slots, std::int64_t tokens, const KvView& kv) {
    const std::int64_t end = kv.num_blocks * kv.block_size;
    for (std::int64_t t = 0; t < tokens; ++t) {
        if (slots[t] < 0 || slots[t] >= end) {
            throw std::out_of_range("slot " + std::to_string(slots[t]) + " of token " +
                                    std::to_string(t) + ": expected 0 or more and less than " +
                                    std::to_string(end));
        }
    }
}

}  // namespace

void bind_rows(nb::module_& m) {
    using nb::arg;
    m.def(
        "rms_norm",
        [](int itemsize, std::int64_t rows, std::int64_t size, Address x, std::int64_t ld_x,
           Address add, std::int64_t ld_add, Address sum, Address weight, float eps, bool plus_one,
           Address out) {
            const RmsNorm args{dtype_of(itemsize), rows, size, at(x), ld_x, at(add), ld_add,
                               at(sum), size, at(weight), eps, plus_one, at(out), size};
            run([&](Team& team) { rms_norm(team, args); });
        },
        nb::kw_only(), arg("itemsize"), arg("rows"), arg("size"), arg("x"), arg("ld_x"), arg("add"),
        arg("ld_add"), arg("sum"), arg("weight"), arg("eps"), arg("plus_one"), arg("out"));
    m.def(
        "rope",
        [](int itemsize, std::int64_t tokens, std::int64_t outer, std::int64_t inner, int head_dim,
           Address x, const Strides& strides, Address cos, Address sin, Address out) {
            const auto [token, outer_stride, inner_stride] = strides;
            const Rope args{dtype_of(itemsize), tokens, outer, inner, head_dim, at(x), token,
                            outer_stride, inner_stride, at(cos), at(sin), at(out)};
            run([&](Team& team) { rope(team, args); });
        },
        nb::kw_only(), arg("itemsize"), arg("tokens"), arg("outer"), arg("inner"), arg("head_dim"),
        arg("x"), arg("strides"), arg("cos"), arg("sin"), arg("out"));
    m.def(
        "rope_kv",
        [](int itemsize, std::int64_t tokens, Address qkv, std::int64_t ld_qkv,
           std::int64_t head_step, int group, Address cos, Address sin, Address q_norm,
           Address k_norm, float eps, bool plus_one, Address slots, Address k_cache,
           Address v_cache, const Strides& strides, std::int64_t num_blocks, int block_size,
           int num_heads, int head_dim, bool panels) {
            if (head_dim > kMaxRopeHead) {
                throw std::invalid_argument("head_dim: expected 512 or less, got " +
                                            std::to_string(head_dim));
            }
            const KvView kv = kv_view(itemsize, k_cache, v_cache, strides, num_blocks, block_size,
                                      num_heads, head_dim, panels);
            check_slots(at<std::int64_t>(slots), tokens, kv);
            const RopeKv args{tokens, at(qkv), ld_qkv, head_step, group, at(cos), at(sin),
                              at(q_norm), at(k_norm), eps, plus_one, at<std::int64_t>(slots)};
            run([&](Team& team) { rope_kv(team, args, kv); });
        },
        nb::kw_only(), arg("itemsize"), arg("tokens"), arg("qkv"), arg("ld_qkv"), arg("head_step"),
        arg("group"), arg("cos"), arg("sin"), arg("q_norm"), arg("k_norm"), arg("eps"),
        arg("plus_one"), arg("slots"), arg("k_cache"), arg("v_cache"), arg("strides"),
        arg("num_blocks"), arg("block_size"), arg("num_heads"), arg("head_dim"), arg("panels"));
    m.def(
        "kv_write",
        [](int itemsize, std::int64_t tokens, Address k, std::int64_t k_token_stride,
           std::int64_t k_head_stride, Address v, std::int64_t v_token_stride,
           std::int64_t v_head_stride, Address slots, Address k_cache, Address v_cache,
           const Strides& strides, std::int64_t num_blocks, int block_size, int num_heads,
           int head_dim, bool panels) {
            const KvView kv = kv_view(itemsize, k_cache, v_cache, strides, num_blocks, block_size,
                                      num_heads, head_dim, panels);
            check_slots(at<std::int64_t>(slots), tokens, kv);
            const KvWrite args{tokens, at(k), k_token_stride, k_head_stride, at(v), v_token_stride,
                               v_head_stride, at<std::int64_t>(slots)};
            run([&](Team& team) { kv_write(team, args, kv); });
        },
        nb::kw_only(), arg("itemsize"), arg("tokens"), arg("k"), arg("k_token_stride"),
        arg("k_head_stride"), arg("v"), arg("v_token_stride"), arg("v_head_stride"), arg("slots"),
        arg("k_cache"), arg("v_cache"), arg("strides"), arg("num_blocks"), arg("block_size"),
        arg("num_heads"), arg("head_dim"), arg("panels"));
    m.def(
        "gated_activation",
        [](int itemsize, bool gelu, std::int64_t rows, std::int64_t size, Address x,
           std::int64_t ld_x, Address out) {
            const DType dtype = dtype_of(itemsize);
            const Activation activation = gelu ? Activation::gelu_tanh : Activation::silu;
            run([&](Team& team) {
                gated_activation(team, dtype, activation, at(x), ld_x, rows, size, at(out), size);
            });
        },
        nb::kw_only(), arg("itemsize"), arg("gelu"), arg("rows"), arg("size"), arg("x"),
        arg("ld_x"), arg("out"));
    m.def(
        "embed_panels",
        [](int itemsize, Address panels, std::int64_t panel_stride_bytes, std::int64_t num_panels,
           std::int64_t columns, std::int64_t depth, Address ids, std::int64_t tokens,
           std::int64_t first, float scale, Address out) {
            std::vector<const void*> pointers;
            for (std::int64_t p = 0; p < num_panels; ++p) {
                pointers.push_back(at<char>(panels) + p * panel_stride_bytes);
            }
            const Linear table{dtype_of(itemsize), pointers.data(), num_panels, columns, depth,
                               nullptr};
            run([&](Team& team) {
                embed_panels(team, table, at<std::int64_t>(ids), tokens, first, scale, at(out),
                             depth);
            });
        },
        nb::kw_only(), arg("itemsize"), arg("panels"), arg("panel_stride_bytes"), arg("num_panels"),
        arg("columns"), arg("depth"), arg("ids"), arg("tokens"), arg("first"), arg("scale"),
        arg("out"));
    m.def(
        "embed_rows",
        [](int itemsize, Address table, std::int64_t num_rows, std::int64_t size, Address ids,
           std::int64_t tokens, std::int64_t first, float scale, Address out) {
            const DType dtype = dtype_of(itemsize);
            run([&](Team& team) {
                embed_rows(team, dtype, at(table), num_rows, size, at<std::int64_t>(ids), tokens,
                           first, scale, at(out), size);
            });
        },
        nb::kw_only(), arg("itemsize"), arg("table"), arg("num_rows"), arg("size"), arg("ids"),
        arg("tokens"), arg("first"), arg("scale"), arg("out"));
}

}  // namespace seesaw
