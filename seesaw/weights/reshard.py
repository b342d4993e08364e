"""Carries out a `ReshardPlan` on one rank: round by round, bytes come to their places in its arena,
in the foreground or on a thread of its own (`weights/change.py`).

Owns the staging buffer and the count of what was moved. Which byte comes from where is decided in
`layout`; how ranks reach each other in `distributed`.
"""

from __future__ import annotations

import contextlib
import mmap
import time
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol

import torch

from seesaw.cuda.copy_pieces import Rows, copy_pieces
from seesaw.cuda.streams import CudaEvent, streams
from seesaw.layout.reshard import Piece, ReshardPlan, Round, Source
from seesaw.weights.arena import Arena
from seesaw.weights.image import WeightImage

PAGE_BYTES = mmap.PAGESIZE


class Exchange(Protocol):
    """Ranks of one replica that trade pieces of weights."""

    def exchange(
        self,
        sends: Sequence[tuple[int, torch.Tensor]],
        receives: Sequence[tuple[int, torch.Tensor]],
    ) -> None:
        """Send and fill contiguous uint8 tensors, (peer, tensor) each; on return all is done (on a
        GPU: in the order of the current stream).

        What rank a sends to b is what b receives from a, in the same order and sizes. A rank that
        has nothing to send or receive does not call.
        """
        ...


@dataclass(frozen=True, slots=True)
class Moved:
    """What one change of layout brought to a rank: bytes as counted while they were moved (resident
    ones: found in place), and how long it took."""

    bytes_by_source: dict[Source, int]
    seconds: float


