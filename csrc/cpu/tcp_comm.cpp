// Sums and gathers of a group of ranks; what sends and receives is in tcp_links.cpp.

#include "tcp_comm.h"

#include <algorithm>
#include <cstring>
#include <stdexcept>
#include <utility>

#include "kernels/sum.h"

namespace seesaw {

namespace {

// Added at a time, by all ranks or in shares: what is on its way stays in caches, and is large
// against a round trip.
constexpr std::int64_t kChunkBytes = 256 * 1024;
constexpr std::int64_t kSharedChunkBytes = 1 << 20;
// Up to this many bytes to all others a second round trip costs more than sending all to all.
constexpr std::int64_t kAloneBytes = 64 * 1024;

}  // namespace

TcpComm::TcpComm(TcpLinks& links, std::vector<int> members)
    : links_(links), members_(std::move(members)), parts_(members_.size()) {
    for (std::size_t i = 0; i < members_.size(); ++i) {
        if (members_[i] == links.rank_) rank_ = static_cast<int>(i);
        if (members_[i] < 0 || static_cast<std::size_t>(members_[i]) >= links.peers_.size()) {
            throw std::invalid_argument("a group with rank " + std::to_string(members_[i]) +
                                        ", where there are " +
                                        std::to_string(links.peers_.size()));
        }
    }
    if (rank_ < 0) {
        throw std::invalid_argument("a group without rank " + std::to_string(links.rank_));
    }
}

template <class Out, class In>
void TcpComm::trade(Out&& out, In&& in) {
    std::vector<Parcel> sends, receives;
    // Each begins with its neighbour, so that not all write to the same rank first.
    for (int step = 1; step < size(); ++step) {
        const int to = (rank_ + step) % size(), from = (rank_ + size() - step) % size();
        sends.push_back(out(to));
        sends.back().peer = members_[static_cast<std::size_t>(to)];
        receives.push_back(in(from));
        receives.back().peer = members_[static_cast<std::size_t>(from)];
    }
    links_.exchange(sends, receives);
}

void TcpComm::all_reduce(void* data, std::int64_t count, DType dtype) {
    const auto size_of_one = static_cast<std::int64_t>(element_bytes(dtype));
    auto* at = static_cast<unsigned char*>(data);
    if (size() == 2 || count * size_of_one * (size() - 1) <= kAloneBytes) {
        links_.with_posts([&] { add_alone(at, count, dtype); });
        return;
    }
    const std::int64_t most = kSharedChunkBytes / size_of_one;
    for (; count > 0; count -= most, at += most * size_of_one) {
        add_in_shares(at, std::min(most, count), dtype);
    }
}

// Each rank gets the numbers of all ranks and adds them, while the next ones are on their way.
void TcpComm::add_alone(unsigned char* data, std::int64_t count, DType dtype) {
    const auto size_of_one = static_cast<std::int64_t>(element_bytes(dtype));
    const std::int64_t most = kChunkBytes / size_of_one;
    received_.resize(static_cast<std::size_t>(std::min(most, count) * size_of_one * size()));
    const auto for_others = [&](auto call) {
        for (int i = 0; i < size(); ++i) {
            if (i != rank_) call(i, members_[static_cast<std::size_t>(i)]);
        }
    };
    const auto post = [&](std::int64_t begin) {
        const std::int64_t nbytes = std::min(most, count - begin) * size_of_one;
        for_others([&](int, int peer) {
            links_.post(peer, data + begin * size_of_one, nbytes);
        });
    };
    if (count > 0) post(0);
    for (std::int64_t begin = 0; begin < count; begin += most) {
        const std::int64_t chunk = std::min(most, count - begin);
        const bool has_next = begin + most < count;
        if (has_next) post(begin + most);
        unsigned char* const own = data + begin * size_of_one;
        parts_[static_cast<std::size_t>(rank_)] = own;
        for_others([&](int i, int peer) {
            unsigned char* const theirs = received_.data() + i * chunk * size_of_one;
            links_.receive(peer, theirs, chunk * size_of_one);
            parts_[static_cast<std::size_t>(i)] = theirs;
        });
        // The sum takes the place of what must have been written by then.
        for_others([&](int, int peer) { links_.flush(peer, has_next ? 1 : 0); });
        sum_parts(dtype, parts_.data(), size(), own, chunk);
    }
}

// Each rank gets its share of the numbers of all ranks, adds them, and gives the sums to all.
void TcpComm::add_in_shares(unsigned char* data, std::int64_t count, DType dtype) {
    const auto size_of_one = static_cast<std::int64_t>(element_bytes(dtype));
    const auto first = [&](int member) { return count * member / size() * size_of_one; };
    const auto share = [&](int member) {
        return Parcel{0, data + first(member), first(member + 1) - first(member)};
    };
    const Parcel own = share(rank_);
    received_.resize(static_cast<std::size_t>(own.nbytes * size()));
    const auto place = [&](int member) { return received_.data() + member * own.nbytes; };
    trade(share, [&](int member) { return Parcel{0, place(member), own.nbytes}; });
    for (int i = 0; i < size(); ++i) {
        parts_[static_cast<std::size_t>(i)] = i == rank_ ? own.data : place(i);
    }
    sum_parts(dtype, parts_.data(), size(), own.data, own.nbytes / size_of_one);
    trade([&](int) { return own; }, share);
}

void TcpComm::all_gather(const void* in, void* out, std::int64_t nbytes) {
    if (nbytes == 0) return;
    auto* from = const_cast<unsigned char*>(static_cast<const unsigned char*>(in));
    auto* to = static_cast<unsigned char*>(out);
    std::memcpy(to + rank_ * nbytes, in, static_cast<std::size_t>(nbytes));
    trade([&](int) { return Parcel{0, from, nbytes}; },
          [&](int member) { return Parcel{0, to + member * nbytes, nbytes}; });
}

}  // namespace seesaw
