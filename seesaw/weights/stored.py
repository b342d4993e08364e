"""Where a tensor lies on disk and how: what safetensors and GGUF have in common.

No torch. The rest of the loader does not know which kind of file a tensor comes from.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

from seesaw.errors import ModelError
from seesaw.families.spec import ModelSpec
from seesaw.log import get_logger

PLAIN = ("F32", "F16", "BF16")
"""Encodings that are plain numbers."""

logger = get_logger(__name__)

# Tensors that some checkpoints carry and no decoder of ours needs.
_HARMLESS_ENDINGS = (".rotary_emb.inv_freq", ".masked_bias", ".rotary_emb.cos_cached",
                     ".rotary_emb.sin_cached")  # fmt: skip


@dataclass(frozen=True, slots=True)
class StoredTensor:
    """A tensor under its HF name, in rows that follow each other on disk.

    `encoding` is F32, F16, BF16 or a quantisation of GGUF (Q4_1, ..). `interleaved_head_dim`: the
    rows of each head of this size come as pairs (0, D/2, 1, D/2 + 1, ..), as GGUF has q and k of
    Llama, instead of in halves. `plus_one`: 1 was added to the values (norms of Gemma in GGUF).
    """

    name: str
    shape: tuple[int, ...]
    encoding: str
    file: Path
    offset: int
    nbytes: int
    interleaved_head_dim: int | None = None
    plus_one: bool = False

    @property
    def num_rows(self) -> int:
        return self.shape[0] if self.shape else 1

    @property
    def row_shape(self) -> tuple[int, ...]:
        return self.shape[1:]

    @property
    def row_bytes(self) -> int:
        return self.nbytes // max(1, self.num_rows)

    @property
    def row_elements(self) -> int:
        return math.prod(self.row_shape)


def by_name(tensors: Iterable[StoredTensor]) -> dict[str, StoredTensor]:
    """Tensors by name. ModelError where one is stored twice."""
    found: dict[str, StoredTensor] = {}
    for tensor in tensors:
        if (other := found.get(tensor.name)) is not None:
            raise ModelError(
                f"tensor {tensor.name} is stored twice, in {other.file.name} and "
                f"{tensor.file.name}: expected once. Download the checkpoint again, into an empty "
                "directory."
            )
        found[tensor.name] = tensor
    return found


def check_complete(
    spec: ModelSpec, tensors: Mapping[str, StoredTensor], place: str, ignored: tuple[str, ...] = ()
) -> None:
    """Raise ModelError unless each tensor of `spec` is there with its shape; warn of others.

    `ignored`: beginnings of names that belong to a part of the model that is left out on purpose.
    """
    missing = [p.name for p in spec.params if p.name not in tensors]
    if missing:
        raise ModelError(
            f"{place}: {_some(missing)} missing: expected {len(spec.params)} tensors for "
            f"{spec.architecture} with {spec.num_hidden_layers} layers. Download the checkpoint "
            "again, or correct the config if it was edited."
        )
    for param in spec.params:
        stored = tensors[param.name]
        if stored.shape != param.shape:
            raise ModelError(
                f"{place}: tensor {param.name} has shape {list(stored.shape)}, expected "
                f"{list(param.shape)} by the config. The config and the weights are not of the "
                "same model."
            )
    wanted = {param.name for param in spec.params}
    if spec.tie_word_embeddings:
        wanted.add("lm_head.weight")  # a copy of the embedding
    extra = [
        name
        for name in tensors
        if name not in wanted and not name.endswith(_HARMLESS_ENDINGS)
        and not name.startswith(ignored)
    ]  # fmt: skip
    if extra:
        logger.warning("%s: not used by %s: %s", place, spec.architecture, _some(extra))


def _some(names: list[str]) -> str:
    shown = ", ".join(names[:3])
    return f"{len(names)} tensors ({shown}, ..)" if len(names) > 3 else f"tensor {shown}"
