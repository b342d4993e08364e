// Enough of CUDA to run kernels of csrc/cuda on the CPU, a thread for each of theirs.

#pragma once

#include <atomic>
#include <barrier>
#include <cstring>
#include <thread>
#include <vector>

#define __global__
#define __device__
#define __grid_constant__
#define __launch_bounds__(...)

struct Index {
    unsigned int x;
};
inline thread_local Index threadIdx, blockIdx, blockDim, gridDim;
inline thread_local std::barrier<>* block_barrier;

struct alignas(16) uint4 {
    unsigned int x, y, z, w;
};

inline void __syncthreads() { block_barrier->arrive_and_wait(); }

template <typename To, typename From>
To bits_as(From x) {
    To value;
    static_assert(sizeof(To) == sizeof(From));
    std::memcpy(&value, &x, sizeof(To));
    return value;
}

inline float __uint_as_float(unsigned int x) { return bits_as<float>(x); }
inline unsigned int __float_as_uint(float x) { return bits_as<unsigned int>(x); }
inline float half_to_float(unsigned short x) { return static_cast<float>(bits_as<_Float16>(x)); }
inline unsigned short float_to_half(float x) {
    return bits_as<unsigned short>(static_cast<_Float16>(x));
}

inline void set_signal(unsigned int* at, unsigned int value) {
    std::atomic_ref(*at).store(value, std::memory_order_release);
}

inline unsigned int get_signal(const unsigned int* at) {
    std::this_thread::yield();
    return std::atomic_ref(*const_cast<unsigned int*>(at)).load(std::memory_order_acquire);
}

// kernel<<<blocks, threads>>>(), over when it returns: what a stream runs next sees all of it.
template <typename Kernel>
void launch(unsigned int blocks, unsigned int threads, Kernel kernel) {
    std::vector<std::thread> all;
    std::vector<std::unique_ptr<std::barrier<>>> barriers;
    for (unsigned int block = 0; block < blocks; ++block) {
        barriers.push_back(std::make_unique<std::barrier<>>(threads));
        for (unsigned int thread = 0; thread < threads; ++thread) {
            all.emplace_back([=, barrier = barriers.back().get()] {
                threadIdx = {thread}, blockIdx = {block}, blockDim = {threads}, gridDim = {blocks};
                block_barrier = barrier;
                kernel();
            });
        }
    }
    for (std::thread& thread : all) thread.join();
}
