// What gates are put through, by linear layers that end in one and by the op alone.

#pragma once

#include "simd.h"

namespace seesaw::SEESAW_ISA {

// x / (1 + e^-x), or GELU in its tanh form, which is x / (1 + e^-2u) with u the argument of tanh.
SEESAW_INLINE vf gate(vf x, bool gelu) {
    const vf low = splat(-1e4f);  // both are 0 from far above here; e^88 is not infinity
    x = x < low ? low : x;
    const vf t = gelu ? x * (1.5957691216057308f + 0.07135481627f * x * x) : x;
    return x / (1.0f + exp(-t));
}

}  // namespace seesaw::SEESAW_ISA
