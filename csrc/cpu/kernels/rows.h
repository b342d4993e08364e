// Kernels of what a layer does token by token: rows or tokens begin .. end (see ../rows.h).

#pragma once

#include "../isa.h"
#include "../rows.h"

namespace seesaw {

struct GatedRows {
    DType dtype;
    Activation activation;
    const void* x;
    std::int64_t ld_x;
    std::int64_t size;
    void* out;
    std::int64_t ld_out;
};

struct EmbedRows {
    DType dtype;
    const void* const* panels;  // or null: plain rows at `table`
    const void* table;
    std::int64_t num_rows;
    std::int64_t size;
    const std::int64_t* ids;
    std::int64_t first;
    float scale;
    void* out;
    std::int64_t ld_out;
};

struct RowsKernels {
    void (*rms_norm)(const RmsNorm&, std::int64_t begin, std::int64_t end);
    void (*rope)(const Rope&, std::int64_t begin, std::int64_t end);
    void (*rope_kv)(const RopeKv&, const KvView&, std::int64_t begin, std::int64_t end);
    void (*kv_write)(const KvWrite&, const KvView&, std::int64_t begin, std::int64_t end);
    void (*gated)(const GatedRows&, std::int64_t begin, std::int64_t end);
    void (*weighted_sum)(const WeightedSum&, std::int64_t begin, std::int64_t end);
    void (*embed)(const EmbedRows&, std::int64_t begin, std::int64_t end);
};

SEESAW_KERNELS(RowsKernels, rows_kernels)

}  // namespace seesaw
