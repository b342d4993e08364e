// Adds paged_attention to the Python module (see seesaw/_cpu.pyi).

#include <nanobind/nanobind.h>
#include <nanobind/stl/array.h>
#include <nanobind/stl/vector.h>

#include <array>
#include <cstdint>
#include <memory>
#include <new>
#include <stdexcept>
#include <string>
#include <vector>

#include "attention.h"

namespace nb = nanobind;

namespace seesaw {

namespace {

using Address = std::uintptr_t;
using Strides = std::array<std::int64_t, 3>;

struct FreeAligned {
    void operator()(char* memory) const { ::operator delete[](memory, std::align_val_t{64}); }
};

std::string text(std::int64_t number) { return std::to_string(number); }

// A block elsewhere would be read from memory that is not the pool's.
void check_rows(const std::vector<std::int64_t>& cu_seqlens, const std::vector<std::int64_t>& seq_lens,
                const std::int32_t* table, std::int64_t stride, std::int64_t width,
                const KvView& kv) {
    if (cu_seqlens.size() != seq_lens.size() + 1 || cu_seqlens[0] != 0) {
        throw std::invalid_argument("cu_seqlens_q: expected 0 and an end for each of " +
                                    text(static_cast<std::int64_t>(seq_lens.size())) + " rows");
    }
    for (std::size_t row = 0; row < seq_lens.size(); ++row) {
        const std::int64_t queries = cu_seqlens[row + 1] - cu_seqlens[row];
        const std::string name = "row " + text(static_cast<std::int64_t>(row)) + ": ";
        if (queries < 0 || queries > seq_lens[row]) {
            throw std::invalid_argument(name + "expected 0 queries or more and no more than tokens, got " +
                                        text(queries) + " queries of " + text(seq_lens[row]) + " tokens");
        }
        if (queries == 0) continue;
        const std::int64_t blocks = (seq_lens[row] + kv.block_size - 1) / kv.block_size;
        if (blocks > width) {
            throw std::invalid_argument(name + text(seq_lens[row]) + " tokens take " + text(blocks) +
                                        " blocks, the table has room for " + text(width));
        }
        for (std::int64_t i = 0; i < blocks; ++i) {
            const std::int64_t block = table[static_cast<std::int64_t>(row) * stride + i];
            if (block < 0 || block >= kv.num_blocks) {
                throw std::out_of_range(name + "block " + text(block) + ": expected 0 or more and less than " +
                                        text(kv.num_blocks));
            }
        }
    }
}

void paged_attention(int itemsize, Address q, const Strides& q_strides, Address k_cache,
                     Address v_cache, const Strides& strides, std::int64_t num_blocks,
                     int block_size, int num_heads, int head_dim, bool panels, int group,
                     Address block_table, std::int64_t table_stride, std::int64_t table_width,
                     const std::vector<std::int64_t>& cu_seqlens_q,
                     const std::vector<std::int64_t>& seq_lens, float scale, float soft_cap,
                     std::int64_t window, Address out, Address lse) {
    if (itemsize != 2 && itemsize != 4) {
        throw std::invalid_argument("itemsize: expected 2 (bfloat16) or 4 (float32), got " +
                                    text(itemsize));
    }
    KvView kv;
    kv.dtype = itemsize == 2 ? DType::bf16 : DType::f32;
    kv.k = reinterpret_cast<void*>(k_cache);
    kv.v = reinterpret_cast<void*>(v_cache);
    kv.block_stride = strides[0];
    kv.head_stride = strides[1];
    kv.token_stride = strides[2];
    kv.num_blocks = num_blocks;
    kv.block_size = block_size;
    kv.num_heads = num_heads;
    kv.head_dim = head_dim;
    kv.panels = panels;
    if (!attention_supports(kv) || num_heads < 1 || group < 1) {
        throw std::invalid_argument(
            "expected a head_dim of 16, 32 .. 256, blocks of 1 token or more (in panels a multiple of "
            "32) and a head or more, got head_dim " + text(head_dim) + ", blocks of " +
            text(block_size) + ", " + text(num_heads) + " KV heads of " + text(group) +
            " query heads each");
    }
    if (!(scale > 0)) throw std::invalid_argument("scale: expected more than 0");
    const auto* table = reinterpret_cast<const std::int32_t*>(block_table);
    check_rows(cu_seqlens_q, seq_lens, table, table_stride, table_width, kv);

    AttentionRows rows;
    rows.num_rows = static_cast<std::int64_t>(seq_lens.size());
    rows.cu_seqlens_q = cu_seqlens_q.data();
    rows.seq_lens = seq_lens.data();
    rows.block_table = table;
    rows.table_stride = table_stride;
    Attention args;
    args.q = reinterpret_cast<const void*>(q);
    args.q_token_stride = q_strides[0];
    args.q_group_stride = q_strides[1];
    args.q_head_stride = q_strides[2];
    args.group = group;
    args.scale = scale;
    args.soft_cap = soft_cap;
    args.window = window;
    args.out = reinterpret_cast<void*>(out);
    args.ld_out = static_cast<std::int64_t>(num_heads) * group * head_dim;
    args.lse = reinterpret_cast<float*>(lse);

    const nb::gil_scoped_release release;
    ThreadPool& pool = thread_pool();
    const std::size_t bytes = pool.num_threads() * attention_scratch_bytes(kv, group);
    const std::unique_ptr<char[], FreeAligned> scratch(new (std::align_val_t{64}) char[bytes]);
    pool.run([&](Team& team) { attention(team, args, rows, kv, scratch.get()); });
}

}  // namespace

void bind_attention(nb::module_& m) {
    using nb::arg;
    m.def("paged_attention", &paged_attention, nb::kw_only(), arg("itemsize"), arg("q"),
          arg("q_strides"), arg("k_cache"), arg("v_cache"), arg("strides"), arg("num_blocks"),
          arg("block_size"), arg("num_heads"), arg("head_dim"), arg("panels"), arg("group"),
          arg("block_table"), arg("table_stride"), arg("table_width"), arg("cu_seqlens_q"),
          arg("seq_lens"), arg("scale"), arg("soft_cap"), arg("window"), arg("out"), arg("lse"));
}

}  // namespace seesaw
