"""Ranks joined by torch.distributed: NCCL on GPUs, gloo on CPUs where seesaw._cpu is not built.

One group of ranks per process, since torch.distributed is. gloo listens on the loopback interface
alone, as all ranks are on one host.
"""

from __future__ import annotations

import contextlib
import os
import socket
from collections import deque
from collections.abc import Sequence
from datetime import timedelta
from typing import TYPE_CHECKING, Literal

import torch
import torch.distributed as dist

from seesaw.distributed.one_shot import Exchange, Memory, exchange_over, join_one_shot
from seesaw.errors import ConfigError
from seesaw.layers.comm import Comm
from seesaw.plan.workspace import MAX_HANDOVERS

if TYPE_CHECKING:
    from torch.distributed.distributed_c10d import Store

_LOOPBACK = ("lo", "lo0")


class TorchGroup:
    """A `Comm`. NCCL and gloo sum each element once and hand the sum to all, so that the ranks'
    bits are the same."""

    def __init__(self, group: dist.ProcessGroup) -> None:
        self._group = group
        self.size = group.size()
        self.rank = group.rank()
        self.recordable = dist.get_backend(group) == "nccl"

    def all_reduce(self, x: torch.Tensor) -> torch.Tensor:
        if x.numel():
            dist.all_reduce(x, group=self._group)
        return x

    def all_gather(self, x: torch.Tensor) -> list[torch.Tensor]:
        parts = [torch.empty_like(x) for _ in range(self.size)]
        if x.numel():
            dist.all_gather(parts, x, group=self._group)
        return parts


class TorchExchange:
    """A `PeerExchange` on a group of its own: NCCL must not see these beside unordered collectives
    of the same group."""

    def __init__(self, group: dist.ProcessGroup) -> None:
        self._group = group

    def exchange(
        self,
        sends: Sequence[tuple[int, torch.Tensor]],
        receives: Sequence[tuple[int, torch.Tensor]],
    ) -> None:
        operations = [
            dist.P2POp(operation, x, peer, self._group)
            for operation, pieces in ((dist.isend, sends), (dist.irecv, receives))
            for peer, x in pieces
            if x.numel()
        ]
        if operations:
            for work in dist.batch_isend_irecv(operations):
                work.wait()


class TorchTransport:
    """A `Transport`."""

    def __init__(
        self, rank: int, num_ranks: int, device: torch.device, store: Store, timeout_s: float
    ) -> None:
        """Together; NCCL where `device` is a GPU, else gloo. Raises ConfigError where torch lacks
        it."""
        self._rank, self._num_ranks = rank, num_ranks
        self._device = device
        self._timeout = timedelta(seconds=timeout_s)
        self._under_way: deque[tuple[dist.Work, torch.Tensor]] = deque()
        self._store = store
        self._peer_memory: list[tuple[Memory, Exchange]] = []
        self._num_comms = 0
        backend = _backend(device)
        if device.type == "cuda":
            torch.cuda.set_device(device)
        # No device_id: pairs of stages then have a communicator each, and do not wait in one line.
        dist.init_process_group(
            backend, store=store, rank=rank, world_size=num_ranks, timeout=self._timeout
        )

    def comm(self, stages: Sequence[Sequence[int]]) -> Comm:
        # All ranks take part in making all groups.
        groups = [(stage, self._new_group(stage)) for stage in stages]
        ((own_stage, own),) = ((stage, group) for stage, group in groups if self._rank in stage)
        group = TorchGroup(own)
        if self._device.type != "cuda":
            return group
        self._num_comms += 1
        place = f"one shot {self._num_comms} {list(own_stage)}"
        exchange = exchange_over(self._store, place, self._rank, own_stage)
        joined = join_one_shot(group, self._device, exchange)
        if joined is None:
            return group
        one_shot, memory = joined
        self._peer_memory.append((memory, exchange))
        return one_shot

    def send(self, x: torch.Tensor, to_rank: int) -> None:
        if len(self._under_way) == MAX_HANDOVERS:
            self._finish_oldest_send()
        work = dist.isend(x, to_rank)
        assert work is not None, f"rank {self._rank} is not in its own group"
        self._under_way.append((work, x))

    def receive(self, x: torch.Tensor, from_rank: int) -> None:
        dist.recv(x, from_rank)

    def peer_exchange(self) -> TorchExchange:
        group = self._new_group(range(self._num_ranks))
        # NCCL joins ranks at the first use of a group, which an exchange may be for some of them
        # only: the others would be waited for without end.
        dist.all_reduce(torch.zeros(1, device=self._device), group=group)
        return TorchExchange(group)

    def close(self) -> None:
        while self._under_way:
            self._finish_oldest_send()
        if self._device.type == "cpu":
            # A rank that leaves while another is still joining would fail it, on gloo. One that
            # has died is not waited for.
            with contextlib.suppress(RuntimeError):
                dist.barrier()
        for memory, exchange in self._peer_memory:
            torch.cuda.current_stream(self._device).synchronize()
            memory.close_peers()
            with contextlib.suppress(RuntimeError):
                exchange("closed")
            memory.close()
        dist.destroy_process_group()

    def _finish_oldest_send(self) -> None:
        work, _held = self._under_way.popleft()
        work.wait()

    def _new_group(self, ranks: Sequence[int]) -> dist.ProcessGroup:
        group: dist.ProcessGroup = dist.new_group(list(ranks), timeout=self._timeout)
        return group


def _backend(device: torch.device) -> Literal["nccl", "gloo"]:
    name: Literal["nccl", "gloo"] = "nccl" if device.type == "cuda" else "gloo"
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
