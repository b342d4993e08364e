"""Rotary embedding settings of a config -> RopeSpec, filled in as transformers does.

Standard library only. Two spellings are read: `rope_theta` with `rope_scaling` (before
transformers 5) and `rope_parameters` (since). The frequencies themselves are made by
`layers/rope.py`.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, cast, get_args

from seesaw.families.fields import MAX_INT, Fields
from seesaw.families.spec import RopeKind, RopeSpec

KINDS = get_args(RopeKind)
_PARAMS: dict[str, tuple[str, ...]] = {
    "default": (),
    "linear": ("factor",),
    "llama3": (
        "factor", "low_freq_factor", "high_freq_factor", "original_max_position_embeddings",
    ),
    "yarn": (
        "factor", "original_max_position_embeddings", "beta_fast", "beta_slow",
        "attention_factor", "mscale", "mscale_all_dim", "truncate",
    ),
}  # fmt: skip
# Allowed beside those of the kind: what says the kind, and what no kind of ours computes with.
_ALWAYS = ("rope_type", "type", "rope_theta", "partial_rotary_factor", "finetuned", "factor",
           "original_max_position_embeddings")  # fmt: skip


def rope_from_hf(fields: Fields, default_theta: float = 10_000.0) -> RopeSpec:
    """The rope of a model whose layers all have the same one."""
    scaling = fields.mapping("rope_scaling") or fields.mapping("rope_parameters") or {}
    if any(isinstance(value, Mapping) for value in scaling.values()):
        raise fields.unsupported("rope_parameters", "one set of values for all layers")
    return make_rope(fields, scaling, fields.number("rope_theta", default_theta))


def make_rope(fields: Fields, scaling: Mapping[str, Any], theta: float) -> RopeSpec:
    """One set of rope values over a default `theta`; `fields` are those of the whole config."""
    rope = Fields(scaling, f"{fields.place} (rope_scaling or rope_parameters)")
    spelling = "rope_type" if "rope_type" in rope else "type"
    kind = rope.text(spelling, "default", KINDS)
    known = {*_PARAMS[kind], *_ALWAYS}
    for name in scaling:
        if name not in known and name in rope:
            raise rope.unsupported(name, f"only {', '.join(sorted(known))} for {kind}")
    for place in (fields, rope):
        place.refuse("partial_rotary_factor", (1, 1.0))
    theta = rope.number("rope_theta", theta)
    if kind == "default":
        return RopeSpec(theta)
    params: dict[str, Any] = {}
    if kind in ("llama3", "yarn"):
        # A field of the whole config wins: transformers gives it priority.
        params["original_max_position_embeddings"] = fields.integer(
            "original_max_position_embeddings",
            rope.integer(
                "original_max_position_embeddings", fields.integer("max_position_embeddings")
            ),
        )
    if kind == "yarn":
        params |= _yarn(fields, rope, params["original_max_position_embeddings"])
    else:
        params["factor"] = rope.number("factor")
    if kind == "llama3":
        params["low_freq_factor"] = rope.number("low_freq_factor")
        params["high_freq_factor"] = rope.number("high_freq_factor")
        if params["high_freq_factor"] <= params["low_freq_factor"]:
            raise rope.error("high_freq_factor", "more than low_freq_factor")
    return RopeSpec(theta, cast(RopeKind, kind), tuple(sorted(params.items())))


def _yarn(fields: Fields, rope: Fields, original: int) -> dict[str, Any]:
    """YaRN's values, the attention factor computed where it is not given (arXiv 2309.00071)."""
    factor = rope.optional_number("factor") or fields.integer("max_position_embeddings") / original
    attention_factor = rope.optional_number("attention_factor")
    if attention_factor is None:
        mscale, all_dim = (rope.optional_number(n, -1.0) for n in ("mscale", "mscale_all_dim"))
        if mscale and all_dim:
            attention_factor = _mscale(factor, mscale) / _mscale(factor, all_dim)
        else:
            attention_factor = _mscale(factor, 1.0)
    return {
        "factor": factor,
        "attention_factor": attention_factor,
        "beta_fast": rope.number("beta_fast", 32.0),
        "beta_slow": rope.number("beta_slow", 1.0),
        "truncate": rope.flag("truncate", True),
    }


def _mscale(factor: float, weight: float) -> float:
    return 1.0 if factor <= 1 else 0.1 * weight * math.log(factor) + 1.0


def context_length(fields: Fields, rope: RopeSpec) -> int:
    """Tokens the model was made for: YaRN's configs often still name the length before it."""
    length = fields.integer("max_position_embeddings")
    if rope.kind != "yarn":
        return length
    params = dict(rope.params)
    scaled = params["factor"] * params["original_max_position_embeddings"]
    return min(MAX_INT, max(length, int(scaled)))
