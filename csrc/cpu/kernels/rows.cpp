#include "rows.h"

#include "../gate.h"

namespace seesaw::SEESAW_ISA {

namespace {

using std::int64_t;

// The first `count` < W numbers, zeros behind them.
template <class T>
SEESAW_INLINE vf load_part(const T* p, int64_t count) {
    T whole[W] = {};
    for (int64_t i = 0; i < count; ++i) whole[i] = p[i];
    return load(whole);
}
template <class T>
SEESAW_INLINE void store_part(T* p, vf x, int64_t count) {
    T whole[W];
    store(whole, x);
    for (int64_t i = 0; i < count; ++i) p[i] = whole[i];
}

// f(i, load, store) for each W of 0 .. size, the last of them in part.
template <class T, class F>
SEESAW_INLINE void for_vectors(int64_t size, F&& f) {
    const auto load_all = [](const T* p) { return load(p); };
    const auto store_all = [](T* p, vf x) { store(p, x); };
    int64_t i = 0;
    for (; i + W <= size; i += W) f(i, load_all, store_all);
    if (const int64_t left = size - i; left > 0) {
        f(i, [left](const T* p) { return load_part(p, left); },
          [left](T* p, vf x) { store_part(p, x, left); });
    }
}

SEESAW_INLINE float rms_scale(float squares, int64_t size, float eps) {
    return 1.0f / __builtin_sqrtf(squares / static_cast<float>(size) + eps);
}

template <class T>
SEESAW_INLINE void scale_row(const T* x, const T* weight, int64_t size, float scale, bool plus_one,
                             T* out) {
    const vf more = splat(plus_one ? 1.0f : 0.0f);
    for_vectors<T>(size, [&](int64_t i, auto from, auto to) {
        to(out + i, from(x + i) * scale * (from(weight + i) + more));
    });
}

template <class T>
SEESAW_INLINE float sum_of_squares(const T* x, int64_t size) {
    // Several sums, so that an addition need not wait for the one before.
    vf sums[4] = {};
    int64_t i = 0;
    for (; i + 4 * W <= size; i += 4 * W) {
        for (int s = 0; s < 4; ++s) {
            const vf one = load(x + i + s * W);
            sums[s] += one * one;
        }
    }
    for_vectors<T>(size - i, [&](int64_t j, auto from, auto) {
        const vf one = from(x + i + j);
        sums[0] += one * one;
    });
    return sum_of((sums[0] + sums[1]) + (sums[2] + sums[3]));
}

template <class T>
void rms_norm_rows(const RmsNorm& args, int64_t begin, int64_t end) {
    const T* weight = static_cast<const T*>(args.weight);
    for (int64_t row = begin; row < end; ++row) {
        const T* x = static_cast<const T*>(args.x) + row * args.ld_x;
        if (args.add != nullptr) {
            const T* add = static_cast<const T*>(args.add) + row * args.ld_add;
            T* sum = static_cast<T*>(args.sum) + row * args.ld_sum;
            for_vectors<T>(args.size, [&](int64_t i, auto from, auto to) {
                to(sum + i, from(x + i) + from(add + i));
            });
            x = sum;
        }
        const float scale = rms_scale(sum_of_squares(x, args.size), args.size, args.eps);
        scale_row(x, weight, args.size, scale, args.plus_one,
                  static_cast<T*>(args.out) + row * args.ld_out);
    }
}

// out may be x.
template <class T>
SEESAW_INLINE void rotate(const T* x, const T* cos, const T* sin, int64_t half, T* out) {
    for_vectors<T>(half, [&](int64_t i, auto from, auto to) {
        const vf first = from(x + i), second = from(x + half + i);
        const vf c = from(cos + i), s = from(sin + i);
        to(out + i, first * c - second * s);
        to(out + half + i, second * c + first * s);
    });
}

// Where a token's keys and values of one head go.
template <class T>
struct Place {
    T* k;
    T* v;
    bool panels;
    int in_piece;  // place among the tokens of a piece

