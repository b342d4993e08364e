// Bytes from rank to rank over sockets; the sums of groups are in tcp_comm.cpp.

#include "tcp_comm.h"

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <stdexcept>
#include <system_error>
#include <utility>

#include <netinet/in.h>
#include <netinet/tcp.h>
#include <sys/eventfd.h>
#include <sys/socket.h>
#include <unistd.h>

#include "blocked_signals.h"
#include "wait.h"

namespace seesaw {

namespace {

using Clock = std::chrono::steady_clock;

// A link that has acknowledged nothing for so long is taken for cut. Far more than a round trip over
// a slow and full link (the other host's kernel answers, whatever its rank does), and below the 10
// seconds in which a cut is to be told.
constexpr std::chrono::seconds kCutAfter{6};
constexpr int kUnanswered = 3;  // of what it sent
// How often one that waits looks at that.
constexpr std::chrono::milliseconds kLook{500};

// Whether the kernel sends the same bytes, or probes where it cannot send, again and again and hears
// nothing. TCP_USER_TIMEOUT would also end a link whose reader is busy: its window is shut then, and
// nothing is acknowledged but probes.
bool is_cut(int socket) {
    tcp_info info{};
    socklen_t size = sizeof info;
    if (getsockopt(socket, IPPROTO_TCP, TCP_INFO, &info, &size) != 0) return false;  // not TCP
    const auto silent = std::chrono::milliseconds(info.tcpi_last_ack_recv);
    const bool repeats = info.tcpi_unacked > 0 && info.tcpi_retransmits >= kUnanswered;
    return (repeats || info.tcpi_probes >= kUnanswered) && silent >= kCutAfter;
}

std::string gone(int rank, const std::string& why) {
    return "rank " + std::to_string(rank) + " is gone: " + why;
}

std::string cut(int rank, int peer, const std::string& why) {
    return "the link between ranks " + std::to_string(rank) + " and " + std::to_string(peer) +
           " is cut, or the host of rank " + std::to_string(peer) + " is gone: " + why;
}

std::string nothing_acknowledged() {
    return "nothing was acknowledged in " + seconds_text(kCutAfter);
}

int milliseconds(std::chrono::duration<double> time) {
    return static_cast<int>(std::clamp(time.count() * 1e3, 0.0, 1e9));
}

}  // namespace

TcpLinks::TcpLinks(std::vector<int> sockets, int rank, int most_under_way, double timeout_s)
    : rank_(rank),
      most_under_way_(static_cast<std::size_t>(std::max(most_under_way, 1))),
      timeout_(timeout_s),
      peers_(sockets.size()) {
    if (rank < 0 || static_cast<std::size_t>(rank) >= sockets.size()) {
        throw std::invalid_argument("rank " + std::to_string(rank) + " of " +
                                    std::to_string(sockets.size()));
    }
    for (std::size_t peer = 0; peer < sockets.size(); ++peer) {
        if (static_cast<int>(peer) != rank) peers_[peer].socket = sockets[peer];
    }
    wake_ = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
    if (wake_ < 0) throw std::system_error(errno, std::generic_category(), "eventfd");
    BlockedSignals blocked;
    writer_ = std::thread([this] { write_rests(); });
}

TcpLinks::~TcpLinks() { close(); }

void TcpLinks::close() {
    if (closed_) return;
    closed_ = true;
    {
        std::unique_lock lock(mutex_);
        // Who is gone is not waited for.
        written_.wait_for(lock, timeout_, [this] {
            return std::all_of(peers_.begin(), peers_.end(), [](const Peer& peer) {
                return peer.rests.empty() || !peer.trouble.empty();
            });
        });
        ending_ = true;
    }
    eventfd_write(wake_, 1);
    writer_.join();
    ::close(wake_);
    for (const Peer& peer : peers_) {
        if (peer.socket >= 0) ::close(peer.socket);
    }
}

std::string TcpLinks::in_time() const { return " in " + seconds_text(timeout_); }

void TcpLinks::check(int peer) const {
    if (closed_) throw std::runtime_error("rank " + std::to_string(rank_) + " has left its group");
    if (!at(peer).trouble.empty()) throw std::runtime_error(at(peer).trouble);
}

void TcpLinks::check_link(int peer) const {
    if (is_cut(at(peer).socket)) {
        throw std::runtime_error(cut(rank_, peer, nothing_acknowledged()));
    }
}

std::string TcpLinks::failure(int peer, int error) const {
    const bool link = error == ETIMEDOUT || error == EHOSTUNREACH || error == ENETUNREACH;
    return link ? cut(rank_, peer, std::strerror(error)) : gone(peer, std::strerror(error));
}

// -- writing ---------------------------------------------------------------------------------------

void TcpLinks::give_up(Peer& peer, std::string trouble) {
    if (peer.trouble.empty()) peer.trouble = std::move(trouble);
    peer.rests.clear();
}

void TcpLinks::write_some(Peer& peer) {
    while (!peer.rests.empty()) {
        Rest& rest = peer.rests.front();
        const ssize_t sent =
            ::send(peer.socket, rest.data, rest.nbytes, MSG_DONTWAIT | MSG_NOSIGNAL);
        if (sent < 0) {
            if (errno == EINTR) continue;
            if (errno == EAGAIN || errno == EWOULDBLOCK) return;
            give_up(peer, failure(static_cast<int>(&peer - peers_.data()), errno));
            return;
        }
        rest.data += sent;
        rest.nbytes -= static_cast<std::size_t>(sent);
        if (rest.nbytes > 0) continue;
        if (rest.own.capacity() > 0) spare_.push_back(std::move(rest.own));
        peer.rests.pop_front();
    }
}

void TcpLinks::write_rests() {
    std::vector<pollfd> waiting;
    std::vector<Peer*> whose;
    std::unique_lock lock(mutex_);
    while (!ending_) {
        waiting.assign(1, {wake_, POLLIN, 0});
        whose.clear();
        for (Peer& peer : peers_) {
            if (peer.rests.empty()) continue;
            waiting.push_back({peer.socket, POLLOUT, 0});
            whose.push_back(&peer);
        }
        lock.unlock();
        poll(waiting.data(), waiting.size(), -1);
        lock.lock();
        eventfd_t count;
        if (waiting[0].revents != 0) eventfd_read(wake_, &count);
        for (std::size_t i = 0; i < whose.size(); ++i) {
            if (waiting[i + 1].revents != 0) write_some(*whose[i]);
        }
        written_.notify_all();
    }
}

void TcpLinks::queue(Peer& peer, Rest rest) {
    const bool first = peer.rests.empty();
    peer.rests.push_back(std::move(rest));
    if (first) write_some(peer);
}

void TcpLinks::post(int peer, const unsigned char* data, std::int64_t nbytes) {
    if (nbytes == 0) return;
    const std::lock_guard lock(mutex_);
    check(peer);
    queue(at(peer), {data, static_cast<std::size_t>(nbytes), {}});
}

void TcpLinks::flush(int peer, std::size_t but) {
    for (;;) {
        {
            const std::lock_guard lock(mutex_);
            check(peer);
            if (at(peer).rests.size() <= but) return;
        }
        if (!wait(peer, false)) throw std::runtime_error(gone(peer, "it took nothing" + in_time()));
    }
}

bool TcpLinks::wait(int peer, bool to_read) {
    waiting_.assign(1, {at(peer).socket, static_cast<short>(to_read ? POLLIN : POLLOUT), 0});
    {
        const std::lock_guard lock(mutex_);
        for (const Peer& other : peers_) {
            if (!other.rests.empty()) waiting_.push_back({other.socket, POLLOUT, 0});
        }
    }
    const auto deadline = Clock::now() + timeout_;
    while (poll(waiting_.data(), waiting_.size(), milliseconds(kLook)) == 0) {
        if (Clock::now() >= deadline) return false;
        check_link(peer);
    }
    if (waiting_.size() == 1) return true;
    const std::lock_guard lock(mutex_);
    for (Peer& other : peers_) write_some(other);
    written_.notify_all();
    return true;
}

void TcpLinks::send(int peer, const void* data, std::int64_t nbytes) {
    if (nbytes == 0) return;
    std::unique_lock lock(mutex_);
    Peer& to = at(peer);
    const bool room = written_.wait_for(lock, timeout_, [&] {
        return to.rests.size() < most_under_way_ || !to.trouble.empty();
    });
    check(peer);
    if (!room) throw std::runtime_error(gone(peer, "it took nothing" + in_time()));
    queue(to, {static_cast<const unsigned char*>(data), static_cast<std::size_t>(nbytes), {}});
    check(peer);
    if (to.rests.empty()) return;
    // The caller goes on with the memory.
    Rest& rest = to.rests.back();
    if (!spare_.empty()) {
        rest.own = std::move(spare_.back());
        spare_.pop_back();
    }
    rest.own.assign(rest.data, rest.data + rest.nbytes);
    rest.data = rest.own.data();
    eventfd_write(wake_, 1);
}

// -- reading ---------------------------------------------------------------------------------------

void TcpLinks::receive(int peer, void* data, std::int64_t nbytes) {
    if (closed_) throw std::runtime_error("rank " + std::to_string(rank_) + " has left its group");
    const int socket = at(peer).socket;
    auto* to = static_cast<unsigned char*>(data);
    auto left = static_cast<std::size_t>(nbytes);
    while (left > 0) {
        ssize_t got = -1;
        const auto read = [&] {
            got = recv(socket, to, left, MSG_DONTWAIT);
            return got >= 0 || (errno != EAGAIN && errno != EWOULDBLOCK && errno != EINTR);
        };
        if (!spin_until(read)) {
            if (!wait(peer, true)) {
                throw std::runtime_error(gone(peer, "it sent nothing" + in_time()));
            }
            continue;
        }
        if (got < 0) throw std::runtime_error(failure(peer, errno));
        if (got == 0) throw std::runtime_error(gone(peer, "it has closed its connection"));
        to += got;
        left -= static_cast<std::size_t>(got);
    }
}

void TcpLinks::drop_posts() {
    const std::lock_guard lock(mutex_);
    for (Peer& peer : peers_) {
        const bool posted = std::any_of(peer.rests.begin(), peer.rests.end(),
                                        [](const Rest& rest) { return rest.own.empty(); });
        if (!posted) continue;
        const auto number = static_cast<int>(&peer - peers_.data());
        give_up(peer, gone(number, "what was on its way to it has been dropped"));
    }
}

void TcpLinks::exchange(const std::vector<Parcel>& sends, const std::vector<Parcel>& receives) {
    with_posts([&] {
        for (const Parcel& one : sends) post(one.peer, one.data, one.nbytes);
        for (const Parcel& one : receives) receive(one.peer, one.data, one.nbytes);
        for (const Parcel& one : sends) flush(one.peer);
    });
}

std::shared_ptr<Comm> TcpLinks::comm(std::vector<int> members) {
    return std::make_shared<TcpComm>(*this, std::move(members));
}

}  // namespace seesaw
