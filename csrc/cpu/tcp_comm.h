// Ranks of any hosts, over connected stream sockets, one for each pair of ranks.
//
// The thread that computes reads, and writes while it waits, so that two ranks that send each other
// more than sockets hold both go on. What it leaves behind when it goes back to computing is written
// by a thread of the links.

#pragma once

#include <chrono>
#include <condition_variable>
#include <cstddef>
#include <cstdint>
#include <deque>
#include <memory>
#include <mutex>
#include <string>
#include <thread>
#include <vector>

#include <poll.h>

#include "links.h"

namespace seesaw {

class TcpLinks final : public Links {
public:
    // `sockets` of the other ranks by rank, this one's own place being anything; they are the
    // links' from here on. Of each peer at most `most_under_way` sends wait to be written. Throws
    // std::invalid_argument.
    TcpLinks(std::vector<int> sockets, int rank, int most_under_way, double timeout_s);
    ~TcpLinks() override;
    TcpLinks(const TcpLinks&) = delete;
    TcpLinks& operator=(const TcpLinks&) = delete;

    void send(int peer, const void* data, std::int64_t nbytes) override;
    void receive(int peer, void* data, std::int64_t nbytes) override;
    void exchange(const std::vector<Parcel>& sends, const std::vector<Parcel>& receives) override;
    std::shared_ptr<Comm> comm(std::vector<int> members) override;
    // Waits until all is written, as long as a peer may be silent.
    void close() override;

private:
    friend class TcpComm;

    // What a socket did not take at once.
    struct Rest {
        const unsigned char* data;
        std::size_t nbytes;
        std::vector<unsigned char> own;  // where the bytes are, if they are the links'
    };
    struct Peer {
        int socket = -1;
        std::deque<Rest> rests;
        std::string trouble;  // why nothing more can be written, in words for people
    };

    // Begins to send; the bytes must stay until flush() has seen them written, all sends to that
    // peer but so many of the last.
    void post(int peer, const unsigned char* data, std::int64_t nbytes);
    void flush(int peer, std::size_t but = 0);
    // Drops what body() has posted if it throws: the memory may end with its caller.
    template <class Body>
    void with_posts(Body&& body) {
        try {
            body();
        } catch (...) {
            drop_posts();
            throw;
        }
    }
    void drop_posts();
    // Until the socket of `peer` can be read or written, or another one took some of its rest; false
    // where the time is over.
    bool wait(int peer, bool to_read);
    std::string in_time() const;
    void check(int peer) const;  // with the mutex held
    void check_link(int peer) const;  // throws where it is cut
    std::string failure(int peer, int error) const;  // what a call on its socket failed with

    void write_rests();
    // These with the mutex held. write_some: as much as the socket takes.
    void write_some(Peer& peer);
    void queue(Peer& peer, Rest rest);
    void give_up(Peer& peer, std::string trouble);
    Peer& at(int peer) { return peers_[static_cast<std::size_t>(peer)]; }
    const Peer& at(int peer) const { return peers_[static_cast<std::size_t>(peer)]; }

    const int rank_;
    const std::size_t most_under_way_;
    const std::chrono::duration<double> timeout_;
    mutable std::mutex mutex_;
    std::condition_variable written_;
    std::vector<Peer> peers_;
    std::vector<std::vector<unsigned char>> spare_;  // memory of rests, to be used again
    std::vector<pollfd> waiting_;  // of wait()
    int wake_ = -1;                // an eventfd that the writer looks at
    bool closed_ = false;
    bool ending_ = false;
    std::thread writer_;
};

class TcpComm final : public Comm {
public:
    TcpComm(TcpLinks& links, std::vector<int> members);
    int size() const override { return static_cast<int>(members_.size()); }
    int rank() const override { return rank_; }
    void all_reduce(void* data, std::int64_t count, DType dtype) override;
    void all_gather(const void* in, void* out, std::int64_t nbytes) override;

private:
    // To each other member `nbytes` from out(member), from each as many as it sends to in(member).
    template <class Out, class In>
    void trade(Out&& out, In&& in);
    void add_alone(unsigned char* data, std::int64_t count, DType dtype);
    void add_in_shares(unsigned char* data, std::int64_t count, DType dtype);

    TcpLinks& links_;
    const std::vector<int> members_;
    int rank_ = -1;  // within the group
    std::vector<unsigned char> received_;
    std::vector<const void*> parts_;
};

}  // namespace seesaw