    Place(const KvView& kv, int64_t slot) : panels(kv.panels) {
        const int64_t block = slot / kv.block_size, offset = slot % kv.block_size;
        int64_t start = block * kv.block_stride;
        if (panels) {
            in_piece = static_cast<int>(offset % kPieceTokens);
            start += (offset - in_piece) * kv.head_dim;
        } else {
            in_piece = 0;
            start += offset * kv.token_stride;
        }
        k = static_cast<T*>(kv.k) + start;
        v = static_cast<T*>(kv.v) + start;
    }
};

template <class T>
SEESAW_INLINE void write_k(const Place<T>& place, int64_t head_start, const T* from, int head_dim) {
    T* to = place.k + head_start;
    if (!place.panels) {
        for (int i = 0; i < head_dim; ++i) to[i] = from[i];
        return;
    }
    constexpr int kPack = kDepth<T>;
    to += place.in_piece * kPack;
    for (int i = 0; i < head_dim; i += kPack) {
        __builtin_memcpy(to, from + i, kPack * sizeof(T));
        to += kPanelColumns * kPack;
    }
}

template <class T>
SEESAW_INLINE void write_v(const Place<T>& place, int64_t head_start, const T* from, int head_dim) {
    T* to = place.v + head_start;
    if (!place.panels || sizeof(T) == 4) {
        if (place.panels) to += place.in_piece * head_dim;
        for (int i = 0; i < head_dim; ++i) to[i] = from[i];
        return;
    }
    // Every second number of a row: the others belong to the token beside this one, which another
    // thread may be writing now.
    const int odd = place.in_piece % 2;
    to += (place.in_piece - odd) * head_dim;
    int i = 0;
#if defined(__AVX512BW__)
    const __mmask32 mask = odd ? 0xaaaaaaaau : 0x55555555u;
    for (; i + W <= head_dim; i += W) {
        const vh row = *reinterpret_cast<const vh_any*>(from + i);
        const vu words = __builtin_convertvector(row, vu) << (16 * odd);
        _mm512_mask_storeu_epi16(to + 2 * i, mask, (__m512i)words);
    }
#endif
    for (; i < head_dim; ++i) to[2 * i + odd] = from[i];
}

template <class T>
void rope_rows(const Rope& args, int64_t begin, int64_t end) {
    const int64_t half = args.head_dim / 2;
    for (int64_t t = begin; t < end; ++t) {
        const T* cos = static_cast<const T*>(args.cos) + t * half;
        const T* sin = static_cast<const T*>(args.sin) + t * half;
        T* out = static_cast<T*>(args.out) + t * args.outer * args.inner * args.head_dim;
        for (int64_t o = 0; o < args.outer; ++o) {
            for (int64_t i = 0; i < args.inner; ++i, out += args.head_dim) {
                const T* x = static_cast<const T*>(args.x) + t * args.token_stride +
                             o * args.outer_stride + i * args.inner_stride;
                rotate(x, cos, sin, half, out);
            }
        }
    }
}

// Norm, if there is a weight, and RoPE of one head; out may be x.
template <class T>
SEESAW_INLINE void norm_rotate(const RopeKv& args, const T* x, const T* weight, const T* cos,
                               const T* sin, int head_dim, T* out) {
    if (weight == nullptr) {
        rotate(x, cos, sin, head_dim / 2, out);
        return;
    }
    T normed[kMaxRopeHead];
    const float scale = rms_scale(sum_of_squares(x, head_dim), head_dim, args.eps);
    scale_row(x, weight, head_dim, scale, args.plus_one, normed);
    rotate(normed, cos, sin, head_dim / 2, out);
}

template <class T>
void rope_kv_rows(const RopeKv& args, const KvView& kv, int64_t begin, int64_t end) {
    const int64_t half = kv.head_dim / 2;
    const T* q_norm = static_cast<const T*>(args.q_norm);
    const T* k_norm = static_cast<const T*>(args.k_norm);
    T k[kMaxRopeHead];
    for (int64_t t = begin; t < end; ++t) {
        const T* cos = static_cast<const T*>(args.cos) + t * half;
        const T* sin = static_cast<const T*>(args.sin) + t * half;
        const Place<T> place(kv, args.slots[t]);
        T* x = static_cast<T*>(args.qkv) + t * args.ld_qkv;
        for (int head = 0; head < kv.num_heads; ++head) {
            for (int g = 0; g < args.group; ++g, x += args.head_step) {
                norm_rotate(args, x, q_norm, cos, sin, kv.head_dim, x);
            }
            norm_rotate(args, x, k_norm, cos, sin, kv.head_dim, k);
            write_k(place, head * kv.head_stride, k, kv.head_dim);
            x += args.head_step;
            write_v(place, head * kv.head_stride, x, kv.head_dim);
            x += args.head_step;
        }
    }
}

template <class T>
void kv_write_rows(const KvWrite& args, const KvView& kv, int64_t begin, int64_t end) {
    for (int64_t t = begin; t < end; ++t) {
        const Place<T> place(kv, args.slots[t]);
        const T* k = static_cast<const T*>(args.k) + t * args.k_token_stride;
        const T* v = static_cast<const T*>(args.v) + t * args.v_token_stride;
        for (int head = 0; head < kv.num_heads; ++head) {
            write_k(place, head * kv.head_stride, k + head * args.k_head_stride, kv.head_dim);
            write_v(place, head * kv.head_stride, v + head * args.v_head_stride, kv.head_dim);
        }
    }
}

template <class T>
void gated_rows(const GatedRows& args, int64_t begin, int64_t end) {
    const bool gelu = args.activation == Activation::gelu_tanh;
    for (int64_t row = begin; row < end; ++row) {
        const T* x = static_cast<const T*>(args.x) + row * args.ld_x;
        T* out = static_cast<T*>(args.out) + row * args.ld_out;
        for_vectors<T>(args.size, [&](int64_t i, auto from, auto to) {
            to(out + i, gate(from(x + i), gelu) * from(x + args.size + i));
        });
    }
}

template <class T>
void weighted_sum_rows(const WeightedSum& args, int64_t begin, int64_t end) {
    const T* rows = static_cast<const T*>(args.rows);
    for (int64_t t = begin; t < end; ++t) {
        const float* weights = args.weights + t * args.terms;
        const std::int32_t* row_of = args.row_of + t * args.terms;
        T* out = static_cast<T*>(args.out) + t * args.ld_out;
        for_vectors<T>(args.size, [&](int64_t i, auto from, auto to) {
            vf sum = args.add ? from(out + i) : vf{};
            for (int n = 0; n < args.terms; ++n) {
                if (row_of[n] >= 0) sum += weights[n] * from(rows + row_of[n] * args.ld_rows + i);
            }
            to(out + i, sum);
        });
    }
}

template <class T>
void embed_rows(const EmbedRows& args, int64_t begin, int64_t end) {
    constexpr int kPack = kDepth<T>;
    for (int64_t t = begin; t < end; ++t) {
        T* out = static_cast<T*>(args.out) + t * args.ld_out;
        const int64_t row = args.ids[t] - args.first;
        if (row < 0 || row >= args.num_rows) {
            for (int64_t i = 0; i < args.size; ++i) out[i] = T{};
            continue;
        }
        const T* from;
        if (args.panels == nullptr) {
            from = static_cast<const T*>(args.table) + row * args.size;
        } else {
            const T* word = static_cast<const T*>(args.panels[row / kPanelColumns]) +
                            row % kPanelColumns * kPack;
            for (int64_t i = 0; i < args.size; i += kPack, word += kPanelColumns * kPack) {
                __builtin_memcpy(out + i, word, kPack * sizeof(T));
            }
            if (args.scale == 1.0f) continue;
            from = out;
        }
        for_vectors<T>(args.size, [&](int64_t i, auto load_x, auto to) {
            to(out + i, load_x(from + i) * args.scale);
        });
    }
}

void run_rms_norm(const RmsNorm& args, int64_t begin, int64_t end) {
    (args.dtype == DType::bf16 ? rms_norm_rows<bf16> : rms_norm_rows<float>)(args, begin, end);
}
void run_rope(const Rope& args, int64_t begin, int64_t end) {
    (args.dtype == DType::bf16 ? rope_rows<bf16> : rope_rows<float>)(args, begin, end);
}
void run_rope_kv(const RopeKv& args, const KvView& kv, int64_t begin, int64_t end) {
    (kv.dtype == DType::bf16 ? rope_kv_rows<bf16> : rope_kv_rows<float>)(args, kv, begin, end);
}
void run_kv_write(const KvWrite& args, const KvView& kv, int64_t begin, int64_t end) {
    (kv.dtype == DType::bf16 ? kv_write_rows<bf16> : kv_write_rows<float>)(args, kv, begin, end);
}
void run_gated(const GatedRows& args, int64_t begin, int64_t end) {
    (args.dtype == DType::bf16 ? gated_rows<bf16> : gated_rows<float>)(args, begin, end);
}
void run_weighted_sum(const WeightedSum& args, int64_t begin, int64_t end) {
    (args.dtype == DType::bf16 ? weighted_sum_rows<bf16> : weighted_sum_rows<float>)(args, begin, end);
}
void run_embed(const EmbedRows& args, int64_t begin, int64_t end) {
    (args.dtype == DType::bf16 ? embed_rows<bf16> : embed_rows<float>)(args, begin, end);
}

}  // namespace

extern const RowsKernels rows_kernels = {run_rms_norm, run_rope,         run_rope_kv, run_kv_write,
                                         run_gated,    run_weighted_sum, run_embed};

}  // namespace seesaw::SEESAW_ISA
