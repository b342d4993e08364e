// What ranks of one host share, and where it lies in the memory that all of them map: the ranks,
// their places in groups of each size, and a ring of slots from every rank to every other.

#pragma once

#include <atomic>
#include <cstdint>
#include <stdexcept>
#include <string>

namespace seesaw {

using Word = std::atomic<std::uint32_t>;
static_assert(Word::is_always_lock_free, "counters are shared by processes");

// What ranks of a group read from each other at a time: stays within a second-level cache.
inline constexpr std::int64_t kGroupSlotBytes = 128 * 1024;

struct ShmShape {
    int num_ranks = 0;
    int ring_slots = 0;           // sends that may be under way from one rank to another
    std::int64_t slot_bytes = 0;  // of each of them; what is larger takes several
};

// A rank, as the others see it.
struct alignas(64) ShmMember {
    Word process;  // its id; 0 = has not joined yet
    Word left;     // 1 = and will do nothing more
    // Written by those who wake it, on a line of its own.
    alignas(64) Word sleeps;
    Word bell;
};

// Of a rank in the groups of one size.
struct alignas(64) ShmPlace {
    Word met;              // how often it has met the others of its group
    std::uint32_t chunks;  // how many it is through with; of the rank itself
    alignas(64) unsigned char slots[2][kGroupSlotBytes];
};

// From one rank to another.
struct alignas(64) ShmRing {
    Word filled;
    alignas(64) Word emptied;
};

// Of a ring.
struct alignas(64) ShmSlot {
    std::int64_t nbytes;
    unsigned char* data() { return reinterpret_cast<unsigned char*>(this + 1); }
};

class ShmMemory {
public:
    // What the ranks must map, all zero at first. Throws std::invalid_argument.
    static std::int64_t num_bytes(const ShmShape& shape) {
        // A power of two, so that counters may begin anew.
        const bool fits = shape.ring_slots > 0 && (shape.ring_slots & (shape.ring_slots - 1)) == 0;
        if (shape.num_ranks < 2 || !fits || shape.slot_bytes < 1) {
            throw std::invalid_argument(
                "expected 2 ranks or more, slots by a power of two and 1 byte or more in each, "
                "got " + std::to_string(shape.num_ranks) + ", " +
                std::to_string(shape.ring_slots) + " and " + std::to_string(shape.slot_bytes));
        }
        std::int64_t places = 0;
        for (int size = 2; size <= shape.num_ranks; ++size) {
            if (shape.num_ranks % size == 0) places += shape.num_ranks;
        }
        const std::int64_t ring =
            sizeof(ShmRing) + shape.ring_slots * (sizeof(ShmSlot) + round_up(shape.slot_bytes));
        return shape.num_ranks * static_cast<std::int64_t>(sizeof(ShmMember)) +
               places * static_cast<std::int64_t>(sizeof(ShmPlace)) +
               shape.num_ranks * shape.num_ranks * ring;
    }

    ShmMemory(void* memory, const ShmShape& shape)
        : shape(shape), memory_(static_cast<unsigned char*>(memory)) {
        num_bytes(shape);  // checks it
    }

    ShmMember& member(int rank) const { return reinterpret_cast<ShmMember*>(memory_)[rank]; }

    // Groups of 2, 3, ... ranks one after another, as far as they divide all.
    ShmPlace& place(int group_size, int rank) const {
        std::int64_t before = 0;
        for (int size = 2; size < group_size; ++size) before += shape.num_ranks % size == 0;
        unsigned char* const places = reinterpret_cast<unsigned char*>(&member(shape.num_ranks));
        return reinterpret_cast<ShmPlace*>(places)[before * shape.num_ranks + rank];
    }

    ShmRing& ring(int from, int to) const {
        const std::int64_t number = from * shape.num_ranks + to;
        const std::int64_t slots =
            shape.ring_slots *
            static_cast<std::int64_t>(sizeof(ShmSlot) + round_up(shape.slot_bytes));
        // After the groups, of which the largest is all ranks.
        unsigned char* const rings =
            reinterpret_cast<unsigned char*>(&place(shape.num_ranks, shape.num_ranks));
        return *reinterpret_cast<ShmRing*>(
            rings + number * (static_cast<std::int64_t>(sizeof(ShmRing)) + slots));
    }

    ShmSlot& slot(int from, int to, std::uint32_t number) const {
        const std::int64_t stride = sizeof(ShmSlot) + round_up(shape.slot_bytes);
        const auto index = static_cast<std::int64_t>(number % shape.ring_slots);
        return *reinterpret_cast<ShmSlot*>(
            reinterpret_cast<unsigned char*>(&ring(from, to) + 1) + index * stride);
    }

    const ShmShape shape;

private:
    static std::int64_t round_up(std::int64_t bytes) { return (bytes + 63) / 64 * 64; }

    unsigned char* const memory_;
};

}  // namespace seesaw
