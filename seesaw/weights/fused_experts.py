"""Checkpoints that hold the experts of a layer in two tensors, as transformers 5 has them in memory
and writes with `save_original_format=False`: seen as the matrices of which they are made.

No torch. `[experts, 2 inner, hidden]` is each expert's gate rows, then its up rows; `[experts,
hidden, inner]` is its down projection.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from seesaw.errors import ModelError
from seesaw.families.spec import ModelSpec, ParamSpec
from seesaw.layout.stored import EXPERT_DOWNS, EXPERT_UPS, mlp_of
from seesaw.weights.stored import StoredTensor


def split_experts(spec: ModelSpec, tensors: Mapping[str, StoredTensor]) -> dict[str, StoredTensor]:
    """`tensors` under the names of `spec`, each fused one in pieces; the same where none is fused.

    ModelError where a fused one is of another shape than the config says.
    """
    found = dict(tensors)
    fused: set[str] = set()
    for param in spec.params:
        if param.name in tensors or param.layer is None or not spec.layers[param.layer].sparse:
            continue
        if param.expert is not None:
            name, first_row = _part(spec, param)
            if (whole := tensors.get(name)) is not None:
                found[param.name] = _slice(spec, param, whole, first_row)
                fused.add(name)
        elif param.name.endswith(".gate.weight"):  # Mixtral's, under the name that goes with these
            name = f"{mlp_of(param)}.gate.weight"
            if (router := tensors.get(name)) is not None:
                found[param.name] = replace(router, name=param.name)
                fused.add(name)
    return {name: tensor for name, tensor in found.items() if name not in fused}


def _part(spec: ModelSpec, param: ParamSpec) -> tuple[str, int]:
    """The tensor that has a matrix of an expert, and the row of the expert where it begins."""
    projection = param.name.split(".")[-2]
    if projection in EXPERT_DOWNS:
        return f"{mlp_of(param)}.experts.down_proj", 0
    first = spec.moe_intermediate_size if projection in EXPERT_UPS else 0
    return f"{mlp_of(param)}.experts.gate_up_proj", first


def _slice(spec: ModelSpec, param: ParamSpec, whole: StoredTensor, first_row: int) -> StoredTensor:
    rows, row_size = param.shape
    rows_of_expert = rows if whole.name.endswith("down_proj") else 2 * rows
    expected = (spec.num_experts, rows_of_expert, row_size)
    if whole.shape != expected:
        raise ModelError(
            f"{whole.file}: tensor {whole.name} has shape {list(whole.shape)}, expected "
            f"{list(expected)} by the config. The config and the weights are not of the same model."
        )
    assert param.expert is not None, f"{param.name} is of no expert"
    row_bytes = whole.nbytes // (spec.num_experts * rows_of_expert)
    start = (param.expert * rows_of_expert + first_row) * row_bytes
    return replace(
        whole,
        name=param.name,
        shape=param.shape,
        offset=whole.offset + start,
        nbytes=rows * row_bytes,
    )
