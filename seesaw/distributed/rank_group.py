"""The ranks of one replica, joined: sums within the stages of every layout, hidden states from
stage to stage, pieces of weights between peers.

One per process. Whatever it is built on, ranks make the same calls; which bytes they are about is
nothing that is known here.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
import torch.distributed as dist

from seesaw.distributed import shm, tcp
from seesaw.distributed.collectives import Kind
from seesaw.distributed.torch_groups import TorchTransport
from seesaw.distributed.transport import PeerExchange, Transport
from seesaw.layers.comm import ALONE, Comm
from seesaw.layout.parallel import Coordinates, ParallelLayout

TIMEOUT_S = 600.0


class RankGroup:
    """`connect` makes one. All ranks make the calls that say "together", in the same order.

    A peer that has died shows as a RuntimeError; on NCCL the call hangs until the timeout, so
    whoever started the ranks must watch them.
    """

    def __init__(
        self, rank: int, num_ranks: int, device: torch.device, transport: Transport
    ) -> None:
        self.rank, self.num_ranks = rank, num_ranks
        self._device = device
        self._transport = transport
        self._comms: dict[ParallelLayout, Comm] = {}

    @classmethod
    def connect(
        cls,
        rank: int,
        num_ranks: int,
        device: torch.device,
        kind: Kind,
        store_path: str | Path,
        *,
        shared_fd: int | None = None,
        slot_bytes: int = 0,
        timeout_s: float = TIMEOUT_S,
    ) -> RankGroup:
        """Join the ranks 0 .. num_ranks, together.

        `store_path`: a file that does not exist yet in a directory that does, the same for all
        ranks, another one for each time that they connect; of no use to `shm`, which needs a file
        of `shm.new_shared_file` instead, made with the same `slot_bytes`, and closes it.
        `timeout_s` bounds this and each later operation. Raises ConfigError where this torch or
        this host has no such thing.
        """
        transport: Transport
        if kind == "shm":
            assert shared_fd is not None, "shm without a file"
            transport = shm.join(shared_fd, rank, num_ranks, slot_bytes, timeout_s)
        else:
            store = dist.FileStore(str(store_path), num_ranks)  # type: ignore[attr-defined]
            if kind == "tcp":
                transport = tcp.join(rank, num_ranks, store, timeout_s)
            else:
                transport = TorchTransport(rank, num_ranks, device, store, timeout_s)
        return cls(rank, num_ranks, device, transport)

    def tp_comm(self, layout: ParallelLayout) -> Comm:
        """This rank's stage in `layout` (dp 1, all ranks of the group). Together at the first call
        for a layout; kept from then on."""
        if layout not in self._comms:
            assert (layout.dp, layout.num_ranks) == (1, self.num_ranks), f"{layout}: other ranks"
            stages = [
                [layout.rank_of(Coordinates(0, tp, stage)) for tp in range(layout.tp)]
                for stage in range(layout.pp)
            ]
            self._comms[layout] = ALONE if layout.tp == 1 else self._transport.comm(stages)
        return self._comms[layout]

    def peer_exchange(self) -> PeerExchange:
        """Another one each time, MOST_EXCHANGES at most; for one thread at a time, which need not
        be that of the other calls. Together."""
        return self._transport.peer_exchange()

    def send(self, x: torch.Tensor, to_rank: int) -> None:
        """Hand `x` over to another rank, which calls `recv`; returns before it has arrived, unless
        MAX_HANDOVERS are under way already. `x` must not be changed. Empty tensors are not sent.
        """
        assert to_rank != self.rank, "a rank does not send to itself"
        if x.numel():
            self._transport.send(x.contiguous(), to_rank)

    def recv(self, shape: Sequence[int], dtype: torch.dtype, from_rank: int) -> torch.Tensor:
        """The next tensor that `from_rank` sends to this rank; waits for it."""
        assert from_rank != self.rank, "a rank does not receive from itself"
        x = torch.empty(tuple(shape), dtype=dtype, device=self._device)
        if x.numel():
            self._transport.receive(x, from_rank)
        return x

    def close(self) -> None:
        """Leave, together; what was sent still arrives. The process may connect again, over another
        file."""
        self._comms.clear()
        self._transport.close()
