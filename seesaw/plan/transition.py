"""What a change of layout moves on each rank, by where it comes from, and what of that is seen.

The rates that bytes move at are the cost model's. `planned_bytes` follows the plan that the
engine carries out, `missing_bytes` is set arithmetic on one layer: a hundred times as fast, and
never more.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple, Self

from seesaw.config import EngineConfig, ReshardFrom
from seesaw.families.spec import ModelSpec
from seesaw.layout.format import WeightFormat
from seesaw.layout.parallel import ParallelLayout
from seesaw.layout.plan import Reload
from seesaw.layout.ranges import RankRanges, rank_ranges
from seesaw.layout.reshard import Source
from seesaw.layout.spans import moves, moving_bytes, shared, spans
from seesaw.plan.cost_model import CostModel
from seesaw.plan.machine import Kind, Machine
from seesaw.plan.weight_bytes import from_peers, reload_of, weight_bytes, weight_format

Moved = Sequence[Mapping[Source, int]]
"""By rank."""


class Landing(NamedTuple):
    """When a rank has the weights of a new layout: those of the first round at `first_s`, all at
    `last_s`. `behind` is the share of its first step that is computed after it has needed the last.
    """

    first_s: float
    last_s: float
    behind: float

    def after(self, began_s: float) -> Self:
        """Of a change that begins then."""
        return self._replace(first_s=began_s + self.first_s, last_s=began_s + self.last_s)


def run_while_landing(
    landings: Sequence[Landing], begin_s: float, seconds: float
) -> tuple[float, float]:
    """When a stage begins and ends the first step of a new layout, which it could begin at
    `begin_s` and computes in `seconds`; `landings` of its ranks. Rounds come at even distances and
    are needed so, hence none but the first and the last can be what is waited for."""
    for one in landings:
        begin_s = max(begin_s, one.first_s)
    end_s = begin_s + seconds
    for one in landings:
        end_s = max(end_s, one.last_s + one.behind * seconds)
    return begin_s, end_s


def landings(
    costs: CostModel, moved: Moved, old: ParallelLayout, new: ParallelLayout,
    config: EngineConfig,
) -> list[Landing]:  # fmt: skip
    """Of each rank of a replica, for a change that begins at 0.

    Without `config.overlap` nothing is computed before all weights have come. With it layers are
    computed as they come, in rounds of one layer of each stage of the layout that has more stages
    (docs/resharding.md), or where all come from the host of one layer. On CPU the core that copies
    cannot compute meanwhile: steps begin earlier, and end when they would.
    """
    spec, reloads_all = costs.spec, config.reload == "all"
    stages = max(old, new, key=lambda layout: layout.pp)
    firsts = range(0, stages.num_ranks, stages.tp)
    most = max(rank_ranges(stages, spec, rank).layers.size for rank in firsts)
    found = []
    for rank, sources in enumerate(moved):
        if not config.overlap:
            seconds = costs.transition_s(rank, sources)
            found.append(Landing(seconds, seconds, 1.0))
            continue
        layers = rank_ranges(new, spec, rank).layers.size
        rounds = layers if reloads_all else min(layers, most)
        seconds = costs.transition_s(rank, sources, at_once=costs.has_copy_engines)
        behind = (layers - rounds + 1) / layers if costs.has_copy_engines else 1.0
        found.append(Landing(seconds / rounds, seconds, behind))
    return found


def visible_s(landed: Sequence[Landing], stages_s: Sequence[float], send_s: float) -> float:
    """By how much later the first step is through its stages than it were with all weights in
    place. `stages_s`: seconds that each computes it."""
    tp = len(landed) // len(stages_s)
    without_s = with_s = -send_s
    for stage, seconds in enumerate(stages_s):
        of_stage = landed[stage * tp : (stage + 1) * tp]
        without_s += send_s + seconds
        with_s = run_while_landing(of_stage, with_s + send_s, seconds)[1]
    return with_s - without_s


def faster_source(config: EngineConfig, machine: Machine) -> ReshardFrom:
    """Where weights should come from: as `config` says, or from peers where their links are faster
    than the host's. What comes from the host also takes less room on the devices."""
    if config.reshard_from != "auto":
        return config.reshard_from
    loads = min(device.rates.load_bytes_per_s for device in machine.devices)
    if machine.host_bytes_per_s is not None:
        loads = min(loads, machine.host_bytes_per_s / len(machine.devices))
    is_faster = machine.kind == "cuda" and machine.links.peer_bytes_per_s > loads
    return "peers" if is_faster else "host"


def relays_kv(config: EngineConfig, kind: Kind) -> bool:
    """Whether KV that will run at once goes from rank to rank: as `config` says, or on GPUs that
    take weights from each other too. Ranks on CPU share the memory of the tier, which nothing
    between them is faster than."""
    if config.kv_path == "auto":
        return kind == "cuda" and from_peers(config, kind)
    return config.kv_path == "peers"


def planned_bytes(
    spec: ModelSpec, element_bytes: int, prefill: ParallelLayout, decode: ParallelLayout,
    config: EngineConfig, kind: Kind, native: bool = False,
) -> tuple[Moved, Moved]:  # fmt: skip
    """To `decode`, and back to `prefill`; layouts of one replica. `native`: see `weight_format`."""
    name = weight_format(config, spec, (prefill, decode), kind, native)
    weights = weight_bytes(spec, element_bytes, name)
    to_decode, to_prefill = weights.changes(
        (prefill, decode), reload_of(config, name), from_peers(config, kind)
    )
    return (
        [rank.bytes_by_source for rank in to_decode],
        [rank.bytes_by_source for rank in to_prefill],
    )


def missing_bytes(
    spec: ModelSpec, element_bytes: int, prefill: ParallelLayout, decode: ParallelLayout,
    config: EngineConfig, kind: Kind, native: bool = False,
) -> tuple[Moved, Moved]:  # fmt: skip
    """The same, were every byte that a rank has already in its place."""
    name = weight_format(config, spec, (prefill, decode), kind, native)
    reload, weights = reload_of(config, name), weight_bytes(spec, element_bytes, name)
    fmt, sides = weights.format, [weights.ranges(prefill), weights.ranges(decode)]
    source: Source = "peer" if from_peers(config, kind) else "host"
    if reload == "all":
        source = "host"
    found = []
    for old, new in ((0, 1), (1, 0)):
        moved: list[Mapping[Source, int]] = []
        for before, after in zip(sides[old], sides[new], strict=True):
            moved.append({source: _missing(fmt, before, after, reload)})
        found.append(moved)
    return found[0], found[1]


def _missing(fmt: WeightFormat, before: RankRanges, after: RankRanges, reload: Reload) -> int:
    """Bytes that a rank takes on its way from one to the other."""
    if reload == "none":
        return 0
    kept = 0 if reload == "all" else _kept(fmt, before, after)
    return moving_bytes(fmt, after) - kept


def _kept(fmt: WeightFormat, before: RankRanges, after: RankRanges) -> int:
    """Those of them that it held before."""
    layers = before.layers.overlap(after.layers)
    if layers.size == 0:
        return 0
    of_layer = sum(
        part.size
        for param in fmt.params
        if param.layer == layers.start and moves(param)
        for part in shared(spans(fmt, param, after), spans(fmt, param, before))
    )
    return of_layer * layers.size
