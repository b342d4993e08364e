// The Python module seesaw._cpu: what `seesaw collect-env` reports about the native build, and the
// copy pool. Kernels for the CPU join it as files of their own; nothing here may depend on torch.

#include <nanobind/nanobind.h>
#include <nanobind/stl/string.h>

#include <string>

namespace nb = nanobind;

namespace seesaw {
void bind_copy_pool(nb::module_& m);
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
    seesaw::bind_copy_pool(m);
    // A program may end while threads still wait in here; that is no leak to tell its user about.
    nb::set_leak_warnings(false);
}
