// Memory that kernels of one call hand each other, and how rows lie in it.

#pragma once

#include <cstddef>
#include <cstdint>
#include <new>
#include <utility>

namespace seesaw {

inline constexpr std::size_t kAlign = 64;

inline std::size_t aligned(std::size_t bytes) { return (bytes + kAlign - 1) / kAlign * kAlign; }

// Elements from row to row of a buffer. Rows that are a power of two apart would fall into the same
// few places of a cache, where a kernel reads a dozen of them at a time.
inline std::int64_t row_stride(std::int64_t columns, std::size_t size) {
    const std::size_t bytes = aligned(static_cast<std::size_t>(columns) * size);
    return static_cast<std::int64_t>((bytes % 1024 == 0 ? bytes + kAlign : bytes) / size);
}

// Offsets of the pieces of one allocation, and how long it must be.
class Pieces {
public:
    std::size_t add(std::size_t bytes) { return std::exchange(total_, total_ + aligned(bytes)); }
    std::size_t total() const { return total_; }

private:
    std::size_t total_ = 0;
};

// Memory that is as large as was ever asked for, on a cache line; what it held is lost by growing.
class Scratch {
public:
    Scratch() = default;
    ~Scratch() { ::operator delete(data_, std::align_val_t{kAlign}); }
    Scratch(const Scratch&) = delete;
    Scratch& operator=(const Scratch&) = delete;

    std::byte* get(std::size_t bytes) {
        if (bytes > bytes_) {
            ::operator delete(data_, std::align_val_t{kAlign});
            data_ = nullptr;
            bytes_ = 0;
            data_ = static_cast<std::byte*>(::operator new(bytes, std::align_val_t{kAlign}));
            bytes_ = bytes;
        }
        return data_;
    }

private:
    std::byte* data_ = nullptr;
    std::size_t bytes_ = 0;
};

}  // namespace seesaw
