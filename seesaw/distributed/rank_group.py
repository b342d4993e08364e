"""The ranks of one replica, joined: process groups for every layout, and hidden states from stage
to stage.

One per process, since torch.distributed is. Ranks find each other through a file, so no port is
asked for; gloo listens on the loopback interface alone, as all ranks are on one host.
"""

from __future__ import annotations

import contextlib
import os
import socket
from collections import deque
from collections.abc import Sequence
from datetime import timedelta
from pathlib import Path

import torch
import torch.distributed as dist

from seesaw.distributed.exchange import PeerExchange
from seesaw.distributed.tensor_parallel import TensorParallelGroup
from seesaw.errors import ConfigError
from seesaw.layers.comm import ALONE, Comm
from seesaw.layout.parallel import Coordinates, ParallelLayout
from seesaw.plan.workspace import MAX_HANDOVERS

TIMEOUT_S = 600.0
_LOOPBACK = ("lo", "lo0")


class RankGroup:
    """`connect` makes one. All ranks make the calls that say "together", in the same order.

    A peer that has died shows as a RuntimeError of torch.distributed on gloo; on NCCL the call
    hangs until the timeout, so whoever started the ranks must watch them.
    """

    def __init__(self, rank: int, num_ranks: int, device: torch.device, timeout: timedelta) -> None:
        self.rank, self.num_ranks = rank, num_ranks
        self._device = device
        self._timeout = timeout
        self._comms: dict[ParallelLayout, Comm] = {}
        self._under_way: deque[tuple[dist.Work, torch.Tensor]] = deque()

    @classmethod
    def connect(
        cls,
        rank: int,
        num_ranks: int,
        device: torch.device,
        store_path: str | Path,
        timeout_s: float = TIMEOUT_S,
    ) -> RankGroup:
        """Join the ranks 0 .. num_ranks, together; NCCL where `device` is a GPU, else gloo.

        `store_path`: a file that does not exist yet in a directory that does, the same for all
        ranks, another one for each time that they connect. `timeout_s` bounds this and each later
        operation. Raises ConfigError where torch lacks the backend.
        """
        backend = _backend(device)
        if device.type == "cuda":
            torch.cuda.set_device(device)
        timeout = timedelta(seconds=timeout_s)
        store = dist.FileStore(str(store_path), num_ranks)  # type: ignore[attr-defined]
        # No device_id: pairs of stages then have a communicator each, and do not wait in one line.
        dist.init_process_group(
            backend, store=store, rank=rank, world_size=num_ranks, timeout=timeout
        )
        return cls(rank, num_ranks, device, timeout)

    def tp_comm(self, layout: ParallelLayout) -> Comm:
        """This rank's stage in `layout` (dp 1, all ranks of the group). Together at the first call
        for a layout; kept from then on."""
        if layout not in self._comms:
            assert (layout.dp, layout.num_ranks) == (1, self.num_ranks), f"{layout}: other ranks"
            self._comms[layout] = ALONE if layout.tp == 1 else self._stage_of(layout)
        return self._comms[layout]

    def peer_exchange(self) -> PeerExchange:
        """An exchange of pieces over a group of its own. Together."""
        group = self._new_group(range(self.num_ranks))
        # NCCL joins ranks at the first use of a group, which an exchange may be for some of them
        # only: the others would be waited for without end.
        dist.all_reduce(torch.zeros(1, device=self._device), group=group)
        return PeerExchange(group)

    def send(self, x: torch.Tensor, to_rank: int) -> None:
        """Hand `x` over to another rank, which calls `recv`; returns before it has arrived, unless
        MAX_HANDOVERS are under way already. `x` must not be changed. Empty tensors are not sent.
        """
        assert to_rank != self.rank, "a rank does not send to itself"
        if x.numel() == 0:
            return
        if len(self._under_way) == MAX_HANDOVERS:
            self._finish_oldest_send()
        x = x.contiguous()
        work = dist.isend(x, to_rank)
        assert work is not None, f"rank {self.rank} is not in its own group"
        self._under_way.append((work, x))

    def recv(self, shape: Sequence[int], dtype: torch.dtype, from_rank: int) -> torch.Tensor:
        """The next tensor that `from_rank` sends to this rank; waits for it."""
        assert from_rank != self.rank, "a rank does not receive from itself"
        x = torch.empty(tuple(shape), dtype=dtype, device=self._device)
        if x.numel():
            dist.recv(x, from_rank)
        return x

    def close(self) -> None:
        """Leave all groups, together, when what was sent has arrived. The process may connect
        again, over another file."""
        while self._under_way:
            self._finish_oldest_send()
        self._comms.clear()
        if self._device.type == "cpu":
            # A rank that leaves while another is still joining would fail it, on gloo. One that
            # has died is not waited for.
            with contextlib.suppress(RuntimeError):
                dist.barrier()
        dist.destroy_process_group()

    def _finish_oldest_send(self) -> None:
        work, _held = self._under_way.popleft()
        work.wait()

    def _stage_of(self, layout: ParallelLayout) -> Comm:
        mine = None
        for stage in range(layout.pp):
            ranks = [layout.rank_of(Coordinates(0, tp, stage)) for tp in range(layout.tp)]
            group = self._new_group(ranks)
            if self.rank in ranks:
                mine = TensorParallelGroup(group)
        assert mine is not None, f"rank {self.rank} is in no stage of {layout}"
        return mine

    def _new_group(self, ranks: Sequence[int]) -> dist.ProcessGroup:
        group: dist.ProcessGroup = dist.new_group(list(ranks), timeout=self._timeout)
        return group


def _backend(device: torch.device) -> str:
    name = "nccl" if device.type == "cuda" else "gloo"
    available = dist.is_available() and (
        dist.is_nccl_available() if name == "nccl" else dist.is_gloo_available()
    )
    if not available:
        raise ConfigError(
            f"this torch ({torch.__version__}) was built without {name}, which several ranks on "
            f"{device.type} need. Install an official build of torch, or use one device."
        )
    if name == "gloo":
        names = {interface for _, interface in socket.if_nameindex()}
        for loopback in _LOOPBACK:
            if loopback in names:
                os.environ.setdefault("GLOO_SOCKET_IFNAME", loopback)
    return name
