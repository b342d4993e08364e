"""The operators a decoder is made of: one file per op, each with its contract, reference and cost.

Importable without the engine. `OPS` holds what each file of this package lists as `OP` or `OPS`, so
that checks and benches walk an op as soon as its file is there.
"""

import importlib
import pkgutil

from seesaw.ops.adjust_logits import RowAdjustment, adjust_logits
from seesaw.ops.door import register
from seesaw.ops.gated_activation import gated_activation
from seesaw.ops.highest import highest
from seesaw.ops.kv_gather import kv_gather
from seesaw.ops.kv_scatter import kv_scatter
from seesaw.ops.kv_write import kv_write
from seesaw.ops.linear import linear, linear_add, linear_gated, linear_highest
from seesaw.ops.logprobs import logprobs
from seesaw.ops.moe_mlp import moe_mlp
from seesaw.ops.moe_mlp_panels import moe_mlp_panels
from seesaw.ops.moe_route import moe_route
from seesaw.ops.paged_attention import paged_attention
from seesaw.ops.paged_decode import paged_decode
from seesaw.ops.paged_prefill import paged_prefill
from seesaw.ops.ragged_prefill import ragged_prefill
from seesaw.ops.registry import Op
from seesaw.ops.rms_norm import rms_norm
from seesaw.ops.rope import rope
from seesaw.ops.rope_kv_write import rope_kv_write
from seesaw.ops.sample import sample, uniform
from seesaw.ops.vocab_embed import vocab_embed


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
"""Every op by name."""
register(OPS.values())
# An op that is not imported above, for type checkers, is here a function all the same.
globals().update({name: op.function for name, op in OPS.items()})

__all__ = [
    "OPS",
    "Op",
    "RowAdjustment",
    "adjust_logits",
    "gated_activation",
    "highest",
    "kv_gather",
    "kv_scatter",
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
    "paged_decode",
    "paged_prefill",
    "ragged_prefill",
    "rms_norm",
    "rope",
    "rope_kv_write",
    "sample",
    "uniform",
    "vocab_embed",
]
