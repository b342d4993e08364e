#include "linear.h"

#include "../tile.h"

namespace seesaw::SEESAW_ISA {

namespace {

// A row of a panel is asked for this many rows before it is used where each panel is read once.
constexpr std::ptrdiff_t kAheadRows = 2048 / kRowBytes;

// Sums of R rows of x times one panel, in float. What is fetched meanwhile: the whole `next` panel,
// or with `alone`, where nothing fetched this one, this panel some rows ahead, then the next.
template <class T, int R>
__attribute__((noinline)) void block_sums(const T* x, std::int64_t ld_x, const T* panel,
                                          std::int64_t steps, const T* next, bool alone,
                                          float* sums) {
    constexpr std::ptrdiff_t kStep = kPanelColumns * kDepth<T>;
    Tile<R> tile;
    tile.zero();
    const std::int64_t own = alone && steps > kAheadRows ? steps - kAheadRows : 0;
    std::int64_t begin = 0, end = own > 0 ? own : steps;
    const T* ahead = own > 0 ? panel + kAheadRows * kStep : next;
    for (;;) {
        tile.multiply(x + begin * kDepth<T>, ld_x, panel + begin * kStep, kStep, end - begin,
                      reinterpret_cast<const char*>(ahead));
        if (end == steps) break;
        begin = end;
        end = steps;
        ahead = next;
    }
    for (int r = 0; r < R; ++r) {
        for (int v = 0; v < NV; ++v) store(sums + r * kPanelColumns + v * W, tile.acc[r][v]);
    }
}

// x / (1 + e^-x), and GELU in its tanh form, which is x / (1 + e^-2u) with u the argument of tanh.
SEESAW_INLINE vf gate(vf x, Finish finish) {
    const vf low = splat(-1e4f);  // both are 0 from far above here; e^88 is not infinity
    x = x < low ? low : x;
    vf t = x;
    if (finish == Finish::gated_gelu) t = x * (1.5957691216057308f + 0.07135481627f * x * x);
    return x / (1.0f + exp(-t));
}

// Stores the first `count` of a panel's W-wide pieces of results.
template <class T, int Pieces>
SEESAW_INLINE void store_first(T* out, const vf (&value)[Pieces], std::int64_t count) {
    if (count == Pieces * W) {
        for (int v = 0; v < Pieces; ++v) store(out + v * W, value[v]);
    } else {
        T whole[Pieces * W];
        for (int v = 0; v < Pieces; ++v) store(whole + v * W, value[v]);
        for (std::int64_t i = 0; i < count; ++i) out[i] = whole[i];
    }
}

template <class T, int Pieces>
SEESAW_INLINE void load_first(vf (&value)[Pieces], const T* from, std::int64_t count) {
    if (count == Pieces * W) {
        for (int v = 0; v < Pieces; ++v) value[v] = load(from + v * W);
    } else {
        T whole[Pieces * W] = {};
        for (std::int64_t i = 0; i < count; ++i) whole[i] = from[i];
        for (int v = 0; v < Pieces; ++v) value[v] = load(whole + v * W);
    }
}

// What becomes of the sums of one panel and `rows` rows, which begin at `row`.
template <class T>
__attribute__((noinline)) void finish_block(const LinearPiece& piece, std::int64_t panel,
                                            std::int64_t row, int rows, const float* sums) {
    constexpr int kHalf = NV / 2;
    static_assert(NV % 2 == 0, "gate and up take whole vectors of a panel");
    const std::int64_t column = panel * kPanelColumns;
    const std::int64_t left = piece.columns - column;
    const std::int64_t count = left < kPanelColumns ? left : kPanelColumns;
    vf bias[NV] = {};
    if (piece.bias != nullptr) {
        const T* from = static_cast<const T*>(piece.bias) + column;
        for (int v = 0; v < NV; ++v) bias[v] = load(from + v * W);
    }
    for (int r = 0; r < rows; ++r, ++row, sums += kPanelColumns) {
        vf y[NV];
        for (int v = 0; v < NV; ++v) y[v] = load(sums + v * W) + bias[v];
        T* out = static_cast<T*>(piece.out) + row * piece.ld_out + column;
        switch (piece.finish) {
            case Finish::store:
                store_first(out, y, count);
                break;
            case Finish::add: {
                vf before[NV];
                load_first(before, out, count);
                for (int v = 0; v < NV; ++v) y[v] += before[v];
                store_first(out, y, count);
                break;
            }
            case Finish::gated_silu:
            case Finish::gated_gelu: {
                vf act[kHalf];
                for (int v = 0; v < kHalf; ++v) act[v] = gate(y[v], piece.finish) * y[kHalf + v];
                const std::int64_t half = left / 2 < kPanelColumns / 2 ? left / 2 : kPanelColumns / 2;
                store_first(out - column / 2, act, half);
                break;
            }
            case Finish::store_f32:
                store_first(static_cast<float*>(piece.out) + row * piece.ld_out + column, y, count);
                break;
            case Finish::highest: {
                float* best = piece.best + row * kPanelColumns;
                std::int32_t* best_column = piece.best_column + row * kPanelColumns;
                for (int v = 0; v < NV; ++v) {
                    vi here;
                    for (int i = 0; i < W; ++i) here[i] = v * W + i;
                    const vi real = here < static_cast<std::int32_t>(count);
                    here += static_cast<std::int32_t>(column);
                    const vf most = load(best + v * W);
                    vi most_column;
                    __builtin_memcpy(&most_column, best_column + v * W, sizeof most_column);
                    const vi better =
                        real & ((y[v] > most) | ((y[v] == most) & (here < most_column)));
                    store(best + v * W, better ? y[v] : most);
                    most_column = better ? here : most_column;
                    __builtin_memcpy(best_column + v * W, &most_column, sizeof most_column);
                }
                break;
            }
        }
    }
}

template <class T>
void run_piece(const LinearPiece& piece) {
    const T* x = static_cast<const T*>(piece.x);
    const std::int64_t steps = piece.depth / kDepth<T>;
    const bool alone = piece.block_end - piece.block_begin == 1;
    alignas(64) float sums[kTileRows * kPanelColumns];
    for (std::int64_t p = piece.panel_begin; p < piece.panel_end; ++p) {
        const T* panel = static_cast<const T*>(piece.panels[p]);
        const void* next = p + 1 < piece.panel_end ? piece.panels[p + 1] : piece.after;
        for (std::int64_t b = piece.block_begin; b < piece.block_end; ++b) {
            const std::int64_t row = b * piece.rows / piece.row_blocks;
            const int rows = static_cast<int>((b + 1) * piece.rows / piece.row_blocks - row);
            const T* fetch = b + 1 == piece.block_end ? static_cast<const T*>(next) : nullptr;
            with_rows(rows, [&](auto r) {
                block_sums<T, decltype(r)::value>(x + row * piece.ld_x, piece.ld_x, panel, steps,
                                                  fetch, alone, sums);
            });
            finish_block<T>(piece, p, row, rows, sums);
        }
    }
}

}  // namespace

extern const LinearKernels linear_kernels = {kTileRows, run_piece<bf16>, run_piece<float>};

}  // namespace seesaw::SEESAW_ISA
