"""The shapes at which ops are timed, with the sizes of one model in place of theirs."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import torch

from seesaw.errors import ConfigError, nearest
from seesaw.families.spec import ModelSpec
from seesaw.ops import OPS
from seesaw.ops.registry import Case
from seesaw.tune.units import Work


def works(ops: Sequence[str], spec: ModelSpec | None) -> list[Work]:
    """What `ops` (all, if none is named) are timed at on a GPU; with `spec` at its sizes.

    Raises ConfigError for an op that does not exist.
    """
    for name in ops:
        if name not in OPS:
            raise ConfigError(
                f"--op {name}: no such op.{nearest(name, OPS)} Known: {', '.join(sorted(OPS))}."
            )
    return list(_works(ops or sorted(OPS), spec))


def _works(ops: Sequence[str], spec: ModelSpec | None) -> Iterator[Work]:
    seen = set()
    for name in ops:
        for bench in OPS[name].bench.values():
            if "cuda" not in bench.devices:
                continue
            case, dtype = dict(bench.case), str(bench.dtype).removeprefix("torch.")
            if spec is not None:
                if bench.dtype in (torch.bfloat16, torch.float16):
                    dtype = spec.torch_dtype
                fitted = fit(case, spec)
                if fitted is None:
                    continue
                case = fitted
            known = (name, dtype, repr(sorted(case.items())))
            if known not in seen:
                seen.add(known)
                yield Work(name, case, dtype, bench.host)


def fit(case: Case, spec: ModelSpec) -> dict[str, Any] | None:
    """`case` with the sizes that a model has; None where it has no such thing, as experts."""
    inner = spec.moe_intermediate_size if "experts" in case else spec.intermediate_size
    sizes = {
        "size": spec.hidden_size,
        "hidden": spec.hidden_size,
        "intermediate": inner,
        "inner": inner,
        "head_dim": spec.head_dim,
        "kv_heads": spec.num_key_value_heads,
        "group": spec.num_attention_heads // spec.num_key_value_heads,
        "vocab": spec.vocab_size,
        "experts": spec.num_experts,
        "top_k": spec.num_experts_per_tok,
    }
    if "experts" not in case:
        del sizes["top_k"]  # of a draw
    elif not spec.num_experts:
        return None
    return {name: sizes.get(name, value) for name, value in case.items()}
