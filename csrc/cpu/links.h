// How a rank reaches the others of its replica: bytes from rank to rank, and the `Comm` of those that
// share layers. Over shared memory (shm_comm) or TCP (tcp_comm).

#pragma once

#include <chrono>
#include <cstdint>
#include <memory>
#include <sstream>
#include <string>
#include <vector>

#include "comm.h"

namespace seesaw {

// Bytes on their way to or from `peer`.
struct Parcel {
    int peer;
    unsigned char* data;
    std::int64_t nbytes;
};

// For messages: "600 s".
inline std::string seconds_text(std::chrono::duration<double> time) {
    std::ostringstream text;
    text << time.count() << " s";
    return text.str();
}

// Used by one thread at a time. What rank a sends to b, and b receives from a, is the same, in the
// same order and sizes. All throw std::runtime_error, naming the rank, where one that is waited for
// is gone or is not heard of in time.
class Links {
public:
    virtual ~Links() = default;
    // Returns before the bytes have arrived, unless as many sends as may be under way are so; they
    // may be changed then.
    virtual void send(int peer, const void* data, std::int64_t nbytes) = 0;
    virtual void receive(int peer, void* data, std::int64_t nbytes) = 0;
    // All of both lists, whatever order the peers are ready in.
    virtual void exchange(const std::vector<Parcel>& sends,
                          const std::vector<Parcel>& receives) = 0;
    // The ranks `members`, this one among them, in this order. Not to be used after close().
    virtual std::shared_ptr<Comm> comm(std::vector<int> members) = 0;
    // What was sent still arrives. Who waits for this rank gets an error. Safe to call twice.
    virtual void close() = 0;
};

}  // namespace seesaw
