// What a decoder asks of the ranks that share its layers: sums over them. Who answers is the business
// of shm_comm, tcp_comm and, for torch.distributed, of a callback.

#pragma once

#include <cstdint>

#include "numbers.h"

namespace seesaw {

class Comm {
public:
    virtual ~Comm() = default;
    virtual int size() const = 0;
    virtual int rank() const = 0;
    // Sum over the ranks, in place; the same bits on all. Called by one thread of each rank, in the
    // same order on all. Throws std::runtime_error where a rank is gone.
    virtual void all_reduce(void* data, std::int64_t count, DType dtype) = 0;
    // Rank r's `nbytes` come to out + r * nbytes, on all ranks.
    virtual void all_gather(const void* in, void* out, std::int64_t nbytes) = 0;
};

}  // namespace seesaw
