// Kernels of linear layers: what one thread does of one (see ../linear.h).

#pragma once

#include <cstddef>
#include <cstdint>

#include "../isa.h"
#include "../numbers.h"

namespace seesaw {

// What becomes of the sums x W^T + bias.
enum class Finish {
    store,       // out = sums
    add,         // out += sums
    gated_silu,  // out = silu(gate) * up
    gated_gelu,  // the same with the tanh form of GELU
    store_f32,   // out (float) = sums
    highest,     // per row, the highest sum so far and its column
};

// Some panels times some blocks of rows. Pointers are to the first panel, first row, first result.
struct LinearPiece {
    const void* const* panels;
    std::int64_t panel_begin, panel_end;
    const void* after;         // the panel that this thread probably reads next; may be null
    std::int64_t columns;      // real ones of the matrix; of a gated one, of gate and up together
    std::int64_t depth;
    const void* bias;          // may be null

    const void* x;
    std::int64_t ld_x;
    std::int64_t rows;
    std::int64_t row_blocks;   // that all rows are cut into, nearly equal: block_rows at most
    std::int64_t block_begin, block_end;

    Finish finish;
    void* out;
    std::int64_t ld_out;
    // For Finish::highest, one a row; the column is -1 where there was none but NaN. Panels come in
    // ascending order to one who keeps the same of these.
    float* best;
    std::int32_t* best_column;
};

struct LinearKernels {
    int bf16_block_rows, f32_block_rows;
    void (*bf16_piece)(const LinearPiece&);
    void (*f32_piece)(const LinearPiece&);
};

SEESAW_KERNELS(LinearKernels, linear_kernels)

}  // namespace seesaw
