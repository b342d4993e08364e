"""Stores and loads of one rank: KV of a request from a device pool to the host tier and back, in
the background.

Owns what is under way, the order of nothing: each transfer is reported when its last byte is in
place. When blocks may be read or written is the scheduler's business.
"""

from __future__ import annotations

import itertools
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Literal

import torch

from seesaw.errors import EngineDeadError
from seesaw.kvcache.copies import Copies, CppCopies, Job, Report, TorchCopies
from seesaw.kvcache.pool import KVCache
from seesaw.kvcache.tier import HostTier
from seesaw.layout.kv import KVCopy, PoolShape
from seesaw.layout.ranges import Range
from seesaw.log import get_logger

logger = get_logger(__name__)

OnDone = Callable[[int, int, float], None]
OnError = Callable[[EngineDeadError], None]
Engine = Literal["cpp", "torch"] | Callable[[Report], Copies]


@dataclass(slots=True)
class Moved:
    """What one direction has moved: complete transfers, bytes, and seconds that their copies took
    (which overlap)."""

    transfers: int = 0
    num_bytes: int = 0
    seconds: float = 0.0


@dataclass(slots=True)
class _Transfer:
    """A store or load: layers of which no copy has begun, copies that are under way, and what those
    that have ended took."""

    transfer_id: int
    store: bool
    layers_left: int
    parts_left: int = 0
    num_bytes: int = 0
    seconds: float = 0.0


