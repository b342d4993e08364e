// How the scratch of attention is shared out to threads, and what lies where in a thread's part.

#pragma once

#include <algorithm>
#include <cstddef>

#include "kernels/attention.h"
#include "kv_view.h"
#include "scratch.h"

namespace seesaw {

// Query rows of a task that reads panels, and of one that has to rearrange tiles first: the longer,
// the less often each tile is.
inline constexpr int kTaskRows = 48;
inline constexpr int kGatherTaskRows = 192;
// Room for the results of split tasks, per thread, in tasks of kTaskRows.
inline constexpr int kSlotTasks = 8;

// What a pool and a group size come to.
struct AttentionGeometry {
    AttentionGeometry(const KvView& view, int group)
        : element(element_bytes(view.dtype)),
          columns(std::max(view.head_dim, kPanelColumns)),
          gathers(!view.panels || view.head_dim < kPanelColumns),
          positions(std::max(1, (gathers ? kGatherTaskRows : kTaskRows) / group)),
          rows(positions * group),
          k_piece_bytes(static_cast<std::size_t>(view.head_dim) * kPieceTokens * element),
          v_piece_bytes(static_cast<std::size_t>(columns) * kPieceTokens * element),
          q_bytes(aligned(static_cast<std::size_t>(rows) * view.head_dim * element)),
          result_bytes(bytes_of_result(rows)),
          slots_bytes(kSlotTasks * bytes_of_result(std::max(kTaskRows, group))),
          pieces_bytes(gathers ? kChunkPieces * (k_piece_bytes + v_piece_bytes) : 0) {}

    std::size_t bytes_of_result(int num_rows) const {
        return aligned(2 * num_rows * sizeof(float)) +
               static_cast<std::size_t>(num_rows) * columns * sizeof(float);
    }
    std::size_t bytes() const { return q_bytes + 2 * result_bytes + slots_bytes + pieces_bytes; }

    const std::size_t element;
    const int columns;
    const bool gathers;
    const int positions;  // of a task, at most
    const int rows;
    const std::size_t k_piece_bytes;
    const std::size_t v_piece_bytes;
    const std::size_t q_bytes;
    const std::size_t result_bytes;
    const std::size_t slots_bytes;
    const std::size_t pieces_bytes;
};

// A thread's part of it: queries, two results, slots, gathered pieces.
struct AttentionScratch {
    AttentionScratch(void* scratch, int thread, const AttentionGeometry& geometry)
        : q(static_cast<char*>(scratch) + thread * geometry.bytes()),
          first(q + geometry.q_bytes),
          second(first + geometry.result_bytes),
          slots(second + geometry.result_bytes),
          pieces(slots + geometry.slots_bytes) {}

    char* q;
    char* first;
    char* second;
    char* slots;
    char* pieces;
};

inline AttentionResult result_at(char* memory, int rows) {
    float* highest = reinterpret_cast<float*>(memory);
    char* values = memory + aligned(2 * rows * sizeof(float));
    return {highest, highest + rows, reinterpret_cast<float*>(values)};
}

}  // namespace seesaw
