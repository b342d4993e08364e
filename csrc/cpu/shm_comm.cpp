#include "shm_comm.h"

#include <algorithm>
#include <atomic>
#include <cerrno>
#include <climits>
#include <cstring>
#include <ctime>
#include <stdexcept>
#include <string>
#include <utility>

#include <linux/futex.h>
#include <poll.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "kernels/sum.h"
#include "wait.h"

namespace seesaw {

namespace {

using Clock = std::chrono::steady_clock;

// From this many numbers on each of more than two ranks adds its share only.
constexpr std::int64_t kSharedCount = 8192;
// How often a sleeper looks whether those that it waits for still live.
constexpr long kLookNs = 100'000'000;
constexpr int kGone = -2;  // in place of a pidfd

// Whether the counter has come to `wanted`. It begins anew after 2^32, sides are never as far apart.
bool reached(const Word& counter, std::uint32_t wanted) {
    return static_cast<std::int32_t>(counter.load() - wanted) >= 0;
}

// Returns false where nobody woke it.
bool sleep_while(Word& word, std::uint32_t value) {
    const timespec most{0, kLookNs};
    return syscall(SYS_futex, &word, FUTEX_WAIT, value, &most, nullptr, 0) == 0 ||
           errno != ETIMEDOUT;
}

int open_process(std::uint32_t pid) {
    const long found = syscall(SYS_pidfd_open, static_cast<pid_t>(pid), 0);
    return found < 0 && errno == ESRCH ? kGone : static_cast<int>(found);
}

}  // namespace

// -- joining and leaving ---------------------------------------------------------------------------

ShmLinks::ShmLinks(void* memory, const ShmShape& shape, int rank, double timeout_s)
    : memory_(memory, shape),
      rank_(rank),
      timeout_(timeout_s),
      processes_(static_cast<std::size_t>(shape.num_ranks), -1) {
    if (rank < 0 || rank >= shape.num_ranks) {
        throw std::invalid_argument("rank " + std::to_string(rank) + " of " +
                                    std::to_string(shape.num_ranks));
    }
    memory_.member(rank).process.store(static_cast<std::uint32_t>(getpid()));
    for (int peer = 0; peer < shape.num_ranks; ++peer) {
        if (peer != rank) ring_bell(peer);
    }
    for (int peer = 0; peer < shape.num_ranks; ++peer) {
        if (peer == rank) continue;
        wait({&peer, 1}, [&] { return memory_.member(peer).process.load() != 0; });
        processes_[static_cast<std::size_t>(peer)] =
            open_process(memory_.member(peer).process.load());
    }
}

ShmLinks::~ShmLinks() { close(); }

void ShmLinks::close() {
    if (closed_) return;
    closed_ = true;
    memory_.member(rank_).left.store(1);
    for (const int process : processes_) {
        if (process >= 0) ::close(process);
    }
}

void ShmLinks::check_open() const {
    if (closed_) throw std::runtime_error("rank " + std::to_string(rank_) + " has left its group");
}

const char* ShmLinks::end_of(int peer) const {
    if (memory_.member(peer).left.load() != 0) return "has left";
    const int process = processes_[static_cast<std::size_t>(peer)];
    if (process == kGone) return "has ended";
    pollfd ended{process, POLLIN, 0};
    return process >= 0 && poll(&ended, 1, 0) == 1 ? "has died" : nullptr;
}

// -- waiting ---------------------------------------------------------------------------------------

// A waiter says that it sleeps, then looks once more; who makes it ready does so first and looks for
// sleepers then. With both in one order of all (seq_cst), one of them sees the other.
template <class Ready>
void ShmLinks::wait(std::span<const int> peers, Ready&& ready) {
    if (spin_until(ready)) return;
    const auto deadline = Clock::now() + timeout_;
    ShmMember& own = memory_.member(rank_);
    std::string trouble;
    own.sleeps.store(1);
    for (bool woken = true; trouble.empty();) {
        const std::uint32_t bell = own.bell.load();
        const auto* gone = woken ? peers.data() + peers.size()
                                 : std::find_if(peers.data(), peers.data() + peers.size(),
                                                [&](int peer) { return end_of(peer) != nullptr; });
        // After the look at peers: what they did before their end counts.
        if (ready()) break;
        if (gone != peers.data() + peers.size()) {
            trouble = std::to_string(*gone) + " " + end_of(*gone);
        } else if (Clock::now() >= deadline) {
            trouble = std::to_string(peers.front()) + ": nothing heard of it in " +
                      seconds_text(timeout_);
        } else {
            woken = sleep_while(own.bell, bell);
        }
    }
    own.sleeps.store(0);
    if (!trouble.empty()) throw std::runtime_error("rank " + trouble);
}

void ShmLinks::ring_bell(int rank) {
    ShmMember& other = memory_.member(rank);
    if (other.sleeps.load() == 0) return;
    other.bell.fetch_add(1);
    syscall(SYS_futex, &other.bell, FUTEX_WAKE, INT_MAX, nullptr, nullptr, 0);
}

// -- from rank to rank -----------------------------------------------------------------------------

bool ShmLinks::can_send(int peer) const {
    const ShmRing& to = memory_.ring(rank_, peer);
    const auto under_way = to.filled.load() - to.emptied.load();
    return under_way < static_cast<std::uint32_t>(memory_.shape.ring_slots);
}

bool ShmLinks::can_receive(int peer) const {
    const ShmRing& from = memory_.ring(peer, rank_);
    return from.filled.load() != from.emptied.load();
}

void ShmLinks::send_slot(Parcel& parcel) {
    ShmRing& to = memory_.ring(rank_, parcel.peer);
    const std::uint32_t filled = to.filled.load();
    ShmSlot& next = memory_.slot(rank_, parcel.peer, filled);
    next.nbytes = std::min(memory_.shape.slot_bytes, parcel.nbytes);
    std::memcpy(next.data(), parcel.data, static_cast<std::size_t>(next.nbytes));
    parcel.data += next.nbytes;
    parcel.nbytes -= next.nbytes;
    to.filled.store(filled + 1);
    ring_bell(parcel.peer);
}

void ShmLinks::receive_slot(Parcel& parcel) {
    ShmRing& from = memory_.ring(parcel.peer, rank_);
    const std::uint32_t emptied = from.emptied.load();
    ShmSlot& next = memory_.slot(parcel.peer, rank_, emptied);
    const std::int64_t expected = std::min(memory_.shape.slot_bytes, parcel.nbytes);
    if (next.nbytes != expected) {
        throw std::runtime_error("rank " + std::to_string(parcel.peer) + " sent " +
                                 std::to_string(next.nbytes) + " bytes where rank " +
                                 std::to_string(rank_) + " expects " + std::to_string(expected));
    }
    std::memcpy(parcel.data, next.data(), static_cast<std::size_t>(next.nbytes));
    parcel.data += expected;
    parcel.nbytes -= expected;
    from.emptied.store(emptied + 1);
    ring_bell(parcel.peer);
}

void ShmLinks::send(int peer, const void* data, std::int64_t nbytes) {
    check_open();
    Parcel parcel{peer, const_cast<unsigned char*>(static_cast<const unsigned char*>(data)), nbytes};
    while (parcel.nbytes > 0) {
        wait({&peer, 1}, [&] { return can_send(peer); });
        send_slot(parcel);
    }
}

void ShmLinks::receive(int peer, void* data, std::int64_t nbytes) {
    check_open();
    Parcel parcel{peer, static_cast<unsigned char*>(data), nbytes};
    while (parcel.nbytes > 0) {
        wait({&peer, 1}, [&] { return can_receive(peer); });
        receive_slot(parcel);
    }
}

void ShmLinks::exchange(const std::vector<Parcel>& sends, const std::vector<Parcel>& receives) {
    check_open();
    struct Way {
        std::vector<Parcel> parcels;
        std::size_t next = 0;
        bool has_more() {
            while (next < parcels.size() && parcels[next].nbytes == 0) ++next;
            return next < parcels.size();
        }
    };
    const auto num_ranks = static_cast<std::size_t>(memory_.shape.num_ranks);
    std::vector<Way> out(num_ranks), in(num_ranks);
    for (const Parcel& one : sends) out[static_cast<std::size_t>(one.peer)].parcels.push_back(one);
    for (const Parcel& one : receives) in[static_cast<std::size_t>(one.peer)].parcels.push_back(one);
    const auto step = [&](Way& way, bool can, auto move) {
        if (!way.has_more() || !can) return false;
        move(way.parcels[way.next]);
        return true;
    };
    for (;;) {
        std::vector<int> unfinished;
        bool moved = false;
        for (int peer = 0; peer < memory_.shape.num_ranks; ++peer) {
            Way& to = out[static_cast<std::size_t>(peer)];
            Way& from = in[static_cast<std::size_t>(peer)];
            moved |= step(to, can_send(peer), [&](Parcel& parcel) { send_slot(parcel); });
            moved |= step(from, can_receive(peer), [&](Parcel& parcel) { receive_slot(parcel); });
            if (to.has_more() || from.has_more()) unfinished.push_back(peer);
        }
        if (unfinished.empty()) return;
        if (moved) continue;
        wait(unfinished, [&] {
            return std::any_of(unfinished.begin(), unfinished.end(), [&](int peer) {
                const auto at = static_cast<std::size_t>(peer);
                return (out[at].has_more() && can_send(peer)) ||
                       (in[at].has_more() && can_receive(peer));
            });
        });
    }
}

std::shared_ptr<Comm> ShmLinks::comm(std::vector<int> members) {
    check_open();
    return std::make_shared<ShmComm>(*this, std::move(members));
}

// -- groups ----------------------------------------------------------------------------------------

ShmComm::ShmComm(ShmLinks& links, std::vector<int> members)
    : links_(links), members_(std::move(members)), parts_(members_.size()) {
    const int num_ranks = links.memory_.shape.num_ranks;
    for (std::size_t i = 0; i < members_.size(); ++i) {
        if (members_[i] == links.rank_) rank_ = static_cast<int>(i);
        if (members_[i] < 0 || members_[i] >= num_ranks) {
            throw std::invalid_argument("a group with rank " + std::to_string(members_[i]) +
                                        ", where there are " + std::to_string(num_ranks));
        }
    }
    if (rank_ < 0 || members_.size() < 2 || num_ranks % size() != 0) {
        throw std::invalid_argument("a group of " + std::to_string(members_.size()) + " of " +
                                    std::to_string(num_ranks) + " ranks, with or without rank " +
                                    std::to_string(links.rank_));
    }
}

ShmPlace& ShmComm::place(int member) const {
    return links_.memory_.place(size(), members_[static_cast<std::size_t>(member)]);
}

unsigned char* ShmComm::slot(int member) const {
    // In turns: when a rank fills one again, all have met since they read it.
    return place(member).slots[place(rank_).chunks % 2];
}

void ShmComm::meet() {
    const std::uint32_t met = place(rank_).met.load() + 1;
    place(rank_).met.store(met);
    for (int i = 0; i < size(); ++i) {
        if (i != rank_) links_.ring_bell(members_[static_cast<std::size_t>(i)]);
    }
    for (int i = 0; i < size(); ++i) {
        if (i == rank_) continue;
        const Word& theirs = place(i).met;
        links_.wait({&members_[static_cast<std::size_t>(i)], 1},
                    [&] { return reached(theirs, met); });
    }
}

void ShmComm::all_reduce(void* data, std::int64_t count, DType dtype) {
    links_.check_open();
    const auto size_of_one = static_cast<std::int64_t>(element_bytes(dtype));
    const std::int64_t most = kGroupSlotBytes / size_of_one;
    auto* at = static_cast<unsigned char*>(data);
    while (count > 0) {
        const std::int64_t chunk = std::min(most, count);
        if (size() > 2 && chunk >= kSharedCount) {
            add_in_shares(at, chunk, dtype);
        } else {
            add_alone(at, chunk, dtype);
        }
        ++place(rank_).chunks;
        at += chunk * size_of_one;
        count -= chunk;
    }
}

// Each rank adds all numbers of all ranks.
void ShmComm::add_alone(unsigned char* data, std::int64_t count, DType dtype) {
    std::memcpy(slot(rank_), data, static_cast<std::size_t>(count) * element_bytes(dtype));
    meet();
    for (int i = 0; i < size(); ++i) {
        parts_[static_cast<std::size_t>(i)] = i == rank_ ? data : slot(i);
    }
    sum_parts(dtype, parts_.data(), size(), data, count);
}

// Each rank adds its share of the numbers, and takes the other sums from the others.
void ShmComm::add_in_shares(unsigned char* data, std::int64_t count, DType dtype) {
    const auto size_of_one = static_cast<std::int64_t>(element_bytes(dtype));
    const auto begin = [&](int member) { return count * member / size(); };
    std::memcpy(slot(rank_), data, static_cast<std::size_t>(count * size_of_one));
    meet();
    const std::int64_t own = begin(rank_) * size_of_one;
    for (int i = 0; i < size(); ++i) parts_[static_cast<std::size_t>(i)] = slot(i) + own;
    // Nobody else reads this rank's share of its own slot before they meet again.
    sum_parts(dtype, parts_.data(), size(), slot(rank_) + own, begin(rank_ + 1) - begin(rank_));
    meet();
    for (int i = 0; i < size(); ++i) {
        const std::int64_t first = begin(i) * size_of_one, end = begin(i + 1) * size_of_one;
        std::memcpy(data + first, slot(i) + first, static_cast<std::size_t>(end - first));
    }
}

void ShmComm::all_gather(const void* in, void* out, std::int64_t nbytes) {
    links_.check_open();
    const auto* from = static_cast<const unsigned char*>(in);
    auto* to = static_cast<unsigned char*>(out);
    for (std::int64_t begin = 0; begin < nbytes; begin += kGroupSlotBytes) {
        const auto chunk = static_cast<std::size_t>(std::min(kGroupSlotBytes, nbytes - begin));
        std::memcpy(slot(rank_), from + begin, chunk);
        meet();
        for (int i = 0; i < size(); ++i) std::memcpy(to + i * nbytes + begin, slot(i), chunk);
        ++place(rank_).chunks;
    }
}

}  // namespace seesaw
