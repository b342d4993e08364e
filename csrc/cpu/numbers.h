// Elements of weights, activations and KV, and the panels that weights and keys lie in.

#pragma once

#include <cstddef>
#include <cstdint>

namespace seesaw {

// bfloat16 as it lies in memory: the upper half of a float.
struct bf16 {
    std::uint16_t bits;
};

enum class DType { bf16, f32 };

inline std::size_t element_bytes(DType dtype) { return dtype == DType::bf16 ? 2 : 4; }

// Columns of a panel. A panel of a matrix [columns, K] is, for float, K rows of 32 columns; for bf16
// K / 2 rows of 32 columns of two neighbouring k each: 128 bytes a row in both cases.
inline constexpr int kPanelColumns = 32;

// k per row of a panel: what one multiply-add of a kernel takes in.
template <class T>
inline constexpr int kDepth = sizeof(T) == 2 ? 2 : 1;

}  // namespace seesaw
