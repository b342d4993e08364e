#include "linear.h"

#include <algorithm>
#include <limits>

#include "kernels/linear.h"

namespace seesaw {

namespace {

std::int64_t ceil_div(std::int64_t a, std::int64_t b) { return (a + b - 1) / b; }

// Rows of x that stay in a core's second-level cache while panels stream past them.
constexpr std::int64_t kResidentBytes = 512 * 1024;
// Largest piece of work: about 20 microseconds of a core that reads 25 GB/s or does 500 GFLOP/s.
constexpr std::int64_t kPieceBytes = 512 * 1024;
constexpr std::int64_t kPieceFlops = 10'000'000;
// Pieces for each thread, at least, where there is work for as many.
constexpr std::int64_t kRounds = 3;

// How a matrix and rows are cut: into groups of row blocks, and pieces of panels.
struct Cut {
    std::int64_t row_blocks;
    std::int64_t groups;
    std::int64_t pieces;  // of a group
    std::int64_t grain;   // panels of a piece
};

Cut cut(const Linear& weight, std::int64_t rows, std::int64_t threads, int block_rows) {
    Cut cut;
    const auto row_bytes = weight.depth * static_cast<std::int64_t>(element_bytes(weight.dtype));
    cut.row_blocks = ceil_div(rows, block_rows);
    const std::int64_t for_cache = ceil_div(rows * row_bytes, kResidentBytes);
    const std::int64_t for_threads = ceil_div(kRounds * threads, weight.num_panels);
    cut.groups = std::min(cut.row_blocks, std::max(for_cache, for_threads));

    const std::int64_t group_rows = ceil_div(rows, cut.groups);
    const std::int64_t panel_bytes = kPanelColumns * row_bytes;
    const std::int64_t panel_flops = 2 * kPanelColumns * weight.depth * group_rows;
    const std::int64_t all = cut.groups * weight.num_panels;
    // Of the grains that leave the busiest thread least to do, the largest.
    const std::int64_t most = std::max<std::int64_t>(
        1, std::min({kPieceBytes / panel_bytes, kPieceFlops / panel_flops,
                     all / (kRounds * threads), weight.num_panels}));
    std::int64_t least_load = std::numeric_limits<std::int64_t>::max();
    for (std::int64_t grain = most; grain >= 1; --grain) {
        const std::int64_t pieces = ceil_div(weight.num_panels, grain);
        const std::int64_t load = ceil_div(cut.groups * pieces, threads) * grain;
        if (load < least_load) {
            least_load = load;
            cut.grain = grain;
            cut.pieces = pieces;
        }
    }
    return cut;
}

// Runs all pieces of what `piece` says of the result.
void run(Team& team, const Linear& weight, const void* x, std::int64_t ld_x, std::int64_t rows,
         LinearPiece piece) {
    if (rows == 0 || weight.num_panels == 0) return team.barrier();
    const LinearKernels& kernels = linear_kernels();
    const bool half = weight.dtype == DType::bf16;
    const int block_rows = half ? kernels.bf16_block_rows : kernels.f32_block_rows;
    const Cut how = cut(weight, rows, team.size(), block_rows);
    piece.panels = weight.panels;
    piece.columns = weight.columns;
    piece.depth = weight.depth;
    piece.bias = weight.bias;
    piece.x = x;
    piece.ld_x = ld_x;
    piece.rows = rows;
    piece.row_blocks = how.row_blocks;
    const auto run_piece = half ? kernels.bf16_piece : kernels.f32_piece;
    const auto first_panel = [&](std::int64_t i) { return i % how.pieces * how.grain; };
    team.share(how.groups * how.pieces, 1, [&](std::int64_t i, std::int64_t) {
        const std::int64_t group = i / how.pieces;
        piece.block_begin = group * how.row_blocks / how.groups;
        piece.block_end = (group + 1) * how.row_blocks / how.groups;
        piece.panel_begin = first_panel(i);
        piece.panel_end = std::min(piece.panel_begin + how.grain, weight.num_panels);
        const std::int64_t next = i + team.size();
        piece.after =
            next < how.groups * how.pieces ? weight.panels[first_panel(next)] : nullptr;
        run_piece(piece);
    });
}

void run(Team& team, const Linear& weight, const void* x, std::int64_t ld_x, std::int64_t rows,
         Finish finish, void* out, std::int64_t ld_out) {
    LinearPiece piece{};
    piece.finish = finish;
    piece.out = out;
    piece.ld_out = ld_out;
    run(team, weight, x, ld_x, rows, piece);
}

}  // namespace

void linear(Team& team, const Linear& weight, const void* x, std::int64_t ld_x, std::int64_t rows,
            void* out, std::int64_t ld_out) {
    run(team, weight, x, ld_x, rows, Finish::store, out, ld_out);
}

void linear_add(Team& team, const Linear& weight, const void* x, std::int64_t ld_x,
                std::int64_t rows, void* out, std::int64_t ld_out) {
    run(team, weight, x, ld_x, rows, Finish::add, out, ld_out);
}

void linear_gated(Team& team, const Linear& gate_up, Activation activation, const void* x,
                  std::int64_t ld_x, std::int64_t rows, void* out, std::int64_t ld_out) {
    const Finish finish =
        activation == Activation::silu ? Finish::gated_silu : Finish::gated_gelu;
    run(team, gate_up, x, ld_x, rows, finish, out, ld_out);
}

void linear_f32(Team& team, const Linear& weight, const void* x, std::int64_t ld_x,
                std::int64_t rows, float* out, std::int64_t ld_out) {
    run(team, weight, x, ld_x, rows, Finish::store_f32, out, ld_out);
}

// For each thread and row: the highest sum, and its column.
std::size_t highest_scratch_bytes(std::int64_t rows, int num_threads) {
    return static_cast<std::size_t>(num_threads) * static_cast<std::size_t>(rows) *
           (sizeof(float) + sizeof(std::int32_t));
}

void linear_highest(Team& team, const Linear& weight, const void* x, std::int64_t ld_x,
                    std::int64_t rows, float* value, std::int64_t* column, void* scratch) {
    if (rows == 0) return;
    const auto best_of = [=](int thread) {
        return static_cast<float*>(scratch) + thread * 2 * rows;
    };
    const auto column_of = [=](int thread) {
        return reinterpret_cast<std::int32_t*>(best_of(thread) + rows);
    };
    LinearPiece piece{};
    piece.finish = Finish::highest;
    piece.best = best_of(team.index());
    piece.best_column = column_of(team.index());
    std::fill_n(piece.best, rows, -std::numeric_limits<float>::infinity());
    std::fill_n(piece.best_column, rows, -1);
    run(team, weight, x, ld_x, rows, piece);
    team.share(rows, 64, [&](std::int64_t begin, std::int64_t end) {
        for (std::int64_t row = begin; row < end; ++row) {
            value[row] = std::numeric_limits<float>::quiet_NaN();
            column[row] = -1;
            for (int thread = 0; thread < team.size(); ++thread) {
                const float here = best_of(thread)[row];
                const std::int32_t here_column = column_of(thread)[row];
                if (here_column < 0) continue;
                if (column[row] < 0 || here > value[row] ||
                    (here == value[row] && here_column < column[row])) {
                    value[row] = here;
                    column[row] = here_column;
                }
            }
            column[row] = std::max<std::int64_t>(column[row], 0);
        }
    });
}

}  // namespace seesaw
