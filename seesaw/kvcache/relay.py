"""KV of prompts from the ranks' prefill pools to their decode pools, from rank to rank in the
background.

Relays that begin together share exchanges: blocks one after another, in rounds that set no more
than KV_BATCH_BYTES aside on any rank. Pieces and rounds follow from layouts and block numbers
alone, so all ranks make the same exchanges in the same order. Which block belongs to whom is the
scheduler's business.
"""

from __future__ import annotations

import queue
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import NamedTuple, Protocol

import torch

from seesaw.cuda.streams import Event, Stream, now, streams
from seesaw.cuda.thread_stream import ThreadEvent, ThreadStream
from seesaw.errors import EngineDeadError
from seesaw.kvcache.pool import KVCache
from seesaw.layout.ranges import Range
from seesaw.layout.relay import RelayPiece
from seesaw.ops.kv_gather import kv_gather
from seesaw.ops.kv_scatter import kv_scatter
from seesaw.plan.workspace import KV_BATCH_BYTES


class Exchange(Protocol):
    """As `distributed.PeerExchange`: nobody else's, since its order is that of relays."""

    def exchange(
        self,
        sends: Sequence[tuple[int, torch.Tensor]],
        receives: Sequence[tuple[int, torch.Tensor]],
    ) -> None: ...


class PoolPart(NamedTuple):
    """A rank's pool of a phase, and what of the model is in it."""

    kv: KVCache
    layers: Range
    heads: Range

    def view(self, piece: RelayPiece) -> torch.Tensor:
        """`[layer][block][head][k|v][block_size][head_dim]` of the piece."""
        layers, heads = piece.layers, piece.heads
        return self.kv.pool[
            layers.start - self.layers.start : layers.stop - self.layers.start,
            :,
            heads.start - self.heads.start : heads.stop - self.heads.start,
        ]


class BlockRelay(NamedTuple):
    """One request: `blocks` of the prefill pool to as many of the decode pool."""

    transfer_id: int
    blocks: Sequence[int]
    to_blocks: Sequence[int]


class Relayed(NamedTuple):
    """A rank's part is done: bytes that came to its decode pool, and those of them that came from
    other ranks."""

    transfer_id: int
    num_bytes: int
    peer_bytes: int
    seconds: float


@dataclass(slots=True)
class _Round:
    """`shares`: how many of its blocks are those of which relay; `ends`: relays that are complete
    with it. Bytes are counted while it is carried out."""

    blocks: list[int] = field(default_factory=list)
    to_blocks: list[int] = field(default_factory=list)
    shares: dict[int, int] = field(default_factory=dict)
    ends: list[int] = field(default_factory=list)
    num_bytes: int = 0
    peer_bytes: int = 0


class _Begun(NamedTuple):
    round: _Round
    begun_s: float
    done: Event


