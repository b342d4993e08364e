// Adds Comm, Links, ShmLinks and TcpLinks to the Python module (see seesaw/_cpu.pyi).

#include <nanobind/nanobind.h>
#include <nanobind/stl/shared_ptr.h>
#include <nanobind/stl/string.h>
#include <nanobind/stl/tuple.h>
#include <nanobind/stl/vector.h>

#include <cstdint>
#include <stdexcept>
#include <string>
#include <tuple>
#include <vector>

#include "shm_comm.h"
#include "tcp_comm.h"

namespace nb = nanobind;

namespace seesaw {

namespace {

using ParcelTuple = std::tuple<int, std::uintptr_t, std::int64_t>;

std::vector<Parcel> parcels(const std::vector<ParcelTuple>& tuples) {
    std::vector<Parcel> out;
    for (const auto& [peer, address, nbytes] : tuples) {
        out.push_back({peer, reinterpret_cast<unsigned char*>(address), nbytes});
    }
    return out;
}

DType dtype_of(const std::string& name) {
    if (name == "bfloat16") return DType::bf16;
    if (name == "float32") return DType::f32;
    throw std::invalid_argument("dtype '" + name + "': expected bfloat16 or float32");
}

}  // namespace

void bind_comm(nb::module_& m) {
    using Release = nb::call_guard<nb::gil_scoped_release>;
    nb::class_<Comm>(m, "Comm")
        .def_prop_ro("size", &Comm::size)
        .def_prop_ro("rank", &Comm::rank)
        .def(
            "all_reduce",
            [](Comm& comm, std::uintptr_t data, std::int64_t count, const std::string& dtype) {
                const DType kind = dtype_of(dtype);
                nb::gil_scoped_release release;
                comm.all_reduce(reinterpret_cast<void*>(data), count, kind);
            },
            nb::arg("data"), nb::arg("count"), nb::arg("dtype"))
        .def(
            "all_gather",
            [](Comm& comm, std::uintptr_t source, std::uintptr_t target, std::int64_t nbytes) {
                comm.all_gather(reinterpret_cast<const void*>(source),
                                reinterpret_cast<void*>(target), nbytes);
            },
            nb::arg("source"), nb::arg("target"), nb::arg("nbytes"), Release());
    nb::class_<Links>(m, "Links")
        .def(
            "send",
            [](Links& links, int peer, std::uintptr_t data, std::int64_t nbytes) {
                links.send(peer, reinterpret_cast<const void*>(data), nbytes);
            },
            nb::arg("peer"), nb::arg("data"), nb::arg("nbytes"), Release())
        .def(
            "receive",
            [](Links& links, int peer, std::uintptr_t data, std::int64_t nbytes) {
                links.receive(peer, reinterpret_cast<void*>(data), nbytes);
            },
            nb::arg("peer"), nb::arg("data"), nb::arg("nbytes"), Release())
        .def(
            "exchange",
            [](Links& links, const std::vector<ParcelTuple>& sends,
               const std::vector<ParcelTuple>& receives) {
                links.exchange(parcels(sends), parcels(receives));
            },
            nb::arg("sends"), nb::arg("receives"), Release())
        .def("comm", &Links::comm, nb::arg("members"), nb::keep_alive<0, 1>())
        .def("close", &Links::close, Release());
    nb::class_<ShmLinks, Links>(m, "ShmLinks")
        .def(
            "__init__",
            [](ShmLinks* self, std::uintptr_t memory, int num_ranks, int ring_slots,
               std::int64_t slot_bytes, int rank, double timeout_s) {
                new (self) ShmLinks(reinterpret_cast<void*>(memory),
                                    {num_ranks, ring_slots, slot_bytes}, rank, timeout_s);
            },
            nb::kw_only(), nb::arg("memory"), nb::arg("num_ranks"), nb::arg("ring_slots"),
            nb::arg("slot_bytes"), nb::arg("rank"), nb::arg("timeout_s"), Release())
        .def_static(
            "num_bytes",
            [](int num_ranks, int ring_slots, std::int64_t slot_bytes) {
                return ShmMemory::num_bytes({num_ranks, ring_slots, slot_bytes});
            },
            nb::kw_only(), nb::arg("num_ranks"), nb::arg("ring_slots"), nb::arg("slot_bytes"));
    nb::class_<TcpLinks, Links>(m, "TcpLinks")
        .def(nb::init<std::vector<int>, int, int, double>(), nb::kw_only(), nb::arg("sockets"),
             nb::arg("rank"), nb::arg("most_under_way"), nb::arg("timeout_s"));
}

}  // namespace seesaw
