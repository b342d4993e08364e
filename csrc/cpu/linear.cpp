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

int block_rows(DType dtype) {
    const LinearKernels& kernels = linear_kernels();
    return dtype == DType::bf16 ? kernels.bf16_block_rows : kernels.f32_block_rows;
}

// Cuts a part's rows into groups of blocks and its panels into pieces. `all_panels`: of all parts
// together, which are taken to be like this one.
void cut_part(const Linear& like, LinearPart& part, std::int64_t all_panels, std::int64_t threads) {
    const auto row_bytes = like.depth * static_cast<std::int64_t>(element_bytes(like.dtype));
    part.row_blocks = ceil_div(part.rows, block_rows(like.dtype));
    const std::int64_t for_cache = ceil_div(part.rows * row_bytes, kResidentBytes);
    const std::int64_t for_threads = ceil_div(kRounds * threads, all_panels);
    part.groups = std::min(part.row_blocks, std::max(for_cache, for_threads));

    const std::int64_t group_rows = ceil_div(part.rows, part.groups);
    const std::int64_t panel_bytes = kPanelColumns * row_bytes;
    const std::int64_t panel_flops = 2 * kPanelColumns * like.depth * group_rows;
    const std::int64_t all = part.groups * all_panels;
    // Of the grains that leave the busiest thread least to do, the largest.
    const std::int64_t most = std::max<std::int64_t>(
        1, std::min({kPieceBytes / panel_bytes, kPieceFlops / panel_flops,
                     all / (kRounds * threads), like.num_panels}));
    std::int64_t least_load = std::numeric_limits<std::int64_t>::max();
    for (std::int64_t grain = most; grain >= 1; --grain) {
        const std::int64_t pieces = ceil_div(like.num_panels, grain);
        const std::int64_t load = ceil_div(all / like.num_panels * pieces, threads) * grain;
        if (load < least_load) {
            least_load = load;
            part.grain = grain;
            part.group_pieces = pieces;
        }
    }
}

// Runs all pieces of what `piece` says of the result.
void run_parts(Team& team, const Linear& like, const LinearPart* parts, std::int64_t count,
               const void* x, std::int64_t ld_x, LinearPiece piece) {
    const bool half = like.dtype == DType::bf16;
    const LinearKernels& kernels = linear_kernels();
    const auto run_piece = half ? kernels.bf16_piece : kernels.f32_piece;
    const auto size = static_cast<std::int64_t>(element_bytes(like.dtype));
    auto* const out = static_cast<std::byte*>(piece.out);
    piece.columns = like.columns;
    piece.depth = like.depth;
    piece.bias = like.bias;
    piece.ld_x = ld_x;
    const std::int64_t pieces = count == 0 ? 0 : parts[count - 1].end_piece;
    const auto part_of = [=](std::int64_t i) {
        return std::upper_bound(
            parts, parts + count, i,
            [](std::int64_t at, const LinearPart& part) { return at < part.end_piece; });
    };
    const auto place_in = [](const LinearPart& part, std::int64_t i) {
        return i - (part.end_piece - part.groups * part.group_pieces);
    };
    const auto first_panel = [](const LinearPart& part, std::int64_t place) {
        return place % part.group_pieces * part.grain;
    };
    team.share(pieces, 1, [&](std::int64_t i, std::int64_t) {
        const LinearPart& part = *part_of(i);
        const std::int64_t place = place_in(part, i);
        const std::int64_t group = place / part.group_pieces;
        piece.panels = part.panels;
        piece.rows = part.rows;
        piece.row_blocks = part.row_blocks;
        piece.x = static_cast<const std::byte*>(x) + part.row * ld_x * size;
        // Results of another size, or none, are of one part, whose first row is 0.
        piece.out = out + part.row * piece.ld_out * size;
        piece.block_begin = group * part.row_blocks / part.groups;
        piece.block_end = (group + 1) * part.row_blocks / part.groups;
        piece.panel_begin = first_panel(part, place);
        piece.panel_end = std::min(piece.panel_begin + part.grain, like.num_panels);
        piece.after = nullptr;
        if (const std::int64_t next = i + team.size(); next < pieces) {
            const LinearPart& then = *part_of(next);
            piece.after = then.panels[first_panel(then, place_in(then, next))];
        }
        run_piece(piece);
    });
}

// The same of one matrix and all rows.
void run(Team& team, const Linear& weight, const void* x, std::int64_t ld_x, std::int64_t rows,
         const LinearPiece& piece) {
    if (rows == 0 || weight.num_panels == 0) return team.barrier();
    LinearPart part{weight.panels, 0, rows};
    cut_parts(weight, &part, 1, team.size());
    run_parts(team, weight, &part, 1, x, ld_x, piece);
}

LinearPiece piece_of(Finish finish, void* out, std::int64_t ld_out) {
    LinearPiece piece{};
    piece.finish = finish;
    piece.out = out;
    piece.ld_out = ld_out;
    return piece;
}

Finish gated(Activation activation) {
    return activation == Activation::silu ? Finish::gated_silu : Finish::gated_gelu;
}

}  // namespace

void linear(Team& team, const Linear& weight, const void* x, std::int64_t ld_x, std::int64_t rows,
            void* out, std::int64_t ld_out) {
    run(team, weight, x, ld_x, rows, piece_of(Finish::store, out, ld_out));
}

void linear_add(Team& team, const Linear& weight, const void* x, std::int64_t ld_x,
                std::int64_t rows, void* out, std::int64_t ld_out) {
    run(team, weight, x, ld_x, rows, piece_of(Finish::add, out, ld_out));
}

void linear_gated(Team& team, const Linear& gate_up, Activation activation, const void* x,
                  std::int64_t ld_x, std::int64_t rows, void* out, std::int64_t ld_out) {
    run(team, gate_up, x, ld_x, rows, piece_of(gated(activation), out, ld_out));
}

void linear_f32(Team& team, const Linear& weight, const void* x, std::int64_t ld_x,
                std::int64_t rows, float* out, std::int64_t ld_out) {
    run(team, weight, x, ld_x, rows, piece_of(Finish::store_f32, out, ld_out));
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
    LinearPiece piece = piece_of(Finish::highest, nullptr, 0);
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

void cut_parts(const Linear& like, LinearPart* parts, std::int64_t count, int num_threads) {
    std::int64_t pieces = 0;
    for (LinearPart* part = parts; part != parts + count; ++part) {
        cut_part(like, *part, count * like.num_panels, num_threads);
        part->end_piece = pieces += part->groups * part->group_pieces;
    }
}

void linear_parts(Team& team, const Linear& like, const LinearPart* parts, std::int64_t count,
                  const void* x, std::int64_t ld_x, void* out, std::int64_t ld_out) {
    run_parts(team, like, parts, count, x, ld_x, piece_of(Finish::store, out, ld_out));
}

void linear_gated_parts(Team& team, const Linear& like, Activation activation,
                        const LinearPart* parts, std::int64_t count, const void* x,
                        std::int64_t ld_x, void* out, std::int64_t ld_out) {
    run_parts(team, like, parts, count, x, ld_x, piece_of(gated(activation), out, ld_out));
}

}  // namespace seesaw
