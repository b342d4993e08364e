"""What an engine writes to a trace: the driver's planning, what each rank reports, how full pools
and tier are, and each step and copy with what was predicted of it.

Only made where a trace is asked for. Owns names and arguments of events; their form is that of
`seesaw.trace`. Called from the thread that steps the engine.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal

from seesaw.engine.messages import StepReport, TransferReport
from seesaw.engine.stats import TransferBytes
from seesaw.engine.step_costs import StepCosts, StepSeconds
from seesaw.plan.choice import LayoutChoice
from seesaw.plan.memory import MemoryPlan
from seesaw.scheduler.output import ModelOutput, Phase, SchedulerOutput, TransferDone
from seesaw.scheduler.scheduler import Scheduler
from seesaw.trace import DRIVER, TraceWriter

if TYPE_CHECKING:
    from seesaw.engine.loader import Loaded
    from seesaw.weights.checkpoint import Checkpoint

COUNT_S = 0.01
"""At most so often counters are written."""

RATE_S = 0.25
"""Over what time a rate of tokens is a mean."""


Move = Literal["store", "load", "relay"]
LANES: Mapping[Move, str] = {"store": "store", "load": "load", "relay": "peer"}


@dataclass(slots=True)
class _Step:
    """A step in flight."""

    output: SchedulerOutput
    num_rows: int
    num_decodes: int
    predicted: StepSeconds | None
    weight_bytes: Counter[str] = field(default_factory=Counter)


@dataclass(frozen=True, slots=True)
class _Move:
    """A transfer in flight."""

    kind: Move
    num_bytes: int
    seconds: float | None


def start_trace(
    writer: TraceWriter, loaded: Loaded, checkpoint: Checkpoint, policy: str
) -> EngineTrace:
    """Of what replicas do from now on."""
    replicas = loaded.replicas
    trace = EngineTrace(
        writer, replicas.schedulers, loaded.layouts, loaded.memory_plan, replicas.predict,
        loaded.costs, model=checkpoint.name, dtype=loaded.dtype, policy=policy,
    )  # fmt: skip
    replicas.trace_to(trace)
    return trace


class EngineTrace:
    """`costs`: what predicts seconds, or in words why nothing does. `about`: what else is to be
    said of the run."""

    def __init__(
        self, writer: TraceWriter, schedulers: Sequence[Scheduler], layouts: LayoutChoice,
        memory: MemoryPlan, predict: TransferBytes, costs: StepCosts | str, **about: Any,
    ) -> None:  # fmt: skip
        self._writer = writer
        self._schedulers = schedulers
        self._layouts = layouts
        self._predict = predict
        self._costs = None if isinstance(costs, str) else costs
        self._size = layouts.num_ranks // layouts.dp
        self._steps: dict[tuple[int, int], _Step] = {}
        self._moves: dict[tuple[int, int], _Move] = {}
        self._moved: Counter[str] = Counter(store=0, load=0, relay=0, weights=0)
        self._tokens = Counter(prompt=0, output=0)
        self._counts: dict[str, dict[str, float]] = {}
        self._decoded = [scheduler.stats.num_decode_rows for scheduler in schedulers]
        self._rated_s = time.perf_counter()
        self._counted_s = 0.0
        writer.about(
            simulated=False,
            prefill_layout=layouts.prefill.short,
            decode_layout=layouts.decode.short,
            num_replicas=layouts.dp,
            num_ranks=layouts.num_ranks,
            block_size=memory.block_size,
            decode_blocks=memory.num_blocks,
            prefill_blocks=memory.prefill_blocks,
            tier_blocks=memory.tier_blocks,
            tier_block_size=memory.tier_block_size,
            predicted_by=costs.source if isinstance(costs, StepCosts) else None,
            not_predicted=costs if isinstance(costs, str) else None,
            **about,
        )
        writer.process(DRIVER, "plans steps, takes in tokens")
        for rank in range(layouts.num_ranks):
            writer.process(rank, self._label(rank))

    def _label(self, rank: int) -> str:
        """Such as `pp2 stage 0, tp2 part 0`."""
        parts = []
        for layout in dict.fromkeys((self._layouts.prefill, self._layouts.decode)):
            at = layout.coordinates(rank)
            where = [f"replica {at.dp}"] if layout.dp > 1 else []
            where += [f"stage {at.pp}"] if layout.pp > 1 else []
            where += [f"part {at.tp}"] if layout.tp > 1 else []
            parts.append(" ".join([layout.short, *where]))
        return ", ".join(parts)

    # -- the driver -------------------------------------------------------------------------------

    def planned(self, replica: int, step: SchedulerOutput, began_s: float) -> None:
        """A step was planned and handed over since `began_s`."""
        now_s = time.perf_counter()
        rows = step.rows
        predicted = self._costs.step(step) if self._costs is not None and rows else None
        decoded = self._schedulers[replica].stats.num_decode_rows
        num_decodes = decoded - self._decoded[replica]
        self._decoded[replica] = decoded
        self._steps[replica, step.step_id] = _Step(step, len(rows), num_decodes, predicted)
        self._writer.span(
            DRIVER, "driver", f"plan {step.step_id}", began_s, now_s,
            rows=len(rows), stores=len(step.stores), loads=len(step.loads),
            relays=len(step.relays),
        )  # fmt: skip
        if step.reshard:
            self._writer.instant(f"to {step.phase}", now_s, replica=replica, step=step.step_id)
        self._look(now_s)

    def expects(
        self, replica: int, kind: Move, transfer_id: int, phase: Phase, num_bytes: int
    ) -> None:
        """A transfer begins, from or to the pool of `phase`, of so many bytes over all ranks."""
        seconds = None if self._costs is None else self._costs.copy_s(kind, phase, num_bytes)
        self._moves[replica, transfer_id] = _Move(kind, num_bytes, seconds)

    def worked(self, what: str, began_s: float) -> None:
        """The driver did something else since `began_s`."""
        self._writer.span(DRIVER, "driver", what, began_s, time.perf_counter())

    def happened(self, what: str, **args: Any) -> None:
        """An abort, an error."""
        self._writer.instant(what, time.perf_counter(), **args)

    # -- the ranks --------------------------------------------------------------------------------

    def heard(self, report: StepReport | TransferReport) -> None:
        """What one rank reports, whose number counts over all replicas."""
        replica = report.rank // self._size
        if isinstance(report, TransferReport):
            if report.num_bytes:
                kind = self._moves[replica, report.transfer_id].kind
                self._writer.span(
                    report.rank, LANES[kind], f"{kind} {report.transfer_id}", report.start_s,
                    report.start_s + report.seconds, bytes=report.num_bytes,
                )  # fmt: skip
            return
        step = self._steps[replica, report.step_id]
        step.weight_bytes.update(report.weight_bytes)
        name = f"{step.output.phase} {report.step_id}"
        args = self._arguments(step, report.rank % self._size)
        for lane, what, start_s, end_s in report.spans:
            if what == name:
                self._writer.span(report.rank, lane, what, start_s, end_s, **args)
            else:
                self._writer.span(report.rank, lane, what, start_s, end_s)

    def _arguments(self, step: _Step, rank: int) -> dict[str, Any]:
        args: dict[str, Any] = {"rows": step.num_rows, "tokens": step.output.num_tokens}
        if step.predicted is not None:
            stage = self._layout(step.output.phase).coordinates(rank).pp
            args["predicted_s"] = _short(step.predicted.stages_s[stage])
        return args

    def _layout(self, phase: Phase) -> Any:
        return (self._layouts.prefill if phase == "prefill" else self._layouts.decode).replica

    # -- what is done -----------------------------------------------------------------------------

    def updated(self, replica: int, done: ModelOutput | TransferDone, began_s: float) -> None:
        """All ranks of the replica have reported `done`, which was taken in since `began_s`."""
        now_s = time.perf_counter()
        if isinstance(done, TransferDone):
            self._note_move(replica, done, now_s)
        else:
            self._note_step(replica, done, now_s)
            self._writer.span(DRIVER, "driver", f"update {done.step_id}", began_s, now_s)
        self._look(now_s)

    def _note_move(self, replica: int, done: TransferDone, now_s: float) -> None:
        move = self._moves.pop((replica, done.transfer_id))
        self._moved[move.kind] += done.num_bytes
        args: dict[str, Any] = {"bytes": done.num_bytes, "predicted_bytes": move.num_bytes}
        args["seconds"] = _short(done.seconds)
        if move.seconds is not None:
            args["predicted_s"] = _short(move.seconds)
        self._writer.instant(f"{move.kind} {done.transfer_id}", now_s, replica=replica, **args)

    def _note_step(self, replica: int, done: ModelOutput, now_s: float) -> None:
        step = self._steps.pop((replica, done.step_id))
        output = step.output
        prompts = output.num_tokens - step.num_decodes
        self._tokens["prompt"] += prompts
        self._tokens["output"] += len(done.token_ids)
        args: dict[str, Any] = {
            "phase": output.phase,
            "rows": step.num_rows,
            "tokens": output.num_tokens,
            "decodes": step.num_decodes,
            "busy_s": _short(done.busy_s),
        }
        if step.predicted is not None:
            args["predicted_s"] = _short(max(step.predicted.stages_s))
            args["bound_s"] = {kind: _short(s) for kind, s in step.predicted.bound_s.items()}
        moved = {source: size for source, size in step.weight_bytes.items() if size}
        self._moved["weights"] += sum(moved.values()) - moved.get("resident", 0)
        if output.reshard or done.reshard_s:
            args["reshard_s"] = _short(done.reshard_s)
        if output.reshard:
            args["predicted_weight_bytes"] = dict(self._predict.weights(output.phase))
            if self._costs is not None:
                args["predicted_reshard_s"] = _short(self._costs.weights_s(output.phase))
        if moved:
            args["weight_bytes"] = moved
        self._writer.instant(f"step {done.step_id}", now_s, replica=replica, **args)

    def _look(self, now_s: float) -> None:
        if now_s - self._counted_s < COUNT_S:
            return
        self._counted_s = now_s
        for replica, scheduler in enumerate(self._schedulers):
            which = f" of replica {replica}" if len(self._schedulers) > 1 else ""
            at = scheduler.occupancy
            self._count(
                f"requests{which}", now_s, waiting=at.waiting, prefilling=at.prefilling,
                storing=at.storing, stored=at.stored, loading=at.loading, running=at.running,
            )  # fmt: skip
            self._count(
                f"decode pool{which}", now_s, held=at.decode_blocks, reserved=at.reserved_blocks
            )
            self._count(f"largest request{which}", now_s, blocks=at.largest_blocks)
            if scheduler.config.tier is not None:
                self._count(f"prefill pool{which}", now_s, held=at.prefill_blocks)
                self._count(f"tier{which}", now_s, held=at.tier_blocks)
        elapsed_s = now_s - self._rated_s
        if elapsed_s >= RATE_S:
            self._rated_s = now_s
            rates = {kind: round(count / elapsed_s, 1) for kind, count in self._tokens.items()}
            self._tokens = Counter(prompt=0, output=0)
            self._count("tokens/s", now_s, **rates)
            self._count("bytes moved", now_s, **self._moved)

    def _count(self, name: str, now_s: float, **values: float) -> None:
        """Where it changed."""
        if self._counts.get(name) != values:
            self._counts[name] = values
            self._writer.counter(name, now_s, **values)

    def close(self) -> None:
        """A last look; the file is its maker's to close."""
        self._counted_s = 0.0
        self._look(time.perf_counter())


def _short(seconds: float) -> float:
    """To a tenth of a microsecond."""
    return round(seconds, 7)
