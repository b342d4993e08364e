// Adds pack_panels and unpack_panels to the Python module (see seesaw/_cpu.pyi).

#include <nanobind/nanobind.h>

#include <stdexcept>

#include "pack.h"

namespace nb = nanobind;

namespace seesaw {

namespace {

using Transform = void (*)(ThreadPool&, const PanelColumns&, const void*, void*);

template <Transform transform>
void call(std::uintptr_t source, std::uintptr_t target, std::int64_t num_rows, std::int64_t words,
          std::int64_t row_stride, std::int64_t panel_stride, std::int64_t first,
          std::int64_t group, std::int64_t step) {
    if (num_rows < 0 || words < 0 || first < 0) {
        throw std::invalid_argument("num_rows, words and first: expected 0 or more");
    }
    if (group < 1 || step < group) {
        throw std::invalid_argument("expected 1 <= group <= step");
    }
    nb::gil_scoped_release release;
    transform(thread_pool(), {num_rows, words, row_stride, panel_stride, first, group, step},
              reinterpret_cast<const void*>(source), reinterpret_cast<void*>(target));
}

}  // namespace

void bind_pack(nb::module_& m) {
    m.def("pack_panels", &call<pack_panels>, nb::kw_only(), nb::arg("source"), nb::arg("target"),
          nb::arg("num_rows"), nb::arg("words"), nb::arg("row_stride"), nb::arg("panel_stride"),
          nb::arg("first"), nb::arg("group"), nb::arg("step"));
    m.def("unpack_panels", &call<unpack_panels>, nb::kw_only(), nb::arg("source"),
          nb::arg("target"), nb::arg("num_rows"), nb::arg("words"), nb::arg("row_stride"),
          nb::arg("panel_stride"), nb::arg("first"), nb::arg("group"), nb::arg("step"));
}

}  // namespace seesaw
