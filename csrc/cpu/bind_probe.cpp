// Adds the limits of this machine to the Python module (see seesaw/_cpu.pyi).

#include <nanobind/nanobind.h>
#include <nanobind/stl/string.h>

#include <cstddef>
#include <cstdint>
#include <stdexcept>
#include <string>

#include "probe.h"

namespace nb = nanobind;

namespace seesaw {

void bind_probe(nb::module_& m) {
    m.def(
        "read_rate",
        [](std::uintptr_t address, std::size_t nbytes) {
            nb::gil_scoped_release release;
            return read_rate(thread_pool(), reinterpret_cast<const void*>(address), nbytes);
        },
        nb::arg("address"), nb::arg("nbytes"));
    m.def(
        "multiply_rate",
        [](const std::string& dtype, double seconds) {
            if (dtype != "bfloat16" && dtype != "float32") {
                throw std::invalid_argument("dtype '" + dtype + "': expected bfloat16 or float32");
            }
            nb::gil_scoped_release release;
            return multiply_rate(thread_pool(), dtype == "bfloat16" ? DType::bf16 : DType::f32,
                                 seconds);
        },
        nb::arg("dtype"), nb::arg("seconds"));
}

}  // namespace seesaw
