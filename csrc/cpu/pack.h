// Between plain rows and panels (numbers.h): how weights come from a checkpoint into the form in which
// linear layers read them, and back.
//
// A row of a matrix [columns, K] is a column of its panels. Two bf16 of neighbouring k are one word
// of 32 bits, as one float is, so both element types are the same transpose of words.

#pragma once

#include <cstdint>

#include "thread_pool.h"

namespace seesaw {

// Row i of `num_rows` rows, each `words` words long, is column first + i / group * step + i % group
// of the panels. Strides in bytes.
struct PanelColumns {
    std::int64_t num_rows = 0;
    std::int64_t words = 0;         // K for float, K / 2 for bf16
    std::int64_t row_stride = 0;
    std::int64_t panel_stride = 0;
    std::int64_t first = 0;
    std::int64_t group = 1;
    std::int64_t step = 1;
};

void pack_panels(ThreadPool& pool, const PanelColumns& columns, const void* rows, void* panels);
void unpack_panels(ThreadPool& pool, const PanelColumns& columns, const void* panels, void* rows);

}  // namespace seesaw
