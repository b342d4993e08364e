// Linear layers over panels: y = x W^T + bias for any number of rows, with what follows fused.
//
// W [columns, depth] lies in panels of 32 columns (numbers.h), each wherever its pointer says, so that
// a slice of a larger matrix runs as it lies. Columns past the real ones are zero in the last panel
// and are not written. The result of a row does not depend on the rows beside it.
//
// Called by all threads of a region; done, and seen by all, on return. `x` and `out` do not overlap.
// Row strides (ld_..) in elements.

#pragma once

#include <cstdint>

#include "numbers.h"
#include "thread_pool.h"

namespace seesaw {

struct Linear {
    DType dtype = DType::f32;       // of weights, bias, x and out
    const void* const* panels = nullptr;
    std::int64_t num_panels = 0;
    std::int64_t columns = 0;       // real ones: 32 * num_panels or a little less
    std::int64_t depth = 0;         // K; even for bf16
    const void* bias = nullptr;     // 32 * num_panels elements, in the order of the panels; may be null
};

enum class Activation { silu, gelu_tanh };

// out[rows, columns] = x W^T + bias.
void linear(Team& team, const Linear& weight, const void* x, std::int64_t ld_x, std::int64_t rows,
            void* out, std::int64_t ld_out);
// out += x W^T + bias; summed in float, rounded once.
void linear_add(Team& team, const Linear& weight, const void* x, std::int64_t ld_x,
                std::int64_t rows, void* out, std::int64_t ld_out);
// Panels hold 16 columns of gate and the same 16 of up: out[rows, columns / 2] = act(gate) * up.
void linear_gated(Team& team, const Linear& gate_up, Activation activation, const void* x,
                  std::int64_t ld_x, std::int64_t rows, void* out, std::int64_t ld_out);
// The same as `linear` with the sums as they are, in float: logits.
void linear_f32(Team& team, const Linear& weight, const void* x, std::int64_t ld_x,
                std::int64_t rows, float* out, std::int64_t ld_out);
// For each row the highest of those sums and its column, the lowest of equals. `scratch`: from
// highest_scratch_bytes(), shared by the team. NaN is never the highest unless all are: then the
// column is 0, as it is where there are none.
std::size_t highest_scratch_bytes(std::int64_t rows, int num_threads);
void linear_highest(Team& team, const Linear& weight, const void* x, std::int64_t ld_x,
                    std::int64_t rows, float* value, std::int64_t* column, void* scratch);

// One of several matrices, and the rows of x that it is for: `rows` of them from `row` on.
struct LinearPart {
    const void* const* panels = nullptr;
    std::int64_t row = 0;
    std::int64_t rows = 0;
    // How the part is cut into pieces of work; set by cut_parts().
    std::int64_t row_blocks = 0;
    std::int64_t groups = 0;       // of row blocks
    std::int64_t grain = 0;        // panels of a piece
    std::int64_t group_pieces = 0;
    std::int64_t end_piece = 0;    // counted through the parts before it too
};
// Cuts parts of matrices like `like` for so many threads. By one thread, before linear_parts().
void cut_parts(const Linear& like, LinearPart* parts, std::int64_t count, int num_threads);
// `linear` and `linear_gated` of several matrices that differ from `like` in their panels alone, as
// one loop: threads go from one matrix to the next without waiting for each other.
void linear_parts(Team& team, const Linear& like, const LinearPart* parts, std::int64_t count,
                  const void* x, std::int64_t ld_x, void* out, std::int64_t ld_out);
void linear_gated_parts(Team& team, const Linear& like, Activation activation,
                        const LinearPart* parts, std::int64_t count, const void* x,
                        std::int64_t ld_x, void* out, std::int64_t ld_out);

}  // namespace seesaw
