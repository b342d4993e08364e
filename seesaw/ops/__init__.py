"""The operators a decoder is made of: one file per op, each with its contract, reference and cost.

Importable without the engine. `OPS` holds what each file of this package lists as `OP` or `OPS`, so
that checks and benches walk an op as soon as its file is there.
"""

import importlib
import pkgutil

from seesaw.ops.adjust_logits import RowAdjustment, adjust_logits
from seesaw.ops.door import register
from seesaw.ops.gated_activation import gated_activation
from seesaw.ops.kv_write import kv_write
from seesaw.ops.linear import linear, linear_add, linear_gated, linear_highest
from seesaw.ops.logprobs import logprobs
from seesaw.ops.moe_mlp import moe_mlp
from seesaw.ops.moe_mlp_panels import moe_mlp_panels
from seesaw.ops.moe_route import moe_route
from seesaw.ops.paged_attention import paged_attention
from seesaw.ops.registry import Op
from seesaw.ops.rms_norm import rms_norm
from seesaw.ops.rope import rope
from seesaw.ops.rope_kv_write import rope_kv_write
from seesaw.ops.sample import sample, uniform


def _find() -> dict[str, Op]:
    found: dict[str, Op] = {}
    for info in pkgutil.iter_modules(__path__):
        module = importlib.import_module(f"{__name__}.{info.name}")
        own = [module.OP] if hasattr(module, "OP") else getattr(module, "OPS", ())
        for op in own:
            assert op.name not in found, f"two ops are called {op.name}"
            found[op.name] = op
    return found


OPS = _find()
register(OPS.values())
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
    "moe_mlp",
    "moe_mlp_panels",
    "moe_route",
    "paged_attention",
    "rms_norm",
    "rope",
    "rope_kv_write",
    "sample",
    "uniform",
]
