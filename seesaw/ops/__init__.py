"""The operators a decoder is made of: one file per op, each with its contract, reference and cost.

Importable without the engine. `OPS` lists them all, so that checks and benches can walk them.
"""

from seesaw.ops.adjust_logits import OP as _ADJUST_LOGITS
from seesaw.ops.adjust_logits import RowAdjustment, adjust_logits
from seesaw.ops.gated_activation import OP as _GATED_ACTIVATION
from seesaw.ops.gated_activation import gated_activation
from seesaw.ops.kv_write import OP as _KV_WRITE
from seesaw.ops.kv_write import kv_write
from seesaw.ops.linear import OPS as _LINEAR
from seesaw.ops.linear import linear, linear_add, linear_gated, linear_highest
from seesaw.ops.logprobs import OP as _LOGPROBS
from seesaw.ops.logprobs import logprobs
from seesaw.ops.paged_attention import OP as _PAGED_ATTENTION
from seesaw.ops.paged_attention import paged_attention
from seesaw.ops.registry import Op
from seesaw.ops.rms_norm import OP as _RMS_NORM
from seesaw.ops.rms_norm import rms_norm
from seesaw.ops.rope import OP as _ROPE
from seesaw.ops.rope import rope
from seesaw.ops.sample import OP as _SAMPLE
from seesaw.ops.sample import sample, uniform

OPS: dict[str, Op] = {
    op.name: op
    for op in (
        _RMS_NORM,
        _ROPE,
        _GATED_ACTIVATION,
        *_LINEAR,
        _KV_WRITE,
        _PAGED_ATTENTION,
        _ADJUST_LOGITS,
        _SAMPLE,
        _LOGPROBS,
    )
}
"""Every op by name."""

__all__ = [
    "OPS",
    "Op",
    "RowAdjustment",
    "adjust_logits",
    "gated_activation",
    "kv_write",
    "linear",
    "linear_add",
    "linear_gated",
    "linear_highest",
    "logprobs",
    "paged_attention",
    "rms_norm",
    "rope",
    "sample",
    "uniform",
]
