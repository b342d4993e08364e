// Adds CopyPool to the Python module (see seesaw/_cpu.pyi).

#include <nanobind/nanobind.h>
#include <nanobind/stl/array.h>
#include <nanobind/stl/optional.h>
#include <nanobind/stl/tuple.h>
#include <nanobind/stl/vector.h>

#include <optional>
#include <tuple>
#include <utility>

#include "copy_pool.h"

namespace nb = nanobind;

namespace seesaw {

using Offsets = std::vector<std::int64_t>;
using Box = std::array<std::int64_t, 3>;
using Done = std::tuple<std::uint64_t, std::uint64_t, double>;

void bind_copy_pool(nb::module_& m) {
    nb::class_<CopyPool>(m, "CopyPool")
        .def(nb::init<int, std::size_t>(), nb::arg("num_threads"), nb::arg("max_jobs"))
        .def(
            "submit",
            [](CopyPool& pool, std::uint64_t key, std::uintptr_t source, std::uintptr_t target,
               Offsets source_offsets, Offsets target_offsets, Box counts, Box source_strides,
               Box target_strides, std::size_t tile_bytes) {
                nb::gil_scoped_release release;
                pool.submit({key, reinterpret_cast<const unsigned char*>(source),
                             reinterpret_cast<unsigned char*>(target), std::move(source_offsets),
                             std::move(target_offsets), counts, source_strides, target_strides,
                             tile_bytes});
            },
            nb::kw_only(), nb::arg("key"), nb::arg("source"), nb::arg("target"),
            nb::arg("source_offsets"), nb::arg("target_offsets"), nb::arg("counts"),
            nb::arg("source_strides"), nb::arg("target_strides"), nb::arg("tile_bytes"))
        .def("next_done",
             [](CopyPool& pool) -> std::optional<Done> {
                 nb::gil_scoped_release release;
                 const std::optional<CopyDone> done = pool.next_done();
                 if (!done) return std::nullopt;
                 return Done{done->key, done->num_bytes, done->seconds};
             })
        .def("close", &CopyPool::close, nb::call_guard<nb::gil_scoped_release>());
}

}  // namespace seesaw
