#include "attention.h"

#include "../tile.h"

namespace seesaw::SEESAW_ISA {

namespace {

// Floats of a row of scores: rows lie apart by no multiple of a page.
constexpr int kScoreRow = kChunkTokens + 16;
constexpr float kNone = -__builtin_inff();
constexpr float kLog2E = 1.44269504088896341f;

// 2^x for x <= 0: 2^floor(x) times a polynomial of what is left, in 0 .. 1, that is 1 at 0 and has the
// least relative error (found by reweighted least squares): 1e-4 where the result is rounded to bf16,
// else 1e-7. 0 below -126 or so.
template <class T>
SEESAW_INLINE vf exp2(vf x) {
#if defined(__AVX512F__)
    // The forms with a mask: GCC 12 warns of its own header in the others.
    x = (vf)_mm512_maskz_max_ps(0xffff, _mm512_set1_ps(-1000.0f), (__m512)x);  // a NaN stays one
    const vf r = (vf)_mm512_maskz_reduce_ps(0xffff, (__m512)x, _MM_FROUND_TO_NEG_INF);
#else
    const vf low = splat(-126.0f);
    const vi under = x < low;
    x = x < low ? low : x;
    const vf shifted = x - 0.5f + 12582912.0f;  // 1.5 * 2^23: rounds to nearest
    const vf r = x - (shifted - 12582912.0f);
#endif
    vf p;
    if constexpr (sizeof(T) == 2) {
        p = r * 0.0770670474f + 0.227644995f;
        p = p * r + 0.695116758f;
    } else {
        p = r * 0.00186713014f + 0.00901702978f;
        p = p * r + 0.0557999127f;
        p = p * r + 0.240164444f;
        p = p * r + 0.693151295f;
    }
    p = p * r + 1.0f;
#if defined(__AVX512F__)
    return (vf)_mm512_maskz_scalef_ps(0xffff, (__m512)p, (__m512)x);
#else
    p = p * (vf)(((vi)shifted - (vi)splat(12582912.0f) + 127) << 23);
    return (vf)((vi)p & ~under);
#endif
}

SEESAW_INLINE vf tanh(vf x) { return 1.0f - 2.0f / (exp(x + x) + 1.0f); }

// Scores of a row [0, count) become weights in place (of T, from the row's beginning); those outside
// low .. high are 0. Sums go lane by lane in the order of keys, so keys that the row does not see
// change nothing.
template <class T>
void soften(float* s, int count, int low, int high, const AttentionChunk& chunk, float& highest,
            float& sum) {
    T* weights = reinterpret_cast<T*>(s);
    vi iota;
    for (int i = 0; i < W; ++i) iota[i] = i;
    if (low >= high) {
        for (int i = 0; i < count; i += W) store(weights + i, vf{});
        highest = kNone;
        sum = 0;
        return;
    }
    float unit = chunk.scale * kLog2E;
    if (chunk.soft_cap != 0) {
        const float inner = chunk.scale / chunk.soft_cap;
        for (int i = 0; i < count; i += W) store(s + i, tanh(load(s + i) * inner));
        unit = chunk.soft_cap * kLog2E;
    }
    for (int i = 0; i < low; i += W) store(s + i, iota + i < low ? splat(kNone) : load(s + i));
    for (int i = high / W * W; i < count; i += W) {
        store(s + i, iota + i < high ? load(s + i) : splat(kNone));
    }
    vf most[NV];
    for (int v = 0; v < NV; ++v) most[v] = load(s + v * W);
    for (int i = kPieceTokens; i < count; i += kPieceTokens) {
        for (int v = 0; v < NV; ++v) most[v] = max(load(s + i + v * W), most[v]);
    }
    for (int v = 1; v < NV; ++v) most[0] = max(most[v], most[0]);
    highest = max_of(most[0]) * unit;
    vf total[NV] = {};
    for (int i = 0; i < count; i += kPieceTokens) {
        for (int v = 0; v < NV; ++v) {
            const vf p = exp2<T>(load(s + i + v * W) * unit - highest);
            total[v] += p;
            store(weights + i + v * W, p);
        }
    }
    for (int v = 1; v < NV; ++v) total[0] += total[v];
    sum = sum_of(total[0]);
}

// Weights times values. In one go per 32 columns; or, with `ahead` (of each piece), piece by piece in
// the order in which they lie in memory. The additions of an element are the same.
template <class T, int R>
SEESAW_INLINE void weigh(const T* weights, const AttentionChunk& chunk, int first, int last,
                         std::int64_t steps, const T* tail, float* values, bool in_order,
                         const char* const* ahead) {
    constexpr int D = kDepth<T>;
    const int columns = chunk.columns;
    const std::ptrdiff_t ld = kScoreRow * (4 / sizeof(T));
    const std::ptrdiff_t step = static_cast<std::ptrdiff_t>(columns) * D;
    auto piece = [&](Tile<R>& tile, int p, int column, const char* next) {
        const T* a = weights + (p - first) * kPieceTokens;
        const T* b = static_cast<const T*>(chunk.v[p]) + column * D;
        const bool partial = p == last - 1;
        const std::int64_t whole = partial ? steps : kPieceTokens / D;
        tile.multiply(a, ld, b, step, whole, next);
        if (partial && tail != nullptr) {
            tile.multiply(a + whole * D, ld, tail + column * D, step, 1, nullptr);
        }
    };
    auto put = [&](const Tile<R>& tile, int column) {
        for (int r = 0; r < R; ++r) {
            for (int v = 0; v < NV; ++v) {
                store(values + r * columns + column + v * W, tile.acc[r][v]);
            }
        }
    };
    // The last columns overlap those before them where the number is no multiple of 32.
    const int groups = (columns + kPanelColumns - 1) / kPanelColumns;
    auto column_of = [&](int g) {
        const int column = g * kPanelColumns;
        return column + kPanelColumns <= columns ? column : columns - kPanelColumns;
    };
    if (!in_order) {
        for (int g = 0; g < groups; ++g) {
            Tile<R> tile;
            tile.zero();
            for (int p = first; p < last; ++p) piece(tile, p, column_of(g), nullptr);
            put(tile, column_of(g));
        }
        return;
    }
    // Here each group of columns has its own place, so that none is added to twice.
    alignas(64) float sums[R][256];
    for (int p = first; p < last; ++p) {
        const char* next = ahead[p - first];
        for (int g = 0; g < groups; ++g) {
            Tile<R> tile;
            float* own = &sums[0][0] + g * kPanelColumns;
            constexpr int row = 256;
            if (p == first) {
                tile.zero();
            } else {
                for (int r = 0; r < R; ++r) {
                    for (int v = 0; v < NV; ++v) tile.acc[r][v] = load(own + r * row + v * W);
                }
            }
            piece(tile, p, column_of(g), next);
            if (next != nullptr) next += (kPieceTokens / D) * kRowBytes;
            if (p == last - 1) {
                put(tile, column_of(g));
            } else {
                for (int r = 0; r < R; ++r) {
                    for (int v = 0; v < NV; ++v) store(own + r * row + v * W, tile.acc[r][v]);
                }
            }
        }
    }
}

// Rows begin .. begin + R of a chunk.
template <class T, int R>
void attend_rows(const AttentionChunk& chunk, int begin) {
    constexpr int D = kDepth<T>;
    const std::int64_t position = chunk.position + begin / chunk.group;
    const std::int64_t last_position = chunk.position + (begin + R - 1) / chunk.group;
    std::int64_t end = last_position + 1 - chunk.first_key;
    if (end > chunk.num_pieces * kPieceTokens) end = chunk.num_pieces * kPieceTokens;
    std::int64_t start = chunk.window > 0 ? position + 1 - chunk.window - chunk.first_key : 0;
    if (start < 0) start = 0;
    float* highest = chunk.result.highest + begin;
    float* sum = chunk.result.sum + begin;
    float* values = chunk.result.values + static_cast<std::ptrdiff_t>(begin) * chunk.columns;
    if (start >= end) {
        for (int r = 0; r < R; ++r) highest[r] = kNone;
        return;
    }
    const int first = static_cast<int>(start / kPieceTokens);
    const int last = static_cast<int>((end + kPieceTokens - 1) / kPieceTokens);
    const int count = (last - first) * kPieceTokens;

    // One block of rows reads keys and values once, from memory: what comes kAhead pieces later is
    // fetched meanwhile. Of several blocks the first brings them into the cache.
    const bool in_order = R == chunk.rows;
    constexpr int kAhead = 2;
    const char* ahead[2 * kChunkPieces + kAhead] = {};
    if (in_order) {
        int n = 0;
        for (int p = first; p < last; ++p) ahead[n++] = static_cast<const char*>(chunk.k[p]);
        for (int p = first; p < last; ++p) ahead[n++] = static_cast<const char*>(chunk.v[p]);
        for (int p = 0; p < kAhead && p < chunk.num_next; ++p) {
            ahead[n++] = static_cast<const char*>(chunk.next_k[p]);
        }
    }
    const char* const* next = ahead + kAhead;

    alignas(64) float scores[R * kScoreRow];
    const T* q = static_cast<const T*>(chunk.q) + static_cast<std::ptrdiff_t>(begin) * chunk.head_dim;
    for (int p = first; p < last; ++p) {
        Tile<R> tile;
        tile.zero();
        tile.multiply(q, chunk.head_dim, static_cast<const T*>(chunk.k[p]), kPanelColumns * D,
                      chunk.head_dim / D, next[p - first]);
        float* s = scores + (p - first) * kPieceTokens;
        for (int r = 0; r < R; ++r) {
            for (int v = 0; v < NV; ++v) store(s + r * kScoreRow + v * W, tile.acc[r][v]);
        }
    }
    const std::int64_t first_key = chunk.first_key + first * kPieceTokens;
    for (int r = 0; r < R; ++r) {
        const std::int64_t own = chunk.position + (begin + r) / chunk.group;
        std::int64_t low = chunk.window > 0 ? own + 1 - chunk.window - first_key : 0;
        std::int64_t high = own + 1 - first_key;
        if (low < 0) low = 0;
        if (low > count) low = count;
        if (high > count) high = count;
        soften<T>(scores + r * kScoreRow, count, static_cast<int>(low), static_cast<int>(high), chunk,
                  highest[r], sum[r]);
    }
    // Values past the last key may be NaN, which a weight of 0 does not take away: they are not
    // multiplied. Where the last key is the first of a pair, its neighbour is left out here.
    const std::int64_t tokens = end - (last - 1) * kPieceTokens;
    alignas(64) T tail[256 * D];
    const bool odd = tokens % D != 0;
    if (odd) {
        const T* pair = static_cast<const T*>(chunk.v[last - 1]) + tokens / D * D * chunk.columns;
        for (int c = 0; c < chunk.columns; ++c) {
            tail[c * D] = pair[c * D];
            tail[c * D + D - 1] = T{};
        }
    }
    weigh<T, R>(reinterpret_cast<const T*>(scores), chunk, first, last, tokens / D,
                odd ? tail : nullptr, values, in_order, next + (last - first));
}

template <class T>
void attend_typed(const AttentionChunk& chunk) {
    const int blocks = (chunk.rows + kTileRows - 1) / kTileRows;
    for (int b = 0, begin = 0; b < blocks; ++b) {
        const int rows = (chunk.rows - begin + blocks - b - 1) / (blocks - b);
        with_rows(rows, [&](auto r) { attend_rows<T, decltype(r)::value>(chunk, begin); });
        begin += rows;
    }
}

void attend(const AttentionChunk& chunk) {
    if (chunk.dtype == DType::bf16) {
        attend_typed<bf16>(chunk);
    } else {
        attend_typed<float>(chunk);
    }
}

void merge(int rows, int columns, const AttentionResult& into, const AttentionResult& from) {
    for (int r = 0; r < rows; ++r) {
        if (from.highest[r] == kNone) continue;
        float* to = into.values + static_cast<std::ptrdiff_t>(r) * columns;
        const float* add = from.values + static_cast<std::ptrdiff_t>(r) * columns;
        if (into.highest[r] == kNone) {
            into.highest[r] = from.highest[r];
            into.sum[r] = from.sum[r];
            for (int c = 0; c < columns; c += W) store(to + c, load(add + c));
            continue;
        }
        const float old = into.highest[r], more = from.highest[r];
        const float highest = more > old ? more : old;
        const float keep = exp2<float>(splat(old - highest))[0];
        const float take = exp2<float>(splat(more - highest))[0];
        into.highest[r] = highest;
        into.sum[r] = into.sum[r] * keep + from.sum[r] * take;
        for (int c = 0; c < columns; c += W) store(to + c, load(to + c) * keep + load(add + c) * take);
    }
}

template <class T>
void finish_typed(const AttentionFinish& args) {
    T* row = static_cast<T*>(args.out);
    int head = 0;
    for (int r = 0; r < args.rows; ++r) {
        const float share = 1.0f / args.result.sum[r];
        const float* values = args.result.values + static_cast<std::ptrdiff_t>(r) * args.columns;
        T* out = row + static_cast<std::ptrdiff_t>(head) * args.head_dim;
        for (int c = 0; c < args.head_dim; c += W) store(out + c, load(values + c) * share);
        if (++head == args.group) {
            head = 0;
            row += args.ld_out;
        }
    }
}

void finish(const AttentionFinish& args) {
    if (args.dtype == DType::bf16) {
        finish_typed<bf16>(args);
    } else {
        finish_typed<float>(args);
    }
}

template <class T>
void gather_typed(const AttentionGather& args) {
    constexpr int D = kDepth<T>;
    // A row of K's panel holds 4 bytes of each token: the panel is the tokens transposed in words.
    const int words = args.head_dim * static_cast<int>(sizeof(T)) / 4;
    const T* k = static_cast<const T*>(args.k);
    T* to = static_cast<T*>(args.k_piece) + args.offset * D;
    for (int t = 0; t < args.tokens; ++t, k += args.token_stride, to += D) {
        for (int w = 0; w < words; ++w) {
            __builtin_memcpy(to + w * kPanelColumns * D, k + w * D, 4);
        }
    }
    const T* v = static_cast<const T*>(args.v);
    for (int t = args.offset; t < args.offset + args.tokens; ++t, v += args.token_stride) {
        T* row = static_cast<T*>(args.v_piece) + (t / D) * (args.columns * D) + t % D;
        for (int c = 0; c < args.head_dim; ++c) row[c * D] = v[c];
    }
}

void gather(const AttentionGather& args) {
    if (args.dtype == DType::bf16) {
        gather_typed<bf16>(args);
    } else {
        gather_typed<float>(args);
    }
}

}  // namespace

extern const AttentionKernels attention_kernels = {attend, merge, finish, gather};

}  // namespace seesaw::SEESAW_ISA