class Resharder:
    """Changes what `arena` of `rank` holds.

    `plans` are all that will be run: staging is allocated here, once, as large as the most that a
    round of them reads from this arena. `image` may be None where no plan takes anything from the
    host, `exchange` where none takes anything from peers. One thread at a time.
    """

    def __init__(
        self,
        rank: int,
        plans: Iterable[ReshardPlan],
        arena: Arena,
        image: WeightImage | None,
        exchange: Exchange | None,
    ) -> None:
        self.rank = rank
        self.device = arena.bytes.device
        self._arena = arena.bytes
        self._image = image
        self._exchange = exchange
        staging_bytes = max((plan.snapshot_bytes(rank) for plan in plans), default=0)
        self._staging = torch.empty(staging_bytes, dtype=torch.uint8, device=self.device)
        on_gpu = self.device.type == "cuda"
        self._streams = streams(self.device) if on_gpu else None

    @property
    def staging_bytes(self) -> int:
        return self._staging.nbytes

    def now(self) -> CudaEvent | None:
        """On a GPU what the current stream was given so far, on a CPU None: that is done."""
        if self._streams is None:
            return None
        return CudaEvent(torch.cuda.current_stream(self.device))

    def run(self, plan: ReshardPlan) -> Moved:
        """Run all rounds of `plan`, together with the other ranks of the replica; on return the
        arena holds the new layout.

        If it raises, the arena holds neither layout and the rank must not go on.
        """
        began_s = time.perf_counter()
        moved: Counter[Source] = Counter({"resident": 0, "copy": 0, "peer": 0, "host": 0})
        landed = [event for _, event in self.rounds(plan, self.now(), moved)]
        if landed and landed[-1] is not None:
            landed[-1].synchronize()
        return Moved(dict(moved), time.perf_counter() - began_s)

    def touch(self, plan: ReshardPlan) -> None:
        """Have the pages of the host image that `plan` reads mapped by this process: a page fault
        each, or for some at once, that the plan itself need not wait for. Reads a byte of each,
        which is little beside a step. Page-locked ones are mapped already."""
        if self._image is None or self._streams is not None:
            return
        for round in plan.rounds:
            for piece in round.pieces[self.rank]:
                if piece.source == "host":
                    stop = piece.offset + piece.size
                    self._image.tensor[piece.offset : stop : PAGE_BYTES].max()

    def rounds(
        self, plan: ReshardPlan, after: CudaEvent | None, moved: Counter[Source]
    ) -> Iterator[tuple[Round, CudaEvent | None]]:
        """Run one round at each step, together with the other ranks, which are to take all of them:
        (round, what it has landed with; None where it has). `after`: old weights are read until
        then. Adds up what is moved."""
        if self._streams is not None and after is not None:
            self._streams.weights.wait(after)
        for round in plan.rounds:
            for piece in round.pieces[self.rank]:
                if piece.source == "resident":
                    assert piece.offset == piece.target, f"not in place: {piece}"
                    moved["resident"] += piece.size
        for round in plan.rounds:
            with self._on_stream():
                self._run_round(round, moved)
            yield round, None if self._streams is None else self._streams.weights.record()

    def _on_stream(self) -> contextlib.AbstractContextManager[object]:
        if self._streams is None:
            return contextlib.nullcontext()
        return torch.cuda.stream(self._streams.weights.torch)

    def _run_round(self, round: Round, moved: Counter[Source]) -> None:
        """All that is read from this arena is set aside first, so that any write may follow."""
        sends, copies = self._snapshot(round)
        own = round.pieces[self.rank]
        receives = [(piece.rank, self._target(piece)) for piece in own if piece.source == "peer"]
        if sends or receives:
            self._trade(sends, receives)
            moved["peer"] += sum(target.nbytes for _, target in receives)
        _copy_within([(self._target(piece), content) for piece, content in copies])
        moved["copy"] += sum(content.nbytes for _, content in copies)
        from_host = [(self._target(piece), piece.offset) for piece in own if piece.source == "host"]
        if from_host:
            assert self._image is not None, "a plan with the host and no image"
            self._image.copy_all(from_host)
            moved["host"] += sum(target.nbytes for target, _ in from_host)
        if self._streams is not None and (sends or receives):
            self._streams.weights.wait(self._streams.peer.record())

    def _trade(
        self,
        sends: Sequence[tuple[int, torch.Tensor]],
        receives: Sequence[tuple[int, torch.Tensor]],
    ) -> None:
        """On a GPU on a stream of its own, beside the round's copies, which write elsewhere."""
        assert self._exchange is not None, "a plan with peers and no exchange"
        if self._streams is None:
            self._exchange.exchange(sends, receives)
            return
        self._streams.peer.wait(self._streams.weights.record())
        with torch.cuda.stream(self._streams.peer.torch):
            self._exchange.exchange(sends, receives)

    def _snapshot(
        self, round: Round
    ) -> tuple[list[tuple[int, torch.Tensor]], list[tuple[Piece, torch.Tensor]]]:
        """What others and this rank itself take from this arena, from staging: (receiver, bytes)
        in the order of the plan, and (piece, bytes)."""
        sends: list[tuple[int, torch.Tensor]] = []
        copies: list[tuple[Piece, torch.Tensor]] = []
        aside: list[tuple[torch.Tensor, torch.Tensor]] = []
        used = 0
        for receiver, pieces in enumerate(round.pieces):
            for piece in pieces:
                if piece.source not in ("copy", "peer") or piece.rank != self.rank:
                    continue
                content = self._staging[used : used + piece.size]
                assert content.nbytes == piece.size, "a plan that was not named beforehand"
                aside.append((content, self._arena[piece.offset : piece.offset + piece.size]))
                used += piece.size
                if piece.source == "copy":
                    copies.append((piece, content))
                else:
                    sends.append((receiver, content))
        _copy_within(aside)
        return sends, copies

    def _target(self, piece: Piece) -> torch.Tensor:
        return self._arena[piece.target : piece.target + piece.size]


def _copy_within(pairs: Sequence[tuple[torch.Tensor, torch.Tensor]]) -> None:
    """Fill (target, source) pairs of bytes of one device that do not overlap; on a GPU in one
    launch, in the order of the current stream."""
    if pairs and pairs[0][0].is_cuda:
        rows = [Rows(to.data_ptr(), source.data_ptr(), to.nbytes) for to, source in pairs]
        copy_pieces(rows, pairs[0][0].device)
        return
    for target, source in pairs:
        target.copy_(source)
