"""How weights lie as bytes, in the host image and on a device: one object, so that another format
(panels for a CPU's registers) changes neither plan nor arena.

Standard library only. Sizes and offsets in bytes.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Literal, NamedTuple, Protocol

from seesaw.layout.ranges import RankRanges

Cut = Literal["heads", "query", "gate_up", "mlp", "experts", "vocab", "none"]
"""What tensor parallelism cuts of a stored parameter: groups of a KV head (fused QKV), query heads
(o_proj), columns of the MLP (gate and up together; down_proj), whole experts, rows of the
vocabulary.
"""

Order = Literal["rows", "columns", "panels"]
"""How the numbers of a matrix `[out, in]` follow each other: as they stand, as those of its
transpose, or in panels (`panels.py`). Of experts: each one's."""

FormatName = Literal["plain", "panels"]


class StoredParam(NamedTuple):
    """One parameter as the decoder takes it, and the shape it is stored in."""

    name: str
    layer: int | None
    shape: tuple[int, ...]
    cut: Cut
    order: Order = "rows"


class ByteRun(NamedTuple):
    """`size` bytes from `start` on, within one stored parameter."""

    start: int
    size: int


class Window(NamedTuple):
    """A rank's tensor as it lies in a stored parameter: its first byte there, and its strides in
    elements."""

    start: int
    strides: tuple[int, ...]


class WeightFormat(Protocol):
    """A format in which every slice of every layout is runs of bytes."""

    @property
    def name(self) -> FormatName: ...

    @property
    def params(self) -> Sequence[StoredParam]:
        """In the order of the image."""
        ...

    @property
    def head_step(self) -> int:
        """Rows from one head of the fused QKV to the next: head_dim, and zero rows where there are
        more."""
        ...

    @property
    def gate_tile(self) -> int | None:
        """Gate and up take turns in tiles of so many rows; None: all of gate comes first."""
        ...

    @property
    def image_offsets(self) -> Mapping[str, int]:
        """Where each parameter begins in the image."""
        ...

    @property
    def image_bytes(self) -> int: ...

    @property
    def param_bytes(self) -> int:
        """Of all parameters, one after another without a gap."""
        ...

    def nbytes(self, param: StoredParam) -> int: ...

    def holds(self, param: StoredParam, ranges: RankRanges) -> bool:
        """False where a rank with these ranges has nothing of `param` (another stage's)."""
        ...

    def runs(self, param: StoredParam, ranges: RankRanges) -> Sequence[ByteRun]:
        """What a rank holds of `param`, in the order in which it lies on the rank, which is that of
        the parameter too. The same for all parameters of one shape, cut and order that it holds."""
        ...

    def local_shape(self, param: StoredParam, ranges: RankRanges) -> tuple[int, ...]:
        """Shape of the rank's tensor, which has the bytes of `runs` one after another."""
        ...

    def window(self, param: StoredParam, ranges: RankRanges) -> Window | None:
        """Where to find that tensor in the parameter as it lies, without a copy; None where its
        runs are not evenly spaced, or it holds nothing."""
        ...
