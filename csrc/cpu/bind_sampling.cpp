// Adds sample and logprobs to the Python module (see seesaw/_cpu.pyi).

#include <nanobind/nanobind.h>

#include <cstddef>
#include <limits>
#include <memory>
#include <new>
#include <stdexcept>
#include <string>

#include "sampling.h"

namespace nb = nanobind;

namespace seesaw {

namespace {

using Address = std::uintptr_t;

template <class T>
T* at(Address address) {
    return reinterpret_cast<T*>(address);
}

// Scratch for all threads of the pool, and what it is used by.
template <class Args>
void run(void (*op)(Team&, const Args&, void*), const Args& args) {
    if (args.vocab < 1 || args.vocab > std::numeric_limits<std::int32_t>::max()) {
        throw std::invalid_argument("vocab: expected 1 to 2^31 - 1, got " +
                                    std::to_string(args.vocab));
    }
    nb::gil_scoped_release release;
    ThreadPool& pool = thread_pool();
    constexpr std::align_val_t kLine{64};
    const auto free = [](void* p) { ::operator delete(p, kLine); };
    const std::size_t bytes =
        sampling_scratch_bytes(args.vocab) * static_cast<std::size_t>(pool.num_threads());
    const std::unique_ptr<void, decltype(free)> scratch(::operator new(bytes, kLine), free);
    pool.run([&](Team& team) { op(team, args, scratch.get()); });
}

}  // namespace

void bind_sampling(nb::module_& m) {
    using nb::arg;
    m.def(
        "sample",
        [](std::int64_t rows, std::int64_t vocab, Address logits, std::int64_t ld_logits,
           Address temperature, Address top_k, Address top_p, Address min_p, Address uniform,
           Address tokens) {
            const Sampling args{rows, vocab, at<float>(logits), ld_logits, at<float>(temperature),
                                at<std::int64_t>(top_k), at<float>(top_p), at<float>(min_p),
                                at<double>(uniform), at<std::int64_t>(tokens)};
            run(sample, args);
        },
        nb::kw_only(), arg("rows"), arg("vocab"), arg("logits"), arg("ld_logits"),
        arg("temperature"), arg("top_k"), arg("top_p"), arg("min_p"), arg("uniform"),
        arg("tokens"));
    m.def(
        "logprobs",
        [](std::int64_t rows, std::int64_t vocab, Address logits, std::int64_t ld_logits,
           Address tokens, std::int64_t top, Address logprob, Address ranks, Address top_ids,
           Address top_logprobs) {
            const Logprobs args{rows, vocab, at<float>(logits), ld_logits,
                                at<std::int64_t>(tokens), top, at<float>(logprob),
                                at<std::int64_t>(ranks), at<std::int64_t>(top_ids),
                                at<float>(top_logprobs)};
            if (top < 0 || top > vocab) {
                throw std::invalid_argument("top: expected 0 to " + std::to_string(vocab) +
                                            ", got " + std::to_string(top));
            }
            for (std::int64_t row = 0; row < rows; ++row) {
                if (args.tokens[row] < 0 || args.tokens[row] >= vocab) {
                    throw std::out_of_range("token " + std::to_string(args.tokens[row]) +
                                            " of row " + std::to_string(row) + ": expected 0 to " +
                                            std::to_string(vocab - 1));
                }
            }
            run(logprobs, args);
        },
        nb::kw_only(), arg("rows"), arg("vocab"), arg("logits"), arg("ld_logits"), arg("tokens"),
        arg("top"), arg("logprobs"), arg("ranks"), arg("top_ids"), arg("top_logprobs"));
}

}  // namespace seesaw
