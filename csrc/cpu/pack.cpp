#include "pack.h"

#include <algorithm>

#include "kernels/pack.h"
#include "numbers.h"

namespace seesaw {

namespace {

constexpr std::int64_t kWordBytes = 4;
constexpr std::int64_t kRowBytes = kPanelColumns * kWordBytes;

// Calls piece(row, count, offset) for rows that are neighbours in one panel; `offset` is where the
// first of them has its first word.
template <class Piece>
void each_piece(const PanelColumns& columns, std::int64_t begin, std::int64_t end, Piece&& piece) {
    for (std::int64_t row = begin; row < end;) {
        const std::int64_t in_group = row % columns.group;
        const std::int64_t column = columns.first + row / columns.group * columns.step + in_group;
        const std::int64_t in_panel = column % kPanelColumns;
        const std::int64_t count =
            std::min({end - row, columns.group - in_group, kPanelColumns - in_panel});
        piece(row, count,
              column / kPanelColumns * columns.panel_stride + in_panel * kWordBytes);
        row += count;
    }
}

}  // namespace

void pack_panels(ThreadPool& pool, const PanelColumns& columns, const void* rows, void* panels) {
    const auto* from = static_cast<const unsigned char*>(rows);
    auto* to = static_cast<unsigned char*>(panels);
    pool.run([&](Team& team) {
        team.share(columns.num_rows, kPanelColumns, [&](std::int64_t begin, std::int64_t end) {
            each_piece(columns, begin, end,
                       [&](std::int64_t row, std::int64_t count, std::int64_t offset) {
                           pack_kernels().transpose(from + row * columns.row_stride,
                                                    columns.row_stride, to + offset, kRowBytes,
                                                    count, columns.words);
                       });
        });
    });
}

void unpack_panels(ThreadPool& pool, const PanelColumns& columns, const void* panels, void* rows) {
    const auto* from = static_cast<const unsigned char*>(panels);
    auto* to = static_cast<unsigned char*>(rows);
    pool.run([&](Team& team) {
        team.share(columns.num_rows, kPanelColumns, [&](std::int64_t begin, std::int64_t end) {
            each_piece(columns, begin, end,
                       [&](std::int64_t row, std::int64_t count, std::int64_t offset) {
                           pack_kernels().transpose(from + offset, kRowBytes,
                                                    to + row * columns.row_stride,
                                                    columns.row_stride, columns.words, count);
                       });
        });
    });
}

}  // namespace seesaw
