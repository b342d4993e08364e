// Adds Decoder to the Python module (see seesaw/_cpu.pyi), and CallbackComm: sums over ranks by a
// Python function. After bind_comm, whose Comm it is. Nothing is checked here: models/cpu_decoder.py
// is the only one that comes through.

#include <nanobind/nanobind.h>
#include <nanobind/stl/optional.h>
#include <nanobind/stl/pair.h>
#include <nanobind/stl/shared_ptr.h>
#include <nanobind/stl/string.h>
#include <nanobind/stl/tuple.h>
#include <nanobind/stl/vector.h>

#include <optional>
#include <stdexcept>
#include <string>
#include <tuple>
#include <utility>

#include "decoder.h"

namespace nb = nanobind;

namespace seesaw {

namespace {

using Address = std::uintptr_t;
using Count = std::int64_t;
// (first panel, bytes from panel to panel, panels, columns, depth, bias or 0)
using MatrixArgs = std::tuple<Address, Count, Count, Count, Count, Address>;

template <class T = void>
T* at(Address address) {
    return reinterpret_cast<T*>(address);
}

PanelMatrix matrix(const MatrixArgs& args) {
    const auto [first, panel_bytes, num_panels, columns, depth, bias] = args;
    return {at(first), panel_bytes, num_panels, columns, depth, at(bias)};
}

// Called while the decoder's region runs without Python's lock.
class CallbackComm final : public Comm {
public:
    CallbackComm(int size, int rank, nb::callable all_reduce)
        : size_(size), rank_(rank), all_reduce_(std::move(all_reduce)) {}
    int size() const override { return size_; }
    int rank() const override { return rank_; }
    void all_reduce(void* data, std::int64_t count, DType) override {
        const nb::gil_scoped_acquire acquire;
        all_reduce_(reinterpret_cast<Address>(data), count);
    }
    void all_gather(const void*, void*, std::int64_t) override {
        throw std::logic_error("a decoder gathers nothing");
    }

private:
    const int size_;
    const int rank_;
    const nb::callable all_reduce_;
};

}  // namespace

void bind_decoder(nb::module_& m) {
    nb::class_<CallbackComm, Comm>(m, "CallbackComm")
        .def(nb::init<int, int, nb::callable>(), nb::arg("size"), nb::arg("rank"),
             nb::arg("all_reduce"));
    nb::class_<Decoder>(m, "Decoder")
        .def(
            "__init__",
            [](Decoder* self, const std::string& dtype, Count hidden_size, int head_dim,
               Count head_step, int num_kv_heads, int group, float norm_eps, bool norm_plus_one,
               float sm_scale, float attn_soft_cap, bool gelu, std::shared_ptr<Comm> comm,
               int own_threads, int experts_per_token, bool renormalize_experts) {
                DecoderShape shape;
                shape.dtype = dtype == "bfloat16" ? DType::bf16 : DType::f32;
                shape.hidden_size = hidden_size;
                shape.head_dim = head_dim;
                shape.head_step = head_step;
                shape.num_kv_heads = num_kv_heads;
                shape.group = group;
                shape.norm_eps = norm_eps;
                shape.norm_plus_one = norm_plus_one;
                shape.sm_scale = sm_scale;
                shape.attn_soft_cap = attn_soft_cap;
                shape.activation = gelu ? Activation::gelu_tanh : Activation::silu;
                shape.experts_per_token = experts_per_token;
                shape.renormalize_experts = renormalize_experts;
                new (self) Decoder(shape, std::move(comm), own_threads);
            },
            nb::kw_only(), nb::arg("dtype"), nb::arg("hidden_size"), nb::arg("head_dim"),
            nb::arg("head_step"), nb::arg("num_kv_heads"), nb::arg("group"), nb::arg("norm_eps"),
            nb::arg("norm_plus_one"), nb::arg("sm_scale"), nb::arg("attn_soft_cap"),
            nb::arg("gelu"), nb::arg("comm").none(), nb::arg("own_threads"),
            nb::arg("experts_per_token") = 0, nb::arg("renormalize_experts") = false)
        .def(
            "add_layer",
            [](Decoder& self, Address input_norm, Address attention_out_norm, Address mlp_norm,
               Address mlp_out_norm, Address q_norm, Address k_norm, const MatrixArgs& qkv,
               const MatrixArgs& o, const MatrixArgs& gate_up, const MatrixArgs& down, Count window,
               int rope, const std::optional<MatrixArgs>& router, int first_expert,
               int num_experts, Address expert_loads) {
                self.add_layer({at(input_norm), at(attention_out_norm), at(mlp_norm),
                                at(mlp_out_norm), at(q_norm), at(k_norm), matrix(qkv), matrix(o),
                                matrix(gate_up), matrix(down), window, rope,
                                router ? matrix(*router) : PanelMatrix(), first_expert,
                                num_experts, at<Count>(expert_loads)});
            },
            nb::kw_only(), nb::arg("input_norm"), nb::arg("attention_out_norm"),
            nb::arg("mlp_norm"), nb::arg("mlp_out_norm"), nb::arg("q_norm"), nb::arg("k_norm"),
            nb::arg("qkv"), nb::arg("o"), nb::arg("gate_up"), nb::arg("down"), nb::arg("window"),
            nb::arg("rope"), nb::arg("router") = nb::none(), nb::arg("first_expert") = 0,
            nb::arg("num_experts") = 0, nb::arg("expert_loads") = 0)
        .def(
            "set_embedding",
            [](Decoder& self, const std::optional<MatrixArgs>& table, Address rows, Count num_rows,
               Count first_id, float scale) {
                self.set_embedding({table ? matrix(*table) : PanelMatrix(), at(rows), num_rows,
                                    first_id, scale});
            },
            nb::kw_only(), nb::arg("table").none(), nb::arg("rows"), nb::arg("num_rows"),
            nb::arg("first_id"), nb::arg("scale"))
        .def(
            "set_head",
            [](Decoder& self, Address norm, const MatrixArgs& head, Count first_id) {
                self.set_head(at(norm), matrix(head), first_id);
            },
            nb::kw_only(), nb::arg("norm"), nb::arg("head"), nb::arg("first_id"))
        .def(
            "embed",
            [](Decoder& self, Address ids, Count tokens, Address hidden) {
                const nb::gil_scoped_release release;
                self.embed(at<const Count>(ids), tokens, at(hidden));
            },
            nb::arg("ids"), nb::arg("tokens"), nb::arg("hidden"))
        .def(
            "run_layers",
            [](Decoder& self, Address hidden, Count tokens, Count num_rows, Address cu_seqlens_q,
               Address seq_lens, Address block_table, Count table_stride, Address slots,
               const std::vector<std::pair<Address, Address>>& cos_sin, Address pool,
               Count num_blocks, int block_size, bool panels, int begin, int end, Address wanted,
               Count num_wanted, const std::optional<nb::callable>& before) {
                DecoderStep step;
                step.tokens = tokens;
                step.rows = {num_rows, at<const Count>(cu_seqlens_q), at<const Count>(seq_lens),
                             at<const std::int32_t>(block_table), table_stride};
                step.slots = at<const Count>(slots);
                step.wanted = at<const Count>(wanted);
                step.num_wanted = num_wanted;
                for (const auto& [cos, sin] : cos_sin) step.cos_sin.emplace_back(at(cos), at(sin));
                std::function<void(int)> tell;
                if (before) {
                    tell = [&before](int layer) {
                        const nb::gil_scoped_acquire acquire;
                        (*before)(layer);
                    };
                }
                const nb::gil_scoped_release release;
                self.run_layers(at(hidden), step, {at(pool), num_blocks, block_size, panels}, begin,
                                end, tell);
            },
            nb::kw_only(), nb::arg("hidden"), nb::arg("tokens"), nb::arg("num_rows"),
            nb::arg("cu_seqlens_q"), nb::arg("seq_lens"), nb::arg("block_table"),
            nb::arg("table_stride"), nb::arg("slots"), nb::arg("cos_sin"), nb::arg("pool"),
            nb::arg("num_blocks"), nb::arg("block_size"), nb::arg("panels"), nb::arg("begin"),
            nb::arg("end"), nb::arg("wanted"), nb::arg("num_wanted"),
            nb::arg("before") = nb::none())
        .def(
            "logits",
            [](Decoder& self, Address hidden, Address index, Count count, Address out) {
                const nb::gil_scoped_release release;
                self.logits(at(hidden), at<const Count>(index), count, at<float>(out));
            },
            nb::arg("hidden"), nb::arg("index"), nb::arg("count"), nb::arg("out"))
        .def(
            "highest",
            [](Decoder& self, Address hidden, Address index, Count count, Address value,
               Address id) {
                const nb::gil_scoped_release release;
                self.highest(at(hidden), at<const Count>(index), count, at<float>(value),
                             at<Count>(id));
            },
            nb::arg("hidden"), nb::arg("index"), nb::arg("count"), nb::arg("value"), nb::arg("id"))
        .def("set_profiling", &Decoder::set_profiling, nb::arg("on"))
        .def("take_profile", [](Decoder& self) {
            nb::dict found;
            const PartSeconds seconds = self.take_profile();
            for (std::size_t part = 0; part < seconds.size(); ++part) {
                if (seconds[part] > 0) found[part_name(static_cast<Part>(part))] = seconds[part];
            }
            return found;
        });
}

}  // namespace seesaw
