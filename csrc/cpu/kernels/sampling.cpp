#include "sampling.h"

#include "../simd.h"

namespace seesaw::SEESAW_ISA {

namespace {

using std::int64_t;

// f(i, x, count): x the logits from i on, of which `count` are there; -inf behind them.
template <class F>
SEESAW_INLINE void for_logits(const float* logits, int64_t begin, int64_t end, F&& f) {
    int64_t i = begin;
    for (; i + W <= end; i += W) f(i, load(logits + i), W);
    if (i < end) {
        float whole[W];
        for (int j = 0; j < W; ++j) whole[j] = i + j < end ? logits[i + j] : -__builtin_inff();
        f(i, load(whole), static_cast<int>(end - i));
    }
}

// Bit i: whether lane i of a comparison holds.
SEESAW_INLINE unsigned bits_of(vi mask) {
#if defined(__AVX512DQ__)
    return _mm512_movepi32_mask((__m512i)mask);
#elif defined(__AVX2__)
    return static_cast<unsigned>(_mm256_movemask_ps((__m256)mask));
#else
    unsigned bits = 0;
    for (int i = 0; i < W; ++i) bits |= (mask[i] & 1u) << i;
    return bits;
#endif
}

SEESAW_INLINE vf distance(const LogitRow& row, vf x) { return row.highest - x / row.temperature; }

SEESAW_INLINE vf weight(const LogitRow& row, vf d) {
    return (vf)((vi)exp(-d) & (d <= row.most));
}

SEESAW_INLINE vi bucket(const LogitRow& row, vf d) {
    // The bits of a positive float are in the order of its value; those of 1 + d begin with
    // log2(1 + d). NaN goes to the far bucket, like what is dropped.
    const vi place = ((vi)(d + 1.0f) - (vi)splat(1.0f)) >> (23 - kBucketBits);
    const vi near = (d <= row.most) & (place < kFarBucket);
    return near ? place : vi{} + kFarBucket;
}

Highest highest(const float* logits, int64_t vocab) {
    vf most = splat(-__builtin_inff());
    vi where{};
    vi here;
    for (int i = 0; i < W; ++i) here[i] = i;
    for_logits(logits, 0, vocab, [&](int64_t, vf x, int) {
        const vi above = x > most;
        most = above ? x : most;
        where = above ? here : where;
        here += W;
    });
    Highest best{most[0], where[0]};
    for (int i = 1; i < W; ++i) {
        if (most[i] > best.value || (most[i] == best.value && where[i] < best.id)) {
            best = {most[i], where[i]};
        }
    }
    return best;
}

int64_t count_above(const float* logits, int64_t vocab, float value) {
    vi found{};
    for_logits(logits, 0, vocab, [&](int64_t, vf x, int) { found -= (vi)(x > value); });
    int64_t total = 0;
    for (int i = 0; i < W; ++i) total += found[i];
    return total;
}

void weights(const LogitRow& row, int64_t begin, float* out) {
    const int64_t end = begin + kChunk < row.vocab ? begin + kChunk : row.vocab;
    for_logits(row.logits, begin, end, [&](int64_t i, vf x, int count) {
        const vf w = weight(row, distance(row, x));
        if (count == W) {
            store(out + (i - begin), w);
        } else {
            for (int j = 0; j < count; ++j) out[i - begin + j] = w[j];
        }
    });
}

void chunk_sums(const LogitRow& row, double* sums) {
    for (int64_t begin = 0; begin < row.vocab; begin += kChunk) {
        float chunk[kChunk];
        weights(row, begin, chunk);
        const int64_t left = row.vocab - begin;
        const int64_t count = left < kChunk ? left : kChunk;
        double lanes[16] = {};
        int64_t i = 0;
        for (; i + 16 <= count; i += 16) {
            for (int j = 0; j < 16; ++j) lanes[j] += static_cast<double>(chunk[i + j]);
        }
        for (; i < count; ++i) lanes[0] += static_cast<double>(chunk[i]);
        for (int step = 8; step > 0; step /= 2) {
            for (int j = 0; j < step; ++j) lanes[j] += lanes[j + step];
        }
        *sums++ = lanes[0];
    }
}

void histogram(const LogitRow& row, Bucket* buckets) {
    for (int b = 0; b < kBuckets; ++b) buckets[b] = {0.0, 0};
    for_logits(row.logits, 0, row.vocab, [&](int64_t, vf x, int count) {
        const vf d = distance(row, x);
        float w[W];
        std::int32_t place[W];
        store(w, weight(row, d));
        const vi b = bucket(row, d);
        __builtin_memcpy(place, &b, sizeof b);
        for (int j = 0; j < count; ++j) {
            Bucket& one = buckets[place[j]];
            one.weight += static_cast<double>(w[j]);
            ++one.count;
        }
    });
}

int64_t collect(const LogitRow& row, int first, int last, std::uint32_t* ids) {
    int64_t found = 0;
    for_logits(row.logits, 0, row.vocab, [&](int64_t i, vf x, int count) {
        const vi b = bucket(row, distance(row, x));
        unsigned in = bits_of((b >= first) & (b <= last)) & ((1u << count) - 1u);
        for (; in != 0; in &= in - 1) {
            ids[found++] = static_cast<std::uint32_t>(i + __builtin_ctz(in));
        }
    });
    return found;
}

void decay(const float* x, int64_t count, float* out) {
    for_logits(x, 0, count, [&](int64_t i, vf one, int there) {
        const vf y = exp(-one);
        for (int j = 0; j < there; ++j) out[i + j] = y[j];
    });
}

}  // namespace

extern const SamplingKernels sampling_kernels = {highest, count_above, chunk_sums, weights,
                                                 histogram, collect, decay};

}  // namespace seesaw::SEESAW_ISA
