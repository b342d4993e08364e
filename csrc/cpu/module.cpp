// The Python module seesaw._cpu: what `seesaw collect-env` reports about the native build, the choice
// of instruction set and threads, and what the bind_*.cpp files add. Nothing here may depend on torch.

#include <nanobind/nanobind.h>
#include <nanobind/stl/string.h>
#include <nanobind/stl/vector.h>

#include <string>
#include <utility>
#include <vector>

#include "isa.h"
#include "thread_pool.h"

namespace nb = nanobind;

namespace seesaw {
void bind_attention(nb::module_& m);
void bind_comm(nb::module_& m);
void bind_copy_pool(nb::module_& m);
void bind_decoder(nb::module_& m);
void bind_linear(nb::module_& m);
void bind_moe(nb::module_& m);
void bind_pack(nb::module_& m);
void bind_probe(nb::module_& m);
void bind_rows(nb::module_& m);
void bind_sampling(nb::module_& m);
}

namespace {

std::string compiler() {
#if defined(__clang__)
    return "clang " __clang_version__;
#elif defined(__GNUC__)
    return "gcc " __VERSION__;
#else
    return "unknown";
#endif
}

// What the processor that runs this can do, in the words of the kernel's /proc/cpuinfo.
nb::list cpu_features() {
    nb::list found;
#if defined(__x86_64__)
    __builtin_cpu_init();
    if (__builtin_cpu_supports("avx2")) found.append("avx2");
    if (__builtin_cpu_supports("fma")) found.append("fma");
    if (__builtin_cpu_supports("avx512f")) found.append("avx512f");
    if (__builtin_cpu_supports("avx512bw")) found.append("avx512bw");
    if (__builtin_cpu_supports("avx512vnni")) found.append("avx512_vnni");
    if (__builtin_cpu_supports("avx512bf16")) found.append("avx512_bf16");
#elif defined(__aarch64__)
    found.append("asimd");
#endif
    return found;
}

}  // namespace

NB_MODULE(_cpu, m) {
    m.doc() = "C++ side of seesaw for CPUs.";
    m.def(
        "build_info",
        [] {
            nb::dict info;
            info["compiler"] = compiler();
            info["cxx_standard"] = static_cast<long>(__cplusplus);
            info["cpu_features"] = cpu_features();
            return info;
        },
        "Compiler and C++ standard of this build, and the vector extensions of this processor.");
    m.def("isa", [] { return seesaw::isa_name(seesaw::isa()); });
    m.def("best_isa", [] { return seesaw::isa_name(seesaw::best_isa()); });
    m.def(
        "set_isa",
        [](const std::string& name) { seesaw::set_isa(seesaw::isa_of(name.c_str())); },
        nb::arg("name"));
    m.def("num_threads", [] { return seesaw::thread_pool().num_threads(); });
    m.def(
        "configure_threads",
        [](int num_threads, std::vector<int> cores) {
            seesaw::configure_thread_pool(num_threads, std::move(cores));
        },
        nb::arg("num_threads"), nb::arg("cores") = std::vector<int>{});
    m.def(
        "configure_lane_threads",
        [](int lane, int num_threads, std::vector<int> cores) {
            seesaw::configure_lane_thread_pool(lane, num_threads, std::move(cores));
        },
        nb::arg("lane"), nb::arg("num_threads"), nb::arg("cores") = std::vector<int>{});
    seesaw::bind_attention(m);
    seesaw::bind_comm(m);
    seesaw::bind_copy_pool(m);
    seesaw::bind_decoder(m);
    seesaw::bind_linear(m);
    seesaw::bind_moe(m);
    seesaw::bind_pack(m);
    seesaw::bind_probe(m);
    seesaw::bind_rows(m);
    seesaw::bind_sampling(m);
    // A program may end while threads still wait in here; that is no leak to tell its user about.
    nb::set_leak_warnings(false);
}
