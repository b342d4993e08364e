// Adds linear and linear_highest to the Python module (see seesaw/_cpu.pyi).

#include <nanobind/nanobind.h>
#include <nanobind/stl/string.h>

#include <stdexcept>
#include <string>
#include <vector>

#include "linear.h"

namespace nb = nanobind;

namespace seesaw {

namespace {

// A weight whose panels lie at even distances, with a pointer to each.
struct Strided {
    std::vector<const void*> panels;
    Linear linear;

    Strided(std::uintptr_t first, std::int64_t stride_bytes, std::int64_t num_panels,
            std::int64_t columns, std::int64_t depth, int itemsize, std::uintptr_t bias) {
        if (itemsize != 2 && itemsize != 4) {
            throw std::invalid_argument("itemsize: expected 2 (bfloat16) or 4 (float32), got " +
                                        std::to_string(itemsize));
        }
        if (num_panels < 0 || depth < 1 || (itemsize == 2 && depth % 2 != 0)) {
            throw std::invalid_argument("expected 0 panels or more and a depth of 1 or more, even "
                                        "for bfloat16; got " + std::to_string(num_panels) +
                                        " and " + std::to_string(depth));
        }
        if (columns < 0 || columns > num_panels * kPanelColumns) {
            throw std::invalid_argument("columns: expected 0 to 32 per panel, got " +
                                        std::to_string(columns) + " with " +
                                        std::to_string(num_panels) + " panels");
        }
        for (std::int64_t i = 0; i < num_panels; ++i) {
            panels.push_back(reinterpret_cast<const char*>(first) + i * stride_bytes);
        }
        linear.dtype = itemsize == 2 ? DType::bf16 : DType::f32;
        linear.panels = panels.data();
        linear.num_panels = num_panels;
        linear.columns = columns;
        linear.depth = depth;
        linear.bias = reinterpret_cast<const void*>(bias);
    }
    Strided(const Strided&) = delete;
    Strided& operator=(const Strided&) = delete;
};

enum class Kind { store, add, silu, gelu_tanh, f32 };

Kind kind_of(const std::string& name) {
    constexpr const char* kNames[] = {"store", "add", "silu", "gelu_tanh", "f32"};
    for (int i = 0; i < 5; ++i) {
        if (name == kNames[i]) return static_cast<Kind>(i);
    }
    throw std::invalid_argument("kind '" + name +
                                "': expected store, add, silu, gelu_tanh or f32");
}

void call(const std::string& kind_name, std::uintptr_t panels, std::int64_t panel_stride_bytes,
          std::int64_t num_panels, std::int64_t columns, std::int64_t depth, int itemsize,
          std::uintptr_t bias, std::uintptr_t x_address, std::int64_t ld_x, std::int64_t rows,
          std::uintptr_t out_address, std::int64_t ld_out) {
    const Kind kind = kind_of(kind_name);
    const Strided weight(panels, panel_stride_bytes, num_panels, columns, depth, itemsize, bias);
    const auto* x = reinterpret_cast<const void*>(x_address);
    auto* out = reinterpret_cast<void*>(out_address);
    const nb::gil_scoped_release release;
    thread_pool().run([&](Team& team) {
        const Linear& w = weight.linear;
        switch (kind) {
            case Kind::store: return linear(team, w, x, ld_x, rows, out, ld_out);
            case Kind::add: return linear_add(team, w, x, ld_x, rows, out, ld_out);
            case Kind::silu:
                return linear_gated(team, w, Activation::silu, x, ld_x, rows, out, ld_out);
            case Kind::gelu_tanh:
                return linear_gated(team, w, Activation::gelu_tanh, x, ld_x, rows, out, ld_out);
            case Kind::f32:
                return linear_f32(team, w, x, ld_x, rows, static_cast<float*>(out), ld_out);
        }
    });
}

void call_highest(std::uintptr_t panels, std::int64_t panel_stride_bytes, std::int64_t num_panels,
                  std::int64_t columns, std::int64_t depth, int itemsize, std::uintptr_t bias,
                  std::uintptr_t x, std::int64_t ld_x, std::int64_t rows, std::uintptr_t value,
                  std::uintptr_t column) {
    const Strided weight(panels, panel_stride_bytes, num_panels, columns, depth, itemsize, bias);
    const nb::gil_scoped_release release;
    ThreadPool& pool = thread_pool();
    std::vector<unsigned char> scratch(highest_scratch_bytes(rows, pool.num_threads()));
    pool.run([&](Team& team) {
        linear_highest(team, weight.linear, reinterpret_cast<const void*>(x), ld_x, rows,
                       reinterpret_cast<float*>(value), reinterpret_cast<std::int64_t*>(column),
                       scratch.data());
    });
}

}  // namespace

void bind_linear(nb::module_& m) {
    m.def("linear", &call, nb::kw_only(), nb::arg("kind"), nb::arg("panels"),
          nb::arg("panel_stride_bytes"), nb::arg("num_panels"), nb::arg("columns"),
          nb::arg("depth"), nb::arg("itemsize"), nb::arg("bias"), nb::arg("x"), nb::arg("ld_x"),
          nb::arg("rows"), nb::arg("out"), nb::arg("ld_out"));
    m.def("linear_highest", &call_highest, nb::kw_only(), nb::arg("panels"),
          nb::arg("panel_stride_bytes"), nb::arg("num_panels"), nb::arg("columns"),
          nb::arg("depth"), nb::arg("itemsize"), nb::arg("bias"), nb::arg("x"), nb::arg("ld_x"),
          nb::arg("rows"), nb::arg("value"), nb::arg("column"));
}

}  // namespace seesaw
