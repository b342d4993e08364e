// One-shot all-reduce between GPUs that map each other's memory, for messages so small that latency
// is all: each rank writes its numbers where all can read them, waits until every rank has, then
// reads all of them and adds in order of rank, so that all ranks get the same bits.
//
// Bytes per rank: n written here, (ranks - 1) n read over the links. Sums in float32, rounded once.
//
// The buffer of a rank: a count per block, a signal per (block, rank that gives it), two slots of
// data. Calls take the slots in turn. Who has passed the barrier of call i knows that all ranks are
// through with call i - 1, since kernels of a stream run one after another; so the slot of call
// i - 1 may be written in call i + 1 without another barrier. All calls have the same number of
// blocks, so that their counts agree. The count lives on the device: a CUDA graph replays right.

constexpr int MAX_RANKS = 8;
constexpr int MAX_BLOCKS = 64;

struct Buffer {
    unsigned int count[MAX_BLOCKS];
    unsigned int signal[MAX_BLOCKS][MAX_RANKS];
};

struct Peers {
    unsigned long long buffer[MAX_RANKS];  // addresses, by rank
};

#ifdef __CUDACC__  // tests run the rest as C++
__device__ void set_signal(unsigned int* at, unsigned int value) {
    asm volatile("st.release.sys.global.u32 [%0], %1;" ::"l"(at), "r"(value) : "memory");
}

__device__ unsigned int get_signal(const unsigned int* at) {
    unsigned int value;
    asm volatile("ld.acquire.sys.global.u32 %0, [%1];" : "=r"(value) : "l"(at) : "memory");
    return value;
}

__device__ float half_to_float(unsigned short x) {
    float value;
    asm("cvt.f32.f16 %0, %1;" : "=f"(value) : "h"(x));
    return value;
}

__device__ unsigned short float_to_half(float x) {
    unsigned short value;
    asm("cvt.rn.f16.f32 %0, %1;" : "=h"(value) : "f"(x));
    return value;
}
#endif

// Numbers as 16-bit or 32-bit words.
struct Float {
    using Word = unsigned int;
    static __device__ float wide(Word x) { return __uint_as_float(x); }
    static __device__ Word narrow(float x) { return __float_as_uint(x); }
};

struct Bfloat16 {
    using Word = unsigned short;
    static __device__ float wide(Word x) {
        return __uint_as_float(static_cast<unsigned int>(x) << 16);
    }
    static __device__ Word narrow(float x) {
        const unsigned int bits = __float_as_uint(x);
        if ((bits & 0x7fffffffu) > 0x7f800000u) return 0x7fff;  // NaN
        return static_cast<Word>((bits + 0x7fffu + ((bits >> 16) & 1u)) >> 16);
    }
};

struct Half {
    using Word = unsigned short;
    static __device__ float wide(Word x) { return half_to_float(x); }
    static __device__ Word narrow(float x) { return float_to_half(x); }
};

template <typename Number>
union Pack {  // what a thread loads at once
    uint4 all;
    typename Number::Word word[16 / sizeof(typename Number::Word)];
};

// `x` is summed in place: `packs` times 16 bytes. `slot_bytes`: of one of the two slots.
template <typename Number>
__device__ void all_reduce(uint4* x, long long packs, const Peers& peers, int rank, int size,
                           long long slot_bytes) {
    Buffer* own = reinterpret_cast<Buffer*>(peers.buffer[rank]);
    const unsigned int call = own->count[blockIdx.x] + 1;
    const long long offset = static_cast<long long>(sizeof(Buffer)) + (call & 1u) * slot_bytes;
    const long long first = static_cast<long long>(blockIdx.x) * blockDim.x + threadIdx.x;
    const long long step = static_cast<long long>(gridDim.x) * blockDim.x;

    uint4* slot = reinterpret_cast<uint4*>(peers.buffer[rank] + offset);
    for (long long i = first; i < packs; i += step) slot[i] = x[i];
    __syncthreads();
    // A block waits for the same block of the others alone: they read and write the same packs.
    if (threadIdx.x < static_cast<unsigned int>(size)) {
        Buffer* other = reinterpret_cast<Buffer*>(peers.buffer[threadIdx.x]);
        set_signal(&other->signal[blockIdx.x][rank], call);
        while (static_cast<int>(get_signal(&own->signal[blockIdx.x][threadIdx.x]) - call) < 0) {
        }
    }
    __syncthreads();

    constexpr int WIDTH = 16 / sizeof(typename Number::Word);
    for (long long i = first; i < packs; i += step) {
        Pack<Number> pack[MAX_RANKS];
#pragma unroll
        for (int other = 0; other < MAX_RANKS; ++other) {  // all loads before the first use
            if (other < size) {
                pack[other].all = reinterpret_cast<const uint4*>(peers.buffer[other] + offset)[i];
            }
        }
        float sum[WIDTH];
#pragma unroll
        for (int other = 0; other < MAX_RANKS; ++other) {
#pragma unroll
            for (int j = 0; j < WIDTH; ++j) {
                if (other == 0) {
                    sum[j] = Number::wide(pack[0].word[j]);
                } else if (other < size) {
                    sum[j] += Number::wide(pack[other].word[j]);
                }
            }
        }
        Pack<Number> result;
#pragma unroll
        for (int j = 0; j < WIDTH; ++j) result.word[j] = Number::narrow(sum[j]);
        x[i] = result.all;
    }
    if (threadIdx.x == 0) own->count[blockIdx.x] = call;
}

#define ALL_REDUCE(name, Number)                                                             \
    extern "C" __global__ void __launch_bounds__(512)                                        \
        name(uint4* x, long long packs, const __grid_constant__ Peers peers, int rank, int size, \
             long long slot_bytes) {                                                         \
        all_reduce<Number>(x, packs, peers, rank, size, slot_bytes);                         \
    }

ALL_REDUCE(all_reduce_float32, Float)
ALL_REDUCE(all_reduce_bfloat16, Bfloat16)
ALL_REDUCE(all_reduce_float16, Half)
