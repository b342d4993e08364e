"""How weights lie as bytes, in the host image and on a device: one object, so that another format
(panels for a CPU's registers) changes neither plan nor arena.

Standard library only. Sizes and offsets in bytes.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Literal, NamedTuple, Protocol

from seesaw.layout.ranges import RankRanges

Cut = Literal["heads", "query", "gate_up", "mlp", "experts", "vocab", "none"]
"""What tensor parallelism cuts along dim 0 of a stored parameter: groups of a KV head (fused QKV),
query heads (o_proj), columns of the MLP (gate and up together; down_proj), whole experts, rows of
the vocabulary.
"""


class StoredParam(NamedTuple):
    """One parameter as the decoder takes it. `shape` is the stored one: what is cut is dim 0, so
    row-parallel matrices (o_proj, down_proj) are stored `[in, out]`."""

    name: str
    layer: int | None
    shape: tuple[int, ...]
    cut: Cut


class ByteRun(NamedTuple):
    """`size` bytes from `start` on, within one stored parameter."""

    start: int
    size: int


class WeightFormat(Protocol):
    """A format in which every slice of every layout is a few runs of bytes."""

    @property
    def params(self) -> Sequence[StoredParam]:
        """In the order of the image."""
        ...

    @property
    def image_offsets(self) -> Mapping[str, int]:
        """Where each parameter begins in the image."""
        ...

    @property
    def image_bytes(self) -> int: ...

    def nbytes(self, param: StoredParam) -> int: ...

    def holds(self, param: StoredParam, ranges: RankRanges) -> bool:
        """False where a rank with these ranges has nothing of `param` (another stage's)."""
        ...

    def runs(self, param: StoredParam, ranges: RankRanges) -> tuple[ByteRun, ...]:
        """What a rank holds of `param`, in the order in which it lies on the rank. The same for all
        parameters of one shape and cut that it holds."""
        ...

    def local_shape(self, param: StoredParam, ranges: RankRanges) -> tuple[int, ...]:
        """Shape of the rank's tensor, which has the bytes of `runs` one after another."""
        ...