class KVRelays:
    """Relays of `rank`, which takes and gives `pieces` (of all ranks) between `source` and
    `target`.

    `on_done` is called once for each relay from a thread of this, `on_error` there where one
    failed: none is reported afterwards. `exchange` may be None where no piece has another receiver
    than its sender. `on`: another stream than that of the pools' device, and what is over when all
    is that was computed so far.
    """

    def __init__(
        self, rank: int, pieces: Sequence[RelayPiece], source: PoolPart, target: PoolPart,
        exchange: Exchange | None, on_done: Callable[[Relayed], None],
        on_error: Callable[[EngineDeadError], None], *, most_bytes: int = KV_BATCH_BYTES,
        on: tuple[Stream, Callable[[], Event]] | None = None,
    ) -> None:  # fmt: skip
        self._rank = rank
        self._source, self._target = source, target
        self._exchange = exchange
        self._on_done, self._on_error = on_done, on_error
        device = source.kv.pool.device
        self._thread_stream: ThreadStream | None = None
        self._stream: Stream
        if on is not None:
            self._stream, self._now = on
        elif device.type == "cuda":
            self._stream, self._now = streams(device).relay, partial(now, device)
        else:
            self._stream = self._thread_stream = ThreadStream("seesaw-kv-relay")
            self._now = ThreadEvent.over  # what a CPU was told to compute is computed
        self._own = [piece for piece in pieces if rank in (piece.sender, piece.receiver)]
        pool = source.kv.pool
        self._pair_bytes = 2 * pool[0, 0, 0, 0].nbytes
        ranks = {piece.receiver for piece in pieces}
        largest = max(staged_bytes(pieces, one, self._pair_bytes) for one in ranks)
        self._most_blocks = max(1, most_bytes // largest)
        own = staged_bytes(pieces, rank, self._pair_bytes)
        self._staging = self._stream.empty(self._most_blocks * own)
        self._begun: queue.SimpleQueue[_Begun | None] = queue.SimpleQueue()
        self._thread = threading.Thread(target=self._report, name="seesaw-kv-relays", daemon=True)
        self._thread.start()

    def begin(self, relays: Sequence[BlockRelay]) -> None:
        """Begin to relay after what was computed so far. All ranks make the same calls, with their
        pools' block numbers alike."""
        self._stream.wait(self._now())
        for one in self._rounds(relays):
            ids = torch.tensor([one.blocks, one.to_blocks], dtype=torch.int32)
            if self._staging.is_cuda:
                ids = ids.pin_memory()
            begun_s = time.perf_counter()
            self._stream.run(partial(self._run, one, ids))
            self._begun.put(_Begun(one, begun_s, self._stream.record()))

    def _rounds(self, relays: Sequence[BlockRelay]) -> Iterator[_Round]:
        one = _Round()
        for relay in relays:
            for block, to_block in zip(relay.blocks, relay.to_blocks, strict=True):
                if len(one.blocks) == self._most_blocks:
                    yield one
                    one = _Round()
                one.blocks.append(block)
                one.to_blocks.append(to_block)
                one.shares[relay.transfer_id] = one.shares.get(relay.transfer_id, 0) + 1
            one.ends.append(relay.transfer_id)
        yield one

    # -- on the stream ----------------------------------------------------------------------------

    def _run(self, one: _Round, ids_host: torch.Tensor) -> None:
        count = len(one.blocks)
        ids = ids_host.to(self._staging.device, non_blocking=True)
        slots = torch.arange(count, dtype=torch.int32, device=ids.device)
        staged = list(self._staged(count))
        sends, receives = [], []
        for piece, aside in staged:
            if piece.sender == self._rank:
                kv_gather(self._source.view(piece), self._shaped(piece, aside), ids[0], slots)
            if piece.sender != self._rank:
                receives.append((piece.sender, aside))
                one.peer_bytes += aside.nbytes
            elif not piece.is_local:
                sends.append((piece.receiver, aside))
        if sends or receives:
            assert self._exchange is not None, "pieces for others and no exchange"
            self._exchange.exchange(sends, receives)
        for piece, aside in staged:
            if piece.receiver == self._rank:
                kv_scatter(self._target.view(piece), self._shaped(piece, aside), ids[1], slots)
                one.num_bytes += aside.nbytes

    def _staged(self, count: int) -> Iterator[tuple[RelayPiece, torch.Tensor]]:
        """Bytes set aside for `count` blocks of each piece."""
        at = 0
        for piece in self._own:
            nbytes = count * piece.tile_pairs() * self._pair_bytes
            yield piece, self._staging[at : at + nbytes]
            at += nbytes

    def _shaped(self, piece: RelayPiece, aside: torch.Tensor) -> torch.Tensor:
        """`[block][head][layer][k|v][block_size][head_dim]`, as `kv_gather` has it."""
        pool = self._source.kv.pool
        return aside.view(pool.dtype).view(
            -1, piece.heads.size, piece.layers.size, 2, *pool.shape[4:]
        )

    # -- the thread -------------------------------------------------------------------------------

    def _report(self) -> None:
        num_bytes: dict[int, tuple[int, int]] = {}
        began_s: dict[int, float] = {}
        last_s = 0.0
        while (begun := self._begun.get()) is not None:
            one, first_s = begun.round, max(begun.begun_s, last_s)
            try:
                begun.done.synchronize()
                last_s = time.perf_counter()
                count = len(one.blocks)
                for key, share in one.shares.items():
                    began_s.setdefault(key, first_s)
                    so_far, from_peers = num_bytes.get(key, (0, 0))
                    num_bytes[key] = (
                        so_far + one.num_bytes // count * share,
                        from_peers + one.peer_bytes // count * share,
                    )
                for key in one.ends:
                    took_s = last_s - began_s.pop(key)
                    self._on_done(Relayed(key, *num_bytes.pop(key), took_s))
            except Exception as error:
                failed = EngineDeadError(f"relay of KV to the decode pool failed: {error!r}")
                failed.__cause__ = error
                self._on_error(failed)
                return

    def close(self) -> None:
        """When all that was begun is done and reported, for which all ranks are needed."""
        self._begun.put(None)
        self._thread.join()
        if self._thread_stream is not None:
            self._thread_stream.close()


def staged_bytes(pieces: Sequence[RelayPiece], rank: int, pair_bytes: int) -> int:
    """That `rank` sets aside for one block; `pair_bytes`: of a tile of K and one of V."""
    return pair_bytes * sum(
        piece.tile_pairs() for piece in pieces if rank in (piece.sender, piece.receiver)
    )
