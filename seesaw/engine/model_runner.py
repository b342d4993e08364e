"""One rank's share of a step: makes tensors of rows, runs its layers, draws tokens, begins copies.

A step is begun and finished apart: what the device is given for the next one may follow at once,
since tokens that the host has not read yet are found on the device. So a step may name positions
whose tokens nobody has heard of yet. Decides nothing: which rows, blocks, copies and layout is the
scheduler's business. Knows no processes.
"""

from __future__ import annotations

import time
from array import array
from collections.abc import Callable, Mapping, Sequence
from functools import partial

import torch

from seesaw.cuda.streams import now
from seesaw.engine.begun_step import ModelStep
from seesaw.engine.between_layers import BetweenLayers, split_stores
from seesaw.engine.cuda_graphs import DecodeGraphs, Recorder
from seesaw.engine.device_clock import DeviceClock, Mark
from seesaw.engine.input_batch import InputBuffers, RowArrays, as_tensors
from seesaw.engine.lanes import Lane
from seesaw.engine.layered_batch import LayeredBatch
from seesaw.engine.messages import StepLimits, StepReport
from seesaw.engine.phase_weights import PhaseWeights
from seesaw.engine.profile import StepClock
from seesaw.engine.rank_phase import RankPhase, StageLink, expert_loads
from seesaw.engine.request_state import RequestState, take_in
from seesaw.engine.sampler import PendingDraw, SamplingState, begin_draw, begin_draw_highest
from seesaw.kvcache.relay import BlockRelay, KVRelays
from seesaw.kvcache.transfer import KVTransfers
from seesaw.layout import Range
from seesaw.models.inputs import StepInputs
from seesaw.ops.triton_backend import on_triton
from seesaw.scheduler.output import Batch, Load, Phase, Relay, SchedulerOutput, Store
from seesaw.weights.hashes import param_hashes


