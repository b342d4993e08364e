"""Carries out a `ReshardPlan` on one rank: round by round, bytes come to their places in its arena.

Owns the staging buffer and the count of what was moved. Which byte comes from where is decided in
`layout`; how ranks reach each other in `distributed`.
"""

from __future__ import annotations

import contextlib
import time
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol

import torch

from seesaw.cuda.copy_pieces import Rows, copy_pieces
from seesaw.cuda.streams import streams
from seesaw.layout.reshard import Piece, ReshardPlan, Round, Source
from seesaw.weights.arena import Arena
from seesaw.weights.image import WeightImage


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
    host, `exchange` where none takes anything from peers.
    """

    def __init__(
        self,
        rank: int,
        plans: Iterable[ReshardPlan],
        arena: Arena,
        image: WeightImage | None,
        exchange: Exchange | None,
    ) -> None:
        self._rank = rank
        self._arena = arena.bytes
        self._image = image
        self._exchange = exchange
        device = self._arena.device
        staging_bytes = max((plan.snapshot_bytes(rank) for plan in plans), default=0)
        self._staging = torch.empty(staging_bytes, dtype=torch.uint8, device=device)
        self._stream: torch.cuda.Stream | None = None
        if device.type == "cuda":
            self._stream = streams(device).weights.torch

    @property
    def staging_bytes(self) -> int:
        return self._staging.nbytes

    def run(self, plan: ReshardPlan) -> Moved:
        """Run all rounds of `plan`, together with the other ranks of the replica; on return the
        arena holds the new layout.

        If it raises, the arena holds neither layout and the rank must not go on.
        """
        began_s = time.perf_counter()
        moved: Counter[Source] = Counter({"resident": 0, "copy": 0, "peer": 0, "host": 0})
        with self._on_stream():
            for round in plan.rounds:
                self._run_round(round, moved)
        return Moved(dict(moved), time.perf_counter() - began_s)

    @contextlib.contextmanager
    def _on_stream(self) -> Iterator[None]:
        """On a GPU a stream of its own, after what the current one has begun with the old weights,
        and through with all when it is left."""
        if self._stream is None:
            yield
            return
        self._stream.wait_stream(torch.cuda.current_stream(self._stream.device))
        with torch.cuda.stream(self._stream):
            yield
        self._stream.synchronize()

    def _run_round(self, round: Round, moved: Counter[Source]) -> None:
        """All that is read from this arena is set aside first, so that any write may follow."""
        sends, copies = self._snapshot(round)
        own = round.pieces[self._rank]
        receives = [(piece.rank, self._target(piece)) for piece in own if piece.source == "peer"]
        if sends or receives:
            assert self._exchange is not None, "a plan with peers and no exchange"
            self._exchange.exchange(sends, receives)
            moved["peer"] += sum(target.nbytes for _, target in receives)
        _copy_within([(self._target(piece), content) for piece, content in copies])
        moved["copy"] += sum(content.nbytes for _, content in copies)
        from_host = [(self._target(piece), piece.offset) for piece in own if piece.source == "host"]
        if from_host:
            assert self._image is not None, "a plan with the host and no image"
            self._image.copy_all(from_host)
            moved["host"] += sum(target.nbytes for target, _ in from_host)
        for piece in own:
            if piece.source == "resident":
                assert piece.offset == piece.target, f"not in place: {piece}"
                moved["resident"] += piece.size

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
                if piece.source not in ("copy", "peer") or piece.rank != self._rank:
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
