"""What a rank is in one layout, and what it asks of those that join it to others."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Protocol

import torch

from seesaw.kvcache.pool import KVCache
from seesaw.layers.comm import Comm
from seesaw.layout import Range, RankRanges
from seesaw.models.cpu_decoder import CpuDecoder
from seesaw.models.decoder import Decoder


class StageLink(Protocol):
    """Hands hidden states on between pipeline stages. Ranks count within the replica."""

    def send(self, tensor: torch.Tensor, to_rank: int) -> None:
        """Begin to send; `tensor` must not be changed any more."""
        ...

    def recv(self, shape: tuple[int, ...], dtype: torch.dtype, from_rank: int) -> torch.Tensor: ...


@dataclass(frozen=True, slots=True)
class RankPhase:
    """What a rank is in one layout. `previous` and `following` are the ranks of the stages before
    and after it; `stored_heads` the KV heads that it stores for those who share them."""

    ranges: RankRanges
    params: Mapping[str, torch.Tensor]
    decoder: Decoder | CpuDecoder
    kv: KVCache
    comm: Comm
    previous: int | None
    following: int | None
    stored_heads: Range

    @property
    def is_whole(self) -> bool:
        """The only stage: it has both ends of the model."""
        return self.previous is None and self.following is None


def expert_loads(phases: Iterable[RankPhase]) -> int:
    """Times that an expert's weights were read, over all layers, as far as decoders count that."""
    decoders = {id(phase.decoder): phase.decoder for phase in phases}.values()
    return sum(int(loads_E.sum()) for one in decoders for loads_E in one.expert_loads().values())