class ModelRunner:
    """Runs steps in order of `step_id`.

    `links` is needed where a layout has several stages, `transfers` where there is a host tier,
    `relays` where KV may go from pool to pool, `weights` where the layouts differ; with a
    `recorder` decode steps are recorded and replayed. `release`: what is to be closed with the
    runner, in order. With `overlap` stores begin as soon as groups of layers have run.

    A `lane` shares the device, weights, KV and requests with another runner, on a thread of its
    own. Whoever hands steps over then calls `take_in` of either runner with all of them.
    """

    def __init__(
        self,
        rank: int,
        phases: Mapping[Phase, RankPhase],
        device: torch.device,
        clock: DeviceClock,
        limits: StepLimits,
        *,
        links: StageLink | None = None,
        transfers: KVTransfers | None = None,
        relays: KVRelays | None = None,
        weights: PhaseWeights | None = None,
        recorder: Recorder | None = None,
        release: Sequence[Callable[[], None]] = (),
        overlap: bool = True,
        profile: bool = False,
        trace: bool = False,
        lane: Lane | None = None,
    ) -> None:
        self._rank = rank
        self._phases = phases
        self._lane = lane
        self._device = device
        self._links = links
        self._transfers = transfers
        self._relays = relays
        self._weights = weights
        self._release = release
        self._requests: dict[str, RequestState] = {} if lane is None else lane.requests
        self._phase: Phase = next(iter(phases))
        self._overlap = overlap
        self._computed: Mark | None = None  # the last layers of the present phase
        self._left: Mark | None = None  # those of the phase before, until this one has begun
        self._clock = clock
        self.steps_ahead = clock.steps_ahead
        self._buffers: InputBuffers | None = None
        self._graphs: DecodeGraphs | None = None
        clock.follow()  # weights, pools and decoders were made on the current stream
        with clock.scope():  # which is where buffers are filled
            self._make_buffers(phases[self._phase], limits, recorder)
        self._profile = StepClock(profile, device)
        self._trace = trace
        self._expert_loads = 0
        for phase in phases.values():
            phase.decoder.set_profiling(profile)

    def _make_buffers(
        self, phase: RankPhase, limits: StepLimits, recorder: Recorder | None
    ) -> None:
        if not self._clock.steps_ahead and not on_triton(phase.kv.pool):
            assert recorder is None, "graphs of what is not on a device"
            return
        self._buffers = InputBuffers(limits, phase.kv.block_size, self._device, self._clock)
        if recorder is not None:
            decoder = phase.decoder
            self._graphs = DecodeGraphs(
                recorder, self._buffers, limits, decoder.spec.hidden_size, decoder.dtype,
                self._device,
            )  # fmt: skip

    def needs_results(self, step: SchedulerOutput) -> bool:
        """Whether `step` can be begun only when those before it are finished: it changes the
        layout, or draws by tokens that are still being drawn."""
        return step.reshard or any(
            row.samples
            and (state := self._requests.get(row.request_id)) is not None
            and state.num_drawing > 0
            and state.sampling.needs_known_tokens
            for row in step.rows
        )

    @torch.inference_mode()
    def begin(self, step: SchedulerOutput) -> ModelStep:
        """Hand the rank's part of a step to the device. Waits for ranks that must run theirs first,
        where that is the host's business, and for weights of a new layout."""
        if self._lane is not None:
            self._lane.take(step.batches[0].compute_share)
        with self._clock.scope():
            return self._begin(step)

    def _begin(self, step: SchedulerOutput) -> ModelStep:
        report = StepReport(rank=self._rank, step_id=step.step_id)
        self._profile.begin()
        assert step.reshard == (step.phase != self._phase), f"step {step.step_id}: wrong phase"
        self._phase = step.phase
        if step.reshard:
            self._begin_phase(step.phase, report)
        if step.announce is not None and self._weights is not None:
            self._weights.prepare(step.announce)
        name = f"{step.phase} {step.step_id}" if self._trace and step.num_tokens else None
        row = "compute" if self._lane is None else self._lane.name
        begun = ModelStep(report, self._clock, self._profile, name, row)
        phase = self._phases[step.phase]
        if phase.following is None:
            report.token_ids = []
        if self._lane is None:
            self._apply(step, phase)
        for load in step.loads:
            self._load(load)
        if step.awaits:
            assert self._transfers is not None, "copies are waited for without a host tier"
            self._transfers.wait(step.awaits)
        at_once, by_batch = (
            split_stores(step) if self._overlap else ([], [[] for _ in step.batches])
        )
        for store in at_once:
            self._store(store)
        for batch, stores in zip(step.batches, by_batch, strict=True):
            self._run_batch(batch, step, phase, begun, stores)
        if not self._overlap:
            for store in step.stores:
                self._store(store)
        if step.relays:
            self._relay(step.relays)
        begun.close()
        if self._profile.on:
            report.expert_loads = self._take_expert_loads()
        if self._weights is not None:
            report.weight_bytes = self._weights.take_moved()
            if self._trace:
                report.spans += [("weights", *span) for span in self._weights.take_spans()]
        return begun

    def _take_expert_loads(self) -> int:
        """Since the last call. On a GPU this waits for the step."""
        before, self._expert_loads = self._expert_loads, expert_loads(self._phases.values())
        return self._expert_loads - before

    def _begin_phase(self, phase: Phase, report: StepReport) -> None:
        self._left, self._computed = self._computed, None
        if self._weights is None:
            return
        began_s = time.perf_counter()
        self._weights.begin(phase)
        ended_s = time.perf_counter()
        report.reshard_s = ended_s - began_s
        self._profile.mark("reshard")
        if self._trace:
            report.spans.append(("compute", f"to {phase}", began_s, ended_s))

    def inspect(self) -> tuple[Phase, dict[str, str], int]:
        """(present phase, hashes of its parameters by name, bytes of weights and pools)."""
        held = {}
        for phase in self._phases.values():
            for tensor in (phase.kv.pool, *phase.params.values()):
                storage = tensor.untyped_storage()
                held[storage.data_ptr()] = storage.nbytes()
        if self._weights is not None:
            self._weights.finish()
        return self._phase, param_hashes(self._phases[self._phase].params), sum(held.values())

    @property
    def num_copies(self) -> int:
        """Stores and loads under way. For any thread."""
        transfers = self._transfers
        return 0 if transfers is None else transfers.num_under_way

    def close(self) -> None:
        """End copies, leave the group, drop weights and pools. Safe to call twice."""
        for release in self._release:
            release()
        self._release = ()
        self._phases = {}
        self._links = self._transfers = self._relays = self._weights = None
        self._buffers = self._graphs = None

    @property
    def phases(self) -> Mapping[Phase, RankPhase]:
        return self._phases

    # -- state ------------------------------------------------------------------------------------

    @torch.inference_mode()
    def take_in(self, step: SchedulerOutput) -> None:
        """What a step of either lane says of requests and blocks: in the order of all steps, for
        any thread, one at a time. Those that its blocks belonged to have no step in flight."""
        phase = self._phases.get(step.phase)
        if phase is None:
            return  # closed, as a step has failed
        # Not on a lane's stream: it changes with the lane's share, on a thread of its own.
        self._apply(step, phase)
        if self._device.type == "cuda" and (step.poison_blocks or step.block_copies):
            now(self._device).synchronize()  # either lane may be the first to use them

    def _apply(self, step: SchedulerOutput, phase: RankPhase) -> None:
        take_in(self._requests, step)
        if step.poison_blocks:
            phase.kv.poison(step.poison_blocks)
        if step.block_copies:
            phase.kv.copy_blocks(step.block_copies)

    def _load(self, load: Load) -> None:
        assert self._transfers is not None, "a load without a host tier"
        phase = self._phases["decode"]
        self._requests[load.request_id].blocks = array("i", load.blocks)
        self._transfers.load(
            load.transfer_id, phase.kv, phase.ranges.layers, phase.ranges.kv_heads,
            phase.ranges.kv_heads, load.blocks, load.tier_blocks, load.num_tokens,
            load.after,
        )  # fmt: skip

    def _store(self, store: Store, part: Range | None = None) -> None:
        """`part`: these layers only."""
        assert self._transfers is not None, "a store without a host tier"
        phase = self._phases[store.phase]
        self._requests[store.request_id].blocks = array("i")
        self._transfers.store(
            store.transfer_id, phase.kv, phase.ranges.layers, phase.stored_heads,
            phase.ranges.kv_heads, store.blocks, store.tier_blocks, store.num_tokens, part=part,
        )  # fmt: skip

    def _relay(self, relays: Sequence[Relay]) -> None:
        assert self._relays is not None, "a relay where none was announced"
        for relay in relays:
            self._requests[relay.request_id].blocks = array("i", relay.to_blocks)
        self._relays.begin(
            [BlockRelay(one.transfer_id, one.blocks, one.to_blocks) for one in relays]
        )

    # -- rows -------------------------------------------------------------------------------------

    def _run_batch(
        self, batch: Batch, step: SchedulerOutput, phase: RankPhase, begun: ModelStep,
        stores: Sequence[Store],
    ) -> None:  # fmt: skip
        """`stores` are those of its requests."""
        if not batch.rows:
            return
        layered = LayeredBatch(batch.rows, phase.ranges.layers, self._requests)
        block_size = phase.kv.block_size
        first = layered.gather(layered.cuts[0], block_size) if layered.cuts else None
        drawing = [self._requests[row.request_id] for row in batch.rows if row.samples]
        wait = None
        if self._weights is not None and self._weights.is_changing:
            wait = partial(self._wait_for_weights, begun)
        between = BetweenLayers(phase.ranges.layers, wait, stores, self._store)
        draw: PendingDraw | None
        graphs = self._graphs if wait is None and layered.is_uncut else None
        if graphs is not None and first is not None and graphs.suits(first, phase):
            self._enter(begun)
            draw = self._replay(graphs, first, drawing, step, phase)
        else:
            draw = self._run_layers(layered, first, drawing, phase, begun, between)
        between.finish()
        self._computed = self._clock.mark()
        if draw is not None:
            if self._buffers is not None:
                at = begun.num_drawn
                self._buffers.drawn[at : at + len(drawing)].copy_(draw.ids_S)
            begun.add(drawing, draw)
            self._profile.mark("sampling")
        self._profile.split("decoder", phase.decoder.take_profile())

    def _wait_for_weights(self, begun: ModelStep, layer: int) -> None:
        assert self._weights is not None, "weights that stay do not change"
        began = self._clock.mark()
        self._weights.wait(layer)
        begun.waited(began, "weights")

    def _enter(self, begun: ModelStep) -> None:
        """Layers begin to run: the first of a phase?"""
        if self._left is not None:
            begun.entered(self._left)
            self._left = None

    def _replay(
        self,
        graphs: DecodeGraphs,
        rows: RowArrays,
        drawing: list[RequestState],
        step: SchedulerOutput,
        phase: RankPhase,
    ) -> PendingDraw:
        """A step of one token per row; the first after a change of layout without a graph."""
        states = [state.sampling for state in drawing]
        if all(state.takes_the_highest for state in states):
            value_S, id_S = graphs.highest(step.phase, phase, rows, eager=step.reshard)
            self._profile.mark("decoder")
            return begin_draw_highest(value_S, id_S, states, phase.comm)
        hidden_SH = graphs.hidden(step.phase, phase, rows, eager=step.reshard)
        return self._draw(hidden_SH, states, phase)

    def _run_layers(
        self, layered: LayeredBatch, first: RowArrays | None, drawing: list[RequestState],
        phase: RankPhase, begun: ModelStep, between: BetweenLayers,
    ) -> PendingDraw | None:  # fmt: skip
        """Draws on the last stage, where a row samples. `first`: rows of the first cut."""
        decoder, layers = phase.decoder, phase.ranges.layers
        last_SH = None
        for cut in layered.cuts:
            rows, first = first or layered.gather(cut, phase.kv.block_size), None
            inputs = as_tensors(rows) if self._buffers is None else self._buffers.upload(rows)
            self._profile.mark("inputs")
            if cut.layer_start > layers.start:
                hidden_TH = layered.take(cut.bands)
            elif phase.previous is None:
                hidden_TH = decoder.embed(inputs.token_ids_T)
            else:
                hidden_TH = self._receive(inputs, phase, begun)
            between(cut.layer_start)
            self._enter(begun)
            is_last = phase.following is None and cut.layer_stop == layers.stop
            hidden_TH = decoder.run_layers(
                hidden_TH, inputs, phase.kv, cut.layer_start, cut.layer_stop,
                only_sampled=is_last, before=between if between.is_needed else None,
            )  # fmt: skip
            self._profile.mark("decoder")
            if is_last:
                last_SH = hidden_TH
            else:
                layered.put(cut.bands, hidden_TH)
        if phase.following is not None:
            self._hand_over(layered, phase.following)
        layered.keep()
        if last_SH is None or not drawing:
            return None
        return self._draw(last_SH, [state.sampling for state in drawing], phase)

    def _hand_over(self, layered: LayeredBatch, following: int) -> None:
        assert self._links is not None, "a stage without links"
        bands = layered.handed_over()
        if bands:
            self._links.send(layered.take(bands), following)
            self._profile.mark("hand-over")

    def _receive(self, inputs: StepInputs, phase: RankPhase, begun: ModelStep) -> torch.Tensor:
        assert self._links is not None, "a stage without links"
        assert phase.previous is not None, "the first stage receives nothing"
        decoder, began = phase.decoder, self._clock.mark()
        hidden_TH = self._links.recv(
            (len(inputs.positions_T), decoder.spec.hidden_size), decoder.dtype, phase.previous
        )
        begun.waited(began, "stage")
        self._profile.mark("waiting for a stage")
        return hidden_TH

    def _draw(
        self, hidden_SH: torch.Tensor, states: list[SamplingState], phase: RankPhase
    ) -> PendingDraw:
        decoder, comm = phase.decoder, phase.comm
        every_S = torch.arange(len(states), device=self._device)
        if all(state.takes_the_highest for state in states):
            value_S, id_S = decoder.highest(hidden_SH, every_S)
            self._profile.mark("decoder")
            return begin_draw_highest(value_S, id_S, states, comm)
        logits_SV = decoder.logits(hidden_SH, every_S)
        self._profile.mark("decoder")
        return begin_draw(logits_SV, states, comm, decoder.spec.vocab_size)
