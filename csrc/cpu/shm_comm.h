// Ranks of one host, over memory that all of them map.
//
// Each rank has, for every size of group, two slots from which the others of its group read, and for
// every other rank a ring of slots that the other one empties. Counters say how far each is. Who
// waits for one spins, then sleeps on a word of its own until the other side rings.

#pragma once

#include <chrono>
#include <cstdint>
#include <memory>
#include <span>
#include <vector>

#include "links.h"
#include "shm_memory.h"

namespace seesaw {

class ShmLinks final : public Links {
public:
    // Joins the other ranks; returns when all have. `memory`, of ShmMemory::num_bytes, outlives
    // this, up to close(). Throws std::invalid_argument.
    ShmLinks(void* memory, const ShmShape& shape, int rank, double timeout_s);
    ~ShmLinks() override;
    ShmLinks(const ShmLinks&) = delete;
    ShmLinks& operator=(const ShmLinks&) = delete;

    void send(int peer, const void* data, std::int64_t nbytes) override;
    void receive(int peer, void* data, std::int64_t nbytes) override;
    void exchange(const std::vector<Parcel>& sends, const std::vector<Parcel>& receives) override;
    std::shared_ptr<Comm> comm(std::vector<int> members) override;
    void close() override;

private:
    friend class ShmComm;
    bool can_send(int peer) const;
    bool can_receive(int peer) const;
    // One slot of it; the parcel becomes the rest.
    void send_slot(Parcel& parcel);
    void receive_slot(Parcel& parcel);

    // Until ready(); `peers`: any of them can make it so.
    template <class Ready>
    void wait(std::span<const int> peers, Ready&& ready);
    void ring_bell(int rank);
    // Why nothing more can be expected of `peer`; nullptr where something can.
    const char* end_of(int peer) const;
    void check_open() const;

    const ShmMemory memory_;
    const int rank_;
    const std::chrono::duration<double> timeout_;
    std::vector<int> processes_;  // a pidfd of each rank
    bool closed_ = false;
};

// The groups of one size share nothing: a rank is in one of them at most, as the layouts over the
// same ranks have it.
class ShmComm final : public Comm {
public:
    ShmComm(ShmLinks& links, std::vector<int> members);
    int size() const override { return static_cast<int>(members_.size()); }
    int rank() const override { return rank_; }
    void all_reduce(void* data, std::int64_t count, DType dtype) override;
    void all_gather(const void* in, void* out, std::int64_t nbytes) override;

private:
    ShmPlace& place(int member) const;
    // The member's slot of the chunk that is under way.
    unsigned char* slot(int member) const;
    // Tells the others that this rank has come one step further, and waits until they have too.
    void meet();
    void add_alone(unsigned char* data, std::int64_t count, DType dtype);
    void add_in_shares(unsigned char* data, std::int64_t count, DType dtype);

    ShmLinks& links_;
    const std::vector<int> members_;
    int rank_ = -1;  // within the group
    std::vector<const void*> parts_;
};

}  // namespace seesaw
