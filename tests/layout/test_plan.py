"""Plans run over bytes: after any of them an arena equals a fresh load of the new layout."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from seesaw.families.spec import ModelSpec
from seesaw.layout import (
    PanelFormat,
    ParallelLayout,
    PlainFormat,
    RankRanges,
    ReshardPlan,
    plan_arena,
    plan_reshard,
)
from seesaw.layout.format import StoredParam
from tests.layout.models import (
    FormatCase,
    all_ranges,
    formats_and_pairs,
    make_model,
    models_and_pairs,
)
from tests.layout.test_arena import (
    assert_disjoint,
    layer_bytes,
    moves,
    resident_bytes,
    shard_bytes,
    size_on,
)

Case = tuple[ModelSpec, ParallelLayout, ParallelLayout]


class Replica:
    """The ranks of one replica as byte arrays, and the image they load from."""

    def __init__(
        self,
        spec: ModelSpec,
        pair: Sequence[ParallelLayout],
        element_bytes: int,
        kind: type[PlainFormat | PanelFormat] = PlainFormat,
    ) -> None:
        self.fmt = kind(spec, element_bytes)
        self.layouts = [all_ranges(layout, spec) for layout in pair]
        self.num_ranks = pair[0].num_ranks
        self.plans = [plan_arena(self.fmt, self.layouts, rank) for rank in range(self.num_ranks)]
        self.image = random.Random(0).randbytes(self.fmt.image_bytes)
        self.arenas = [bytearray(b"\xee" * plan.nbytes) for plan in self.plans]

    def load(self, index: int) -> ReshardPlan:
        return plan_reshard(
            self.fmt, None, self.layouts[index], self.plans, old_index=index, new_index=index
        )

    def change(
        self, old: int, new: int, *, peers: bool = True, reload: str = "missing"
    ) -> ReshardPlan:
        return plan_reshard(
            self.fmt, self.layouts[old], self.layouts[new], self.plans,
            old_index=old, new_index=new, peers=peers, reload=reload,  # type: ignore[arg-type]
        )  # fmt: skip

    def run(self, plan: ReshardPlan) -> None:
        """Round by round: read all sources, then write."""
        for round in plan.rounds:
            assert len(round.pieces) == self.num_ranks
            found = [
                (rank, piece.target, bytes(self._source(piece)[piece.offset :][: piece.size]))
                for rank, pieces in enumerate(round.pieces)
                for piece in pieces
                if piece.source != "resident"
            ]
            for rank, target, content in found:
                self.arenas[rank][target : target + len(content)] = content

    def _source(self, piece) -> bytes | bytearray:  # type: ignore[no-untyped-def]
        return self.image if piece.source == "host" else self.arenas[piece.rank]

    def assert_holds(self, index: int) -> None:
        """Every tensor of a layout, and what stays for both, has the bytes of the image."""
        for rank, plan in enumerate(self.plans):
            for param in self.fmt.params:
                start = plan.offsets[index].get(param.name, 0)
                wanted = b"".join(
                    self.of_image(param, run.start, run.size)
                    for run in self.fmt.runs(param, self.layouts[index][rank])
                )
                assert self.arenas[rank][start : start + len(wanted)] == wanted, (rank, param)
            for found in plan.residents:
                param = next(p for p in self.fmt.params if p.name == found.param)
                held = self.arenas[rank][found.offset : found.offset + found.run.size]
                assert held == self.of_image(param, *found.run), (rank, param)

    def of_image(self, param: StoredParam, start: int, size: int) -> bytes:
        return self.image[self.fmt.image_offsets[param.name] + start :][:size]

    def assert_accounted(self, plan: ReshardPlan, index: int, *, residents: bool) -> None:
        """The targets of each rank are the bytes of its tensors, each once."""
        for rank, arena in enumerate(self.plans):
            targets = [
                (piece.target, piece.target + piece.size)
                for round in plan.rounds
                for piece in round.pieces[rank]
            ]
            assert_disjoint(targets, arena.nbytes)
            tensors = [
                (arena.offsets[index][p.name], size_on(self.fmt, p, self.layouts[index][rank]))
                for p in self.fmt.params
                if moves(p) and p.name in arena.offsets[index]
            ]
            if residents:
                tensors += [(found.offset, found.run.size) for found in arena.residents]
            taken = {byte for start, stop in targets for byte in range(start, stop)}
            assert taken == {byte for start, size in tensors for byte in range(start, start + size)}


@settings(max_examples=90)
@given(formats_and_pairs(), st.sampled_from([2, 4]), st.booleans())
def test_twenty_changes_back_and_forth_equal_fresh_loads(
    case: FormatCase, element_bytes: int, peers: bool
) -> None:
    kind, spec, *pair = case
    replica = Replica(spec, pair, element_bytes, kind)
    first = replica.load(0)
    replica.assert_accounted(first, 0, residents=True)
    assert set(first.bytes_by_source()) >= {"host"}
    replica.run(first)
    replica.assert_holds(0)
    there, back = replica.change(0, 1, peers=peers), replica.change(1, 0, peers=peers)
    assert there == replica.change(0, 1, peers=peers)
    replica.assert_accounted(there, 1, residents=False)
    replica.assert_accounted(back, 0, residents=False)
    for _ in range(10):
        replica.run(there)
        replica.assert_holds(1)
        replica.run(back)
        replica.assert_holds(0)


@given(models_and_pairs(), st.integers(0, 1))
def test_reload_all_moves_everything_from_the_host_layer_by_layer(case: Case, new: int) -> None:
    spec, *pair = case
    replica = Replica(spec, pair, 2)
    replica.run(replica.load(1 - new))
    plan = replica.change(1 - new, new, reload="all")
    replica.assert_accounted(plan, new, residents=False)
    assert [round.layers for round in plan.rounds] == [(i,) for i in range(spec.num_hidden_layers)]
    moving = [
        size_on(replica.fmt, param, ranges)
        for ranges in replica.layouts[new]
        for param in replica.fmt.params
        if moves(param)
    ]
    assert plan.bytes_by_source() == {"resident": 0, "copy": 0, "peer": 0, "host": sum(moving)}
    replica.run(plan)
    replica.assert_holds(new)


@dataclass
class Expected:
    """Bytes by source and rank, counted byte by byte; `sent` is the most a rank may give."""

    by_rank: list[Counter[str]]
    read: Counter[int]


def count_bytes(replica: Replica, old: int, new: int, peers: bool) -> Expected:
    """Where each byte must come from, by sets of bytes and their addresses."""
    by_rank = [Counter[str]() for _ in range(replica.num_ranks)]
    read: Counter[int] = Counter()

    def addresses(param: StoredParam, index: int, rank: int) -> dict[int, int]:
        start = replica.plans[rank].offsets[index].get(param.name, 0)
        runs = replica.fmt.runs(param, replica.layouts[index][rank])
        held = [byte for run in runs for byte in range(run.start, run.start + run.size)]
        return {byte: start + at for at, byte in enumerate(held)}

    for param in filter(moves, replica.fmt.params):
        before = [addresses(param, old, rank) for rank in range(replica.num_ranks)]
        for rank in range(replica.num_ranks):
            for byte, address in addresses(param, new, rank).items():
                holders = [other for other, held in enumerate(before) if byte in held]
                if rank in holders:
                    source = "resident" if before[rank][byte] == address else "copy"
                    read[rank] += source == "copy"
                elif holders and peers:
                    source = "peer"
                    read.update(holders)
                else:
                    source = "host"
                by_rank[rank][source] += 1
    return Expected(by_rank, read)


@settings(max_examples=90)
@given(formats_and_pairs(), st.booleans())
def test_bytes_by_source_are_what_sets_of_bytes_say(case: FormatCase, peers: bool) -> None:
    kind, spec, *pair = case
    replica = Replica(spec, pair, 2, kind)
    plan = replica.change(0, 1, peers=peers)
    expected = count_bytes(replica, 0, 1, peers)
    limit = layer_bytes(replica.fmt)
    staging_may_bind = max(expected.read.values(), default=0) > limit
    totals: Counter[str] = Counter()
    for rank, wanted in enumerate(expected.by_rank):
        found = Counter(plan.bytes_by_source(rank))
        totals.update(found)
        assert found.total() == wanted.total()
        assert found["resident"] == wanted["resident"]
        if staging_may_bind:
            assert found["copy"] <= wanted["copy"]
            assert found["peer"] <= wanted["peer"]
        else:
            assert +found == +wanted
        assert plan.snapshot_bytes(rank) <= limit
    assert +totals == +Counter(plan.bytes_by_source())


@pytest.mark.parametrize("ranks", [2, 4, 8])
@pytest.mark.parametrize("to_tp", [True, False])
def test_even_models_keep_their_share_and_need_no_host(ranks: int, to_tp: bool) -> None:
    spec = make_model(layers=16, query_heads=16, kv_heads=8, mlp=128, attention_bias=True)
    replica = Replica(spec, [ParallelLayout(pp=ranks), ParallelLayout(tp=ranks)], 2)
    old, new = (0, 1) if to_tp else (1, 0)
    plan = replica.change(old, new, peers=True)
    for rank, ranges in enumerate(replica.layouts[new]):
        sizes = {p: size_on(replica.fmt, p, ranges) for p in replica.fmt.params if moves(p)}
        shard = sum(sizes.values())
        # Gate and up lie one behind the other on the rank: only one of them keeps its address.
        gate_up = sum(size for p, size in sizes.items() if p.cut == "gate_up")
        assert plan.bytes_by_source(rank) == {
            "resident": (shard - gate_up // 2) // ranks,
            "copy": gate_up // 2 // ranks,
            "peer": shard - shard // ranks,
            "host": 0,
        }
    for round in plan.rounds:
        assert len(round.layers) == ranks
        # One layer of each stage: those that swap places.
        assert len({layer % (16 // ranks) for layer in round.layers}) == 1


def test_equal_layouts_move_nothing() -> None:
    replica = Replica(make_model(layers=3), [ParallelLayout(tp=2), ParallelLayout(tp=2)], 4)
    found = replica.change(0, 1).bytes_by_source()
    assert found.pop("resident") > 0
    assert set(found.values()) == {0}


def test_ranks_that_share_a_kv_head_send_it_by_turns() -> None:
    """tp4 of 2 KV heads holds each K and V twice; both holders serve the stages of pp4."""
    spec = make_model(layers=8, query_heads=4, kv_heads=2, head_dim=8, mlp=128)
    replica = Replica(spec, [ParallelLayout(tp=4), ParallelLayout(pp=4)], 2)
    sent: Counter[int] = Counter()
    for round in replica.change(0, 1).rounds:
        for pieces in round.pieces:
            sent.update({p.rank: 0 for p in pieces if p.source == "peer"})
            for piece in pieces:
                if piece.source == "peer":
                    sent[piece.rank] += piece.size
    kv_head_bytes = 2 * spec.head_dim * spec.hidden_size * 2
    assert set(sent) == {0, 1, 2, 3}
    assert max(sent.values()) - min(sent.values()) <= kv_head_bytes


def test_28_heads_on_8_ranks() -> None:
    spec = make_model(layers=11, query_heads=28, kv_heads=4, mlp=101, vocab=77, head_dim=4)
    replica = Replica(spec, [ParallelLayout(pp=8), ParallelLayout(tp=8)], 2)
    replica.run(replica.load(0))
    for peers in (True, False):
        for old, new in ((0, 1), (1, 0)):
            plan = replica.change(old, new, peers=peers)
            replica.assert_accounted(plan, new, residents=False)
            replica.run(plan)
            replica.assert_holds(new)


def test_of_two_shared_parts_the_larger_keeps_its_address() -> None:
    """Ranks 1, 3, .. of tp8 hold 3 of 7 query heads and the K and V head behind them."""
    spec = make_model(layers=8, query_heads=28, kv_heads=4)
    replica = Replica(spec, [ParallelLayout(pp=8), ParallelLayout(tp=8)], 2)
    head_bytes = spec.head_dim * spec.hidden_size * 2
    resident = [
        sum(
            piece.size
            for round in replica.change(0, 1).rounds
            for piece in round.pieces[rank]
            if piece.source == "resident" and "qkv_proj" in piece.param
        )
        for rank in range(8)
    ]
    # 4 query heads stand apart from K and V; 3 stand before them, all one run of 5 heads.
    assert resident == [heads * head_bytes for heads in [4, 5] * 4]


def test_a_first_load_goes_layer_by_layer_from_the_host_alone() -> None:
    spec = make_model(layers=5, tie_word_embeddings=False)
    replica = Replica(spec, [ParallelLayout(pp=2), ParallelLayout(tp=2)], 2)
    plan = replica.load(0)
    assert [round.layers for round in plan.rounds] == [(), (0,), (1,), (2,), (3,), (4,), ()]
    sources = {p.source for round in plan.rounds for pieces in round.pieces for p in pieces}
    assert sources == {"host"}


REAL = {
    "SmolLM2-135M": make_model(
        layers=30, query_heads=9, kv_heads=3, mlp=1536, vocab=49152, head_dim=64, hidden=576
    ),
    "Qwen2.5-7B": make_model(
        layers=28, query_heads=28, kv_heads=4, mlp=18944, vocab=152064, head_dim=128, hidden=3584,
        attention_bias=True, tie_word_embeddings=False,
    ),
    "Qwen3-30B-A3B": make_model(
        layers=48, query_heads=32, kv_heads=4, vocab=151936, head_dim=128, hidden=2048,
        sparse=True, num_experts=128, num_experts_per_tok=8, moe_intermediate_size=768,
        qk_norm=True, tie_word_embeddings=False,
    ),
}  # fmt: skip


@pytest.mark.parametrize(
    ("model", "one", "other"),
    [
        ("SmolLM2-135M", "pp2", "tp2"),
        ("SmolLM2-135M", "pp3", "tp3"),
        ("SmolLM2-135M", "pp4", "tp4"),
        ("SmolLM2-135M", "tp2-pp2", "pp4"),
        ("SmolLM2-135M", "tp2-pp3", "tp3-pp2"),
        ("Qwen2.5-7B", "pp8", "tp8"),
        ("Qwen2.5-7B", "tp2-pp4", "tp8"),
        ("Qwen2.5-7B", "pp5", "tp5"),
        ("Qwen3-30B-A3B", "pp8", "tp8"),
        ("Qwen3-30B-A3B", "tp2-pp2", "tp4"),
        ("Qwen3-30B-A3B", "pp5", "tp5"),
    ],
)
def test_uneven_real_models_stay_within_bounds_and_waste_little(
    model: str, one: str, other: str
) -> None:
    """Sizes only. Arena and staging keep their bounds; what a rank holds already nearly all keeps
    its address, and peers have nearly all of the rest."""
    spec, fmt = REAL[model], PlainFormat(REAL[model], 2)
    layouts = [all_ranges(ParallelLayout.parse(text), spec) for text in (one, other)]
    arenas = [plan_arena(fmt, layouts, rank) for rank in range(len(layouts[0]))]
    for rank, arena in enumerate(arenas):
        shards = [shard_bytes(fmt, ranges[rank]) for ranges in layouts]
        assert arena.nbytes <= resident_bytes(arena) + max(shards) + layer_bytes(fmt)
    # Neither of two numbers of parts divides the other: slices overlap only in part.
    divides = other != "tp3-pp2"
    for old, new in ((0, 1), (1, 0)):
        plan = plan_reshard(
            fmt, layouts[old], layouts[new], arenas, old_index=old, new_index=new, peers=True
        )
        assert max(plan.snapshot_bytes(rank) for rank in range(len(arenas))) <= layer_bytes(fmt)
        found = plan.bytes_by_source()
        total = sum(found.values())
        assert found["host"] <= (0.07 if divides else 0.25) * total
        assert found["resident"] >= (0.95 if divides else 0.75) * best_resident(fmt, *layouts)


def best_resident(fmt: PlainFormat, one: Sequence[RankRanges], other: Sequence[RankRanges]) -> int:
    """Bytes that ranks hold in both layouts; of gate and up one part where the slices differ."""
    total = 0
    for param in filter(moves, fmt.params):
        for a, b in zip(one, other, strict=True):
            shared = sum(
                max(0, min(x.start + x.size, y.start + y.size) - max(x.start, y.start))
                for x in fmt.runs(param, a)
                for y in fmt.runs(param, b)
            )
            total += shared // 2 if param.cut == "gate_up" and a.mlp != b.mlp else shared
    return total