class KVTransfers:
    """Copies between `tier`, which is page-locked for CUDA, and pools on `device`.

    `on_done(transfer_id, num_bytes, seconds)` is called once for each transfer from a background
    thread, with the bytes that this rank has copied. If a copy or `on_done` fails, `on_error` is
    called there with what went wrong, and every later call raises it.

    `engine`: "cpp" (C++ threads) or "torch" (Python threads) for a CPU, which carry out up to
    `num_threads` copies at a time, or what makes another. None takes streams for CUDA, and C++ for
    a CPU where it is built.
    """

    def __init__(
        self, tier: HostTier, on_done: OnDone, device: torch.device, num_threads: int, *,
        on_error: OnError | None = None, engine: Engine | None = None,
    ) -> None:  # fmt: skip
        self.stores = Moved()
        self.loads = Moved()
        self._tier = tier
        self._device = device
        self._on_done = on_done
        self._on_error = on_error
        self._keys = itertools.count()
        self._under_way: dict[int, _Transfer] = {}  # by key of the copy
        self._partial: dict[int, _Transfer] = {}  # by id, those of which parts are to come
        self._held_back: list[tuple[set[int], Job]] = []  # with the keys of what comes before
        self._failed: EngineDeadError | None = None
        self._closed = False
        self._changed = threading.Condition()
        self._copies = self._start(num_threads, engine)

    def _start(self, num_threads: int, engine: Engine | None) -> Copies:
        device = self._device
        if num_threads < 1:
            raise ValueError(f"num_threads={num_threads}: expected 1 or more")
        if callable(engine):
            return engine(self._finish)
        if device.type == "cuda":
            if engine is not None:
                raise ValueError(f"engine={engine!r} copies pools on the CPU only, got {device}")
            from seesaw.kvcache.cuda_copies import cuda_copies

            self._tier.page_lock(device)
            return cuda_copies(self._finish, device)
        if engine == "torch":
            return TorchCopies(self._finish, num_threads)
        try:
            return CppCopies(self._finish, num_threads)
        except ImportError:
            if engine == "cpp":
                raise
        logger.info("KV moves in Python threads: this installation of seesaw has no C++ part.")
        return TorchCopies(self._finish, num_threads)

    @property
    def engine(self) -> str:
        """Which engine copies, for people."""
        return self._copies.name

    @property
    def num_under_way(self) -> int:
        """Stores and loads that have begun and are not reported. For any thread."""
        return len(self._under_way)

    def store(
        self, transfer_id: int, kv: KVCache, layers: Range, heads: Range, held_heads: Range,
        blocks: Sequence[int], tier_blocks: Sequence[int], num_tokens: int, *,
        part: Range | None = None,
    ) -> None:  # fmt: skip
        """Begin to copy the first `num_tokens` positions of a request from `blocks` of `kv` to
        `tier_blocks`, after what was computed so far (CUDA: on the current stream).

        `part`: these of `layers` only; the others come by calls of their own, which differ in
        nothing else, and the store is done, and reported once, when the last of them is.
        `kv` holds `layers` and `held_heads` of the model; `heads` are those that this rank stores,
        of size 0 for none: that is reported as done with 0 bytes. Raises ValueError where blocks or
        ranges do not fit pool and tier, EngineDeadError where a copy has failed before,
        HostMemoryError where CUDA refused to page-lock the tier.
        """
        self._begin(
            True, transfer_id, kv, layers, heads, held_heads, blocks, tier_blocks, num_tokens, part
        )

    def load(
        self, transfer_id: int, kv: KVCache, layers: Range, heads: Range, held_heads: Range,
        blocks: Sequence[int], tier_blocks: Sequence[int], num_tokens: int,
        after: Sequence[int] = (),
    ) -> None:  # fmt: skip
        """Likewise from `tier_blocks` to `blocks`, which may be read when it is done. Begins when
        the transfers `after` are done, as far as this rank has begun them."""
        self._begin(
            False, transfer_id, kv, layers, heads, held_heads, blocks, tier_blocks, num_tokens,
            None, after,
        )  # fmt: skip

    def wait(self, transfer_ids: Sequence[int]) -> None:
        """Until those of them that were begun here are done on this rank. Raises EngineDeadError
        where a copy has failed, ValueError where they are closed meanwhile."""
        wanted = set(transfer_ids)
        with self._changed:
            while self._failed is None and not self._closed:
                if not any(one.transfer_id in wanted for one in self._under_way.values()):
                    break
                self._changed.wait()
            self._raise_if_over()

    def _begin(
        self, store: bool, transfer_id: int, kv: KVCache, layers: Range, heads: Range,
        held_heads: Range, blocks: Sequence[int], tier_blocks: Sequence[int], num_tokens: int,
        part: Range | None, after: Sequence[int] = (),
    ) -> None:  # fmt: skip
        if kv.pool.device.type != self._device.type:
            raise ValueError(f"the pool is on {kv.pool.device}, expected {self._device}")
        pool = _pool_shape(kv, layers, held_heads)
        copy = KVCopy(
            self._tier.shape, pool, heads, tuple(blocks), tuple(tier_blocks), num_tokens, part
        )
        copy.check()
        with self._changed:
            self._raise_if_over()
            key = next(self._keys)
            before = self._keys_of(after)
            transfer = self._partial.pop(transfer_id, None) if part is not None else None
            transfer = transfer or _Transfer(transfer_id, store, layers.size)
            transfer.layers_left -= copy.layers.size
            transfer.parts_left += 1
            if transfer.layers_left:
                self._partial[transfer_id] = transfer
            self._under_way[key] = transfer
            job = Job(key, store, copy, kv, self._tier)
            if before:
                # Who begins it computes nothing: its current stream says nothing of the blocks.
                self._held_back.append((before, replace(job, ready=self._copies.now())))
                return
        try:
            self._copies.submit(job)
        except BaseException:
            with self._changed:
                del self._under_way[key]
            raise

    def _keys_of(self, transfer_ids: Sequence[int]) -> set[int]:
        if not transfer_ids:
            return set()
        return {key for key, one in self._under_way.items() if one.transfer_id in transfer_ids}

    def _take_ready(self, done: int) -> list[Job]:
        """What was held back for `done` alone. With the lock held."""
        for before, _ in self._held_back:
            before.discard(done)
        ready = [job for before, job in self._held_back if not before]
        self._held_back = [one for one in self._held_back if one[0]]
        return ready

    def _submit_all(self, jobs: Sequence[Job]) -> None:
        """From an engine's thread, which may wait here for room: copies go on meanwhile."""
        for job in jobs:
            try:
                self._copies.submit(job)
            except Exception as error:
                if not self._closed:
                    self._fail(self._under_way[job.key], error)
                return

    def _fail(self, transfer: _Transfer, error: Exception) -> None:
        kind = "store" if transfer.store else "load"
        failed = EngineDeadError(f"{kind} {transfer.transfer_id} of KV failed: {error!r}")
        failed.__cause__ = error
        with self._changed:
            self._failed = self._failed or failed
            self._changed.notify_all()
        if self._on_error is not None:
            self._on_error(failed)

    def _finish(self, key: int, num_bytes: int, seconds: float, error: Exception | None) -> None:
        """From an engine's thread."""
        transfer = self._under_way[key]
        is_complete = False
        if error is None:
            with self._changed:
                moved = self.stores if transfer.store else self.loads
                moved.num_bytes += num_bytes
                moved.seconds += seconds
                transfer.num_bytes += num_bytes
                transfer.seconds += seconds
                transfer.parts_left -= 1
                is_complete = transfer.parts_left == 0 and transfer.layers_left == 0
                moved.transfers += is_complete
            try:
                if is_complete:
                    self._on_done(transfer.transfer_id, transfer.num_bytes, transfer.seconds)
            except Exception as caught:
                error = caught
        if error is not None:
            self._fail(transfer, error)  # first, so that nobody takes it for done
        with self._changed:
            del self._under_way[key]
            ready = [] if error or self._closed else self._take_ready(key)
            self._changed.notify_all()
        self._submit_all(ready)

    def drain(self, timeout_s: float | None = None) -> bool:
        """Wait until nothing is under way; False where the time is over before. Raises
        EngineDeadError where a copy has failed."""
        deadline = None if timeout_s is None else time.monotonic() + timeout_s
        with self._changed:
            while self._under_way and self._failed is None:
                left = None if deadline is None else deadline - time.monotonic()
                if left is not None and left <= 0:
                    return False
                self._changed.wait(left)
            self._raise_if_over()
        return True

    def _raise_if_over(self) -> None:
        if self._failed is not None:
            raise self._failed
        if self._closed:
            raise ValueError("KV transfers are closed")
        self._tier.check_page_lock()

    def close(self) -> None:
        """End the threads. What is not done by then is dropped, and never reported; afterwards
        nothing touches pools or tier. Safe to call twice, not from `on_done`."""
        with self._changed:
            if self._closed:
                return
            self._closed = True
            self._changed.notify_all()
        self._copies.close()
        with self._changed:
            self._under_way.clear()
            self._held_back.clear()
            self._changed.notify_all()


def _pool_shape(kv: KVCache, layers: Range, held_heads: Range) -> PoolShape:
    """Raises ValueError where `kv` does not have those layers and heads, or has gaps."""
    pool = kv.pool
    num_layers, num_blocks, num_heads, _, block_size, head_dim = pool.shape
    if not pool.is_contiguous():
        raise ValueError("the pool must be contiguous")
    if (num_layers, num_heads) != (layers.size, held_heads.size):
        raise ValueError(
            f"the pool has {num_layers} layers and {num_heads} KV heads, expected those of "
            f"{layers} and {held_heads}"
        )
    return PoolShape(layers, held_heads, num_blocks, block_size, head_dim, pool.element_size())
