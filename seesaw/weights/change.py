"""A change of layout in the background: one thread runs the rounds of its plan while another one
computes, and waits for a layer's weights only when it comes to that layer.

Knows no phases and no steps. What is moved is `weights/reshard.py`'s business.
"""

from __future__ import annotations

import os
import threading
import time
from collections import Counter
from collections.abc import Callable, Sequence

import torch

from seesaw.cuda.streams import CudaEvent
from seesaw.errors import EngineDeadError
from seesaw.layout.reshard import ReshardPlan, Source
from seesaw.weights.reshard import Resharder

Span = tuple[str, float, float]
"""(layers of a round, start_s, end_s) of `time.perf_counter()`."""


class Change:
    """Begins to run `plan` when it is made, after what the current stream was given; steps of the
    old layout must have been begun by then. Together with the other ranks.

    A round writes only over what no later round and no step reads, so layers that have landed may
    be used while others are on their way. `on_error` is called on the thread where a round fails:
    this rank may have nothing to wait for, when others have. `cores`: those on which the thread
    stays, None = where the one that makes it does. The thread copies beside the computing one
    without a rule of who goes first: where both share a core, a step that must wait for weights
    sleeps, and leaves it to them.
    """

    def __init__(
        self,
        resharder: Resharder,
        plan: ReshardPlan,
        on_error: Callable[[EngineDeadError], None],
        cores: Sequence[int] | None = None,
    ) -> None:
        self._resharder = resharder
        self._plan = plan
        self._on_error = on_error
        self._cores = cores
        self._round_of = {
            layer: index
            for index, round in enumerate(plan.rounds)
            if any(piece.source != "resident" for piece in round.pieces[resharder.rank])
            for layer in round.layers
        }
        self._own_rounds = 1 + max(self._round_of.values(), default=-1)
        self._moved: Counter[Source] = Counter({"resident": 0, "copy": 0, "peer": 0, "host": 0})
        self._landed: list[CudaEvent | None] = []
        self._spans: list[Span] = []
        self._error: BaseException | None = None
        self._is_over = False
        self._changed = threading.Condition()
        self._ended_s = time.perf_counter()
        self._thread = threading.Thread(
            target=self._run, args=(resharder.now(),), name="seesaw-weights", daemon=True
        )
        self._thread.start()

    # -- for the thread that computes -------------------------------------------------------------

    def wait(self, layer: int) -> None:
        """Until the layer has landed, on a GPU by holding the current stream. Raises
        EngineDeadError where it never will."""
        index = self._round_of.get(layer)
        if index is None:
            return
        self._wait_until(lambda: len(self._landed) > index)
        landed = self._landed[index]
        if landed is not None:
            landed.hold(torch.cuda.current_stream(self._resharder.device))

    @property
    def layers(self) -> set[int]:
        """Those of which anything comes to this rank."""
        return set(self._round_of)

    @property
    def has_all(self) -> bool:
        """Whether all that comes to this rank was moved, or on a GPU begun to be; other ranks may
        still take from it."""
        return self._is_over or len(self._landed) >= max(self._own_rounds, 1)

    def take_moved(self) -> dict[Source, int]:
        """Bytes by source, where it `has_all`; nothing the second time."""
        moved, self._moved = self._moved, Counter()
        return dict(moved)

    def finish(self) -> None:
        """Wait for all rounds. Raises EngineDeadError where one has failed."""
        self._wait_until(lambda: self._is_over)
        self.join()

    def join(self) -> None:
        """Wait until nothing is read or written any more."""
        self._thread.join()

    def take_spans(self) -> list[Span]:
        """Of rounds that have ended since the last call."""
        with self._changed:
            taken, self._spans = self._spans, []
        return taken

    def _wait_until(self, ready: Callable[[], bool]) -> None:
        with self._changed:
            self._changed.wait_for(lambda: ready() or self._error is not None)
            if not ready():
                raise EngineDeadError(_what(self._error)) from self._error

    # -- the other one ----------------------------------------------------------------------------

    def _run(self, after: CudaEvent | None) -> None:
        try:
            if self._cores:
                os.sched_setaffinity(0, self._cores)  # of this thread
            self._run_rounds(after)
        except BaseException as error:
            with self._changed:
                self._error = error
                self._changed.notify_all()
            failed = EngineDeadError(_what(error))
            failed.__cause__ = error
            self._on_error(failed)

    @torch.inference_mode()
    def _run_rounds(self, after: CudaEvent | None) -> None:
        began: list[tuple[tuple[int, ...], float]] = []
        at_s = time.perf_counter()
        for round, landed in self._resharder.rounds(self._plan, after, self._moved):
            began.append((round.layers, at_s))
            at_s = time.perf_counter()
            with self._changed:
                self._landed.append(landed)
                if landed is None:
                    self._note(round.layers, began[-1][1], at_s)
                self._changed.notify_all()
        # A GPU has been told all; when it is through is found out in turn.
        for (layers, begun_s), landed in zip(began, self._landed, strict=True):
            if landed is not None:
                landed.synchronize()
                ended_s = time.perf_counter()
                self._note(layers, max(begun_s, self._ended_s), ended_s)
        with self._changed:
            self._is_over = True
            self._changed.notify_all()

    def _note(self, layers: tuple[int, ...], start_s: float, end_s: float) -> None:
        self._spans.append((f"layers {', '.join(map(str, layers))}", start_s, end_s))
        self._ended_s = end_s


def _what(error: BaseException | None) -> str:
    return f"weights of the next layout did not arrive: {error}"
