// Adds moe_route and moe_mlp to the Python module (see seesaw/_cpu.pyi).

#include <nanobind/nanobind.h>

#include <algorithm>
#include <stdexcept>
#include <string>
#include <vector>

#include "moe.h"
#include "scratch.h"

namespace nb = nanobind;

namespace seesaw {

namespace {

using Address = std::uintptr_t;
using Count = std::int64_t;

template <class T = void>
T* at(Address address) {
    return reinterpret_cast<T*>(address);
}

void route(Address logits, Count tokens, int num_experts, int top_k, bool renormalize,
           Address weights, Address experts) {
    if (tokens < 0 || top_k < 1 || top_k > num_experts) {
        throw std::invalid_argument("top_k: got " + std::to_string(top_k) + ", expected 1 to " +
                                    std::to_string(num_experts) + ", the number of experts");
    }
    const nb::gil_scoped_release release;
    const Choice choice{tokens, top_k, at<float>(weights), at<std::int32_t>(experts)};
    thread_pool().run([&](Team& team) {
        moe_route(team, at<const float>(logits), num_experts, renormalize, choice);
    });
}

// Panels of all experts, evenly apart.
std::vector<const void*> table(Address first, Count panel_bytes, Count count) {
    std::vector<const void*> panels;
    for (Count i = 0; i < count; ++i) panels.push_back(at<const char>(first) + i * panel_bytes);
    return panels;
}

// Rows of an expert are counted as if none came twice.
void check_distinct(const Choice& choice) {
    for (Count token = 0; token < choice.tokens; ++token) {
        const std::int32_t* begin = choice.experts + token * choice.top_k;
        for (int i = 1; i < choice.top_k; ++i) {
            if (std::find(begin, begin + i, begin[i]) != begin + i) {
                throw std::invalid_argument("experts: token " + std::to_string(token) +
                                            " has expert " + std::to_string(begin[i]) + " twice");
            }
        }
    }
}

void mlp(int itemsize, Address gate_up, Address down, int num_experts, int first_expert,
         Count hidden, Count inner, bool gelu, Count tokens, int top_k, Address weights,
         Address experts_address, Address x, Count ld_x, Address out, Address loads) {
    if (itemsize != 2 && itemsize != 4) {
        throw std::invalid_argument("itemsize: expected 2 (bfloat16) or 4 (float32), got " +
                                    std::to_string(itemsize));
    }
    if (tokens < 0 || top_k < 1 || num_experts < 1 || hidden < 1 || inner < 1 ||
        (itemsize == 2 && (hidden % 2 != 0 || inner % 2 != 0))) {
        throw std::invalid_argument("expected one expert or more, and sizes of 1 or more, even for "
                                    "bfloat16; got " + std::to_string(num_experts) + " of " +
                                    std::to_string(hidden) + " x " + std::to_string(inner));
    }
    const auto panels_of = [](Count columns) {
        return (columns + kPanelColumns - 1) / kPanelColumns;
    };
    const Count gate_up_panels = panels_of(2 * ((inner + 15) / 16 * 16));
    const Count down_panels = panels_of(hidden);
    const Count row_bytes = kPanelColumns * itemsize;
    const auto gate_up_table = table(gate_up, hidden * row_bytes, num_experts * gate_up_panels);
    const auto down_table = table(down, inner * row_bytes, num_experts * down_panels);
    const DType dtype = itemsize == 2 ? DType::bf16 : DType::f32;
    Experts experts;
    experts.gate_up = {dtype, gate_up_table.data(), gate_up_panels, 2 * inner, hidden, nullptr};
    experts.down = {dtype, down_table.data(), down_panels, hidden, inner, nullptr};
    experts.first = first_expert;
    experts.count = num_experts;
    experts.activation = gelu ? Activation::gelu_tanh : Activation::silu;
    const Choice choice{tokens, top_k, at<float>(weights), at<std::int32_t>(experts_address)};
    check_distinct(choice);
    const nb::gil_scoped_release release;
    Scratch scratch;
    void* const memory = scratch.get(MoeCall::scratch_bytes(experts, tokens, top_k));
    thread_pool().run([&](Team& team) {
        MoeCall call(experts, choice, memory);
        call.gather(team, at(x), ld_x, at<Count>(loads));
        call.gate_up(team);
        call.down(team);
        call.sum(team, false, at(out), hidden);
    });
}

}  // namespace

void bind_moe(nb::module_& m) {
    m.def("moe_route", &route, nb::kw_only(), nb::arg("logits"), nb::arg("tokens"),
          nb::arg("num_experts"), nb::arg("top_k"), nb::arg("renormalize"), nb::arg("weights"),
          nb::arg("experts"));
    m.def("moe_mlp", &mlp, nb::kw_only(), nb::arg("itemsize"), nb::arg("gate_up"), nb::arg("down"),
          nb::arg("num_experts"), nb::arg("first_expert"), nb::arg("hidden"), nb::arg("inner"),
          nb::arg("gelu"), nb::arg("tokens"), nb::arg("top_k"), nb::arg("weights"),
          nb::arg("experts"), nb::arg("x"), nb::arg("ld_x"), nb::arg("out"), nb::arg("loads"));
}

}  // namespace seesaw
