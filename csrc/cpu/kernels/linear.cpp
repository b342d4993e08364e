#include "linear.h"

#include "../gate.h"
#include "../tile.h"

namespace seesaw::SEESAW_ISA {

namespace {

// Rows of a block. bf16 on AVX2 leaves registers for fewer, with two numbers of each row to hold.
template <class T>
constexpr int kBlockRows = W == 8 && sizeof(T) == 2 ? 2 : kTileRows;

// What to fetch while a block runs: for `steps` steps from `first` on, then from `second`, `rate`
// bytes in each step. Null is nothing.
struct Ahead {
    std::int64_t steps;
    const char* first;
    const char* second;
    std::int64_t rate;
};

// Sums of R rows of x times one panel, in float.
template <class T, int R>
__attribute__((noinline)) void block_sums(const T* x, std::int64_t ld_x, const T* panel,
                                          std::int64_t steps, Ahead ahead, float* sums) {
    constexpr std::ptrdiff_t kStep = kPanelColumns * kDepth<T>;
    Tile<R> tile;
    tile.zero();
    tile.multiply(x, ld_x, panel, kStep, ahead.steps, ahead.first, ahead.rate);
    if (ahead.steps < steps) {
        tile.multiply(x + ahead.steps * kDepth<T>, ld_x, panel + ahead.steps * kStep, kStep,
                      steps - ahead.steps, ahead.second, ahead.rate);
    }
    for (int r = 0; r < R; ++r) {
        for (int v = 0; v < NV; ++v) store(sums + r * kPanelColumns + v * W, tile.acc[r][v]);
    }
}

// Where a panel is read once, it is asked for this many rows before it is used: memory's latency at
// the speed of a core, and more, since a few KB were measured to be too little.
constexpr std::int64_t kAheadRows = 16384 / kRowBytes;

// The fetching of block `block` of `blocks` that run on a panel in turn. One alone streams its own
// panel, then begins the next. Several fetch the next evenly among them: all of it in the time of
// one block would be more than memory delivers.
Ahead ahead_of(const char* panel, const char* next, std::int64_t steps, std::int64_t block,
               std::int64_t blocks) {
    if (blocks == 1) {
        if (steps <= kAheadRows) return {steps, next, nullptr, kRowBytes};
        return {steps - kAheadRows, panel + kAheadRows * kRowBytes, next, kRowBytes};
    }
    const std::int64_t rate = (kRowBytes + blocks - 1) / blocks;
    return {steps, next == nullptr ? nullptr : next + block * steps * rate, nullptr, rate};
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

// Sees the real columns of one row, `count` sums from `column` on.
SEESAW_INLINE void see_highest(float& best, std::int32_t& best_column, const vf (&y)[NV],
                               std::int32_t column, std::int64_t count) {
    vi higher = vi{};
    for (int v = 0; v < NV; ++v) higher |= y[v] > best;
    if (best_column >= 0 && !any_of(higher)) return;  // nearly always
    float sums[kPanelColumns];
    for (int v = 0; v < NV; ++v) store(sums + v * W, y[v]);
    for (std::int32_t i = 0; i < count; ++i) {
        if (sums[i] > best || (best_column < 0 && sums[i] == sums[i])) {
            best = sums[i];
            best_column = column + i;
        }
    }
}

// What becomes of the sums of one panel and `rows` rows, which begin at `first_row`.
template <class T>
__attribute__((noinline)) void finish_block(const LinearPiece& piece, std::int64_t panel,
                                            std::int64_t first_row, int rows, const float* sums) {
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
    const auto each_row = [&](auto&& finish) {
        for (int r = 0; r < rows; ++r) {
            vf y[NV];
            for (int v = 0; v < NV; ++v) y[v] = load(sums + r * kPanelColumns + v * W) + bias[v];
            finish(first_row + r, y);
        }
    };
    T* const out = static_cast<T*>(piece.out);
    const std::int64_t ld_out = piece.ld_out;
    const auto out_of = [=](std::int64_t row, std::int64_t at) { return out + row * ld_out + at; };
    const auto gated = [&](bool gelu) {
        const std::int64_t half = left / 2 < kPanelColumns / 2 ? left / 2 : kPanelColumns / 2;
        each_row([&](std::int64_t row, vf(&y)[NV]) {
            vf act[kHalf];
            for (int v = 0; v < kHalf; ++v) act[v] = gate(y[v], gelu) * y[kHalf + v];
            store_first(out_of(row, column / 2), act, half);
        });
    };
    switch (piece.finish) {
        case Finish::store:
            return each_row([&](std::int64_t row, vf(&y)[NV]) {
                store_first(out_of(row, column), y, count);
            });
        case Finish::add:
            return each_row([&](std::int64_t row, vf(&y)[NV]) {
                vf before[NV];
                load_first(before, out_of(row, column), count);
                for (int v = 0; v < NV; ++v) y[v] += before[v];
                store_first(out_of(row, column), y, count);
            });
        case Finish::gated_silu: return gated(false);
        case Finish::gated_gelu: return gated(true);
        case Finish::store_f32:
            return each_row([&](std::int64_t row, vf(&y)[NV]) {
                store_first(static_cast<float*>(piece.out) + row * ld_out + column, y, count);
            });
        case Finish::highest:
            return each_row([&](std::int64_t row, vf(&y)[NV]) {
                see_highest(piece.best[row], piece.best_column[row], y,
                            static_cast<std::int32_t>(column), count);
            });
    }
}

template <class T>
void run_piece(const LinearPiece& piece) {
    const T* x = static_cast<const T*>(piece.x);
    const std::int64_t steps = piece.depth / kDepth<T>;
    const std::int64_t blocks = piece.block_end - piece.block_begin;
    alignas(64) float sums[kBlockRows<T> * kPanelColumns];
    for (std::int64_t p = piece.panel_begin; p < piece.panel_end; ++p) {
        const T* panel = static_cast<const T*>(piece.panels[p]);
        const char* next = static_cast<const char*>(
            p + 1 < piece.panel_end ? piece.panels[p + 1] : piece.after);
        for (std::int64_t b = piece.block_begin; b < piece.block_end; ++b) {
            const std::int64_t row = b * piece.rows / piece.row_blocks;
            const int rows = static_cast<int>((b + 1) * piece.rows / piece.row_blocks - row);
            const Ahead ahead = ahead_of(reinterpret_cast<const char*>(panel), next, steps,
                                         b - piece.block_begin, blocks);
            with_rows<kBlockRows<T>>(rows, [&](auto r) {
                block_sums<T, decltype(r)::value>(x + row * piece.ld_x, piece.ld_x, panel, steps,
                                                  ahead, sums);
            });
            finish_block<T>(piece, p, row, rows, sums);
        }
    }
}

}  // namespace

extern const LinearKernels linear_kernels = {kBlockRows<bf16>, kBlockRows<float>, run_piece<bf16>,
                                              run_piece<float>};

}  // namespace seesaw::SEESAW_ISA
