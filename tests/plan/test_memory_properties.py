"""Any model in any layouts on devices of any size: all parts of every rank fit, or the error says
to the byte what is missing."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from seesaw.config import EngineConfig
from seesaw.errors import DoesNotFit
from seesaw.families.spec import ModelSpec
from seesaw.layout import ParallelLayout, PlainFormat, RankRanges, plan_arena, plan_reshard
from seesaw.layout.arena import layer_bytes
from seesaw.layout.kv import TierShape
from seesaw.plan.choice import LayoutChoice
from seesaw.plan.machine_files import read_machines
from seesaw.plan.memory import MemoryPlan, Space, plan_memory
from seesaw.plan.workspace import workspace_bytes
from tests.layout.models import all_ranges, make_model, models_and_pairs

TIB = 2**40
ROOMY = {kind: Space(kind, TIB, TIB, TIB, TIB) for kind in ("cuda", "cpu")}


@dataclass(frozen=True)
class Case:
    """`uses_tier` even where the layouts are equal."""

    spec: ModelSpec
    prefill: ParallelLayout
    decode: ParallelLayout
    uses_tier: bool
    kind: str
    settings: dict[str, Any]
    element_bytes: int = 2
    kv_element_bytes: int | None = None

    def plan(self, space: Space | None = None, **settings: Any) -> MemoryPlan:
        config = EngineConfig(
            model="m",
            policy="seesaw" if self.uses_tier else "auto",
            **{**self.settings, **settings},
        )
        return plan_memory(
            config,
            self.spec,
            self.element_bytes,
            space or ROOMY[self.kind],
            LayoutChoice(self.prefill, self.decode, "drawn"),
            self.uses_tier,
            kv_element_bytes=self.kv_element_bytes,
        )

    def missing(self, space: Space | None = None, **settings: Any) -> int:
        """0 where all fits."""
        try:
            self.plan(space, **settings)
        except DoesNotFit as error:
            missing = error.missing_bytes
        else:
            return 0
        assert missing > 0, "an error that says nothing is missing"
        return missing


@st.composite
def cases(draw: st.DrawFn) -> Case:
    spec, prefill, decode = draw(models_and_pairs())
    positions = draw(st.sampled_from([16, 100, 4000]))
    block_size = draw(st.sampled_from([16, 32]))
    config: dict[str, Any] = {
        "max_num_seqs": draw(st.sampled_from([1, 7, 10**6])),
        "max_num_batched_tokens": draw(st.sampled_from([1, 33, 512])),
        "max_model_len": draw(st.none() | st.integers(2, positions)),
        "block_size": block_size,
        "tier_block_size": block_size * draw(st.integers(1, 3)),
        "reshard_from": draw(st.sampled_from(["auto", "host", "peers"])),
        "reload": draw(st.sampled_from(["missing", "all"])),
    }
    replicas = draw(st.sampled_from([1, 1, 2]))
    uses_tier = prefill != decode or draw(st.booleans())
    config["kv_path"] = draw(st.sampled_from(["auto", "tier", "peers"] if uses_tier else ["auto"]))
    return Case(
        spec=replace(spec, max_position_embeddings=positions),
        prefill=replace(prefill, dp=replicas),
        decode=replace(decode, dp=replicas),
        uses_tier=uses_tier,
        kind=draw(st.sampled_from(["cuda", "cpu"])),
        settings=config,
        element_bytes=draw(st.sampled_from([2, 4])),
        kv_element_bytes=draw(st.sampled_from([None, 1])),
    )


def relays(case: Case) -> bool:
    """Asked for, or on GPUs that take weights from each other."""
    path, source = case.settings["kv_path"], case.settings["reshard_from"]
    return path == "peers" or (path == "auto" and case.kind == "cuda" and source != "host")


def held_aside(case: Case, fmt: PlainFormat, held: list[list[RankRanges]], rank: int) -> int:
    """A layer where ranks send each other weights, else what moves within the rank's arena."""
    source = case.settings["reshard_from"]
    if source == "peers" or (source == "auto" and case.kind == "cuda"):
        return layer_bytes(fmt)
    arenas = [plan_arena(fmt, held, index) for index in range(len(held[0]))]
    plans = [
        plan_reshard(
            fmt, held[old], held[new], arenas, old_index=old, new_index=new,
            reload=case.settings["reload"], peers=False,
        )
        for old, new in ((0, 1), (1, 0))
    ]  # fmt: skip
    return max(plan.snapshot_bytes(rank) for plan in plans)


def parts_by_rank(case: Case, made: MemoryPlan) -> list[int]:
    """What each rank holds, added up anew."""
    spec, size = case.spec, case.element_bytes
    fmt = PlainFormat(spec, size)
    layouts = list(dict.fromkeys([case.prefill.replica, case.decode.replica]))
    held = [all_ranges(layout, spec) for layout in layouts]
    parts = []
    for rank in range(layouts[0].num_ranks):
        own = [ranges[rank] for ranges in held]
        arena = spec.num_parameters * size
        if made.num_ranks > 1:
            arena = plan_arena(fmt, held, rank).nbytes
        blocks = [
            2 * one.layers.size * one.kv_heads.size * spec.head_dim * made.block_size
            * (case.kv_element_bytes or size)
            for one in own
        ]  # fmt: skip
        work = max(
            workspace_bytes(
                spec,
                num_tokens=case.settings["max_num_batched_tokens"],
                num_sampled=case.settings["max_num_seqs"],
                max_model_len=case.settings["max_model_len"] or spec.max_position_embeddings,
                block_size=made.block_size,
                element_bytes=size,
                kind=case.kind,
                ranges=one,
            )
            for one in own
        )
        if len(own) > 1:
            work += held_aside(case, fmt, held, rank)
        if case.uses_tier:
            part = max(blocks) * case.settings["tier_block_size"] // made.block_size
            # three batches each way on a GPU; on a CPU one part, twice
            work += 6 * max(16 * 2**20, part) if case.kind == "cuda" else 2 * part
            if relays(case):
                aside = max(16 * 2**20, blocks[0] + blocks[-1])
                work += aside if case.kind == "cuda" else 2 * aside
        kv = made.num_blocks * blocks[-1] + made.prefill_blocks * blocks[0]
        parts.append(arena + work + kv)
    return parts


@given(cases(), st.data())
def test_parts_fit_every_rank_or_what_is_missing_is_told_to_the_byte(case, data) -> None:
    need = 1 + case.missing(device_memory="1")
    least = case.plan(device_memory=str(need))
    assert max(parts_by_rank(case, least)) == need, "the least KV leaves nothing over"
    assert case.missing(device_memory=str(need - 1)) == 1
    # Whatever the size, and not only next to the least: more never stops fitting.
    kv_bytes = need - least.arena_bytes - least.work_bytes
    size = need + data.draw(st.integers(-need + 1, 12 * kv_bytes), "more")
    assert case.missing(device_memory=str(size)) == max(0, need - size)
    if size >= need:
        made = case.plan(device_memory=str(size))
        assert max(parts_by_rank(case, made)) <= size
        wanted = case.settings["max_model_len"] or 2
        assert wanted <= made.max_model_len <= case.spec.max_position_embeddings
        assert made.max_model_len <= made.num_blocks * made.block_size
        assert made.num_blocks >= least.num_blocks


@given(cases(), st.integers(0, 10**9))
def test_what_the_host_lacks_is_told_to_the_byte(case, more) -> None:
    need = 1 + case.missing(device_memory="1")
    device = str(need)
    block_bytes = TierShape.of(
        case.spec, 1, case.settings["tier_block_size"], case.kv_element_bytes or case.element_bytes
    ).block_bytes
    dp, config = case.decode.dp, dict(case.settings)
    blocks = -(-(config["max_model_len"] or 1) // config["tier_block_size"])
    tier = {"host_kv_memory": str(dp * blocks * block_bytes)} if case.uses_tier else {}
    made = case.plan(device_memory=device, **tier)
    on_host = made.image_bytes + (need * made.num_ranks if case.kind == "cpu" else 0)
    if case.uses_tier:
        assert made.tier_bytes == dp * blocks * block_bytes
        less = {"host_kv_memory": str(dp * blocks * block_bytes - 1)}
        assert case.missing(device_memory=device, **less) == 1
        on_host += made.tier_bytes
    for free in (on_host - 1, on_host, on_host + more):
        device_bytes = free if case.kind == "cpu" else TIB
        space = Space(case.kind, device_bytes, device_bytes, free, free)
        short = case.missing(space, device_memory=device, **tier)
        told = made.image_bytes or tier or case.kind == "cpu"
        assert short == (1 if free < on_host and told else 0)


def test_the_prefill_pool_leaves_answers_their_least() -> None:
    """Eight ranks share one KV head, so that a block of theirs takes 8 times one of a stage."""
    case = Case(
        make_model(layers=8, query_heads=8, kv_heads=1), ParallelLayout(pp=8), ParallelLayout(tp=8),
        True, "cuda", {"max_model_len": 128, "max_num_batched_tokens": 1024},
    )  # fmt: skip
    need = 1 + case.missing(device_memory="1")
    made = case.plan(device_memory=str(need))
    assert made.block_bytes == 8 * made.prefill_block_bytes
    assert made.num_blocks == made.prefill_blocks == 128 // 32


@pytest.mark.parametrize("tier", [False, True])
def test_kv_in_fewer_bytes_makes_blocks_smaller_and_nothing_else(tier: bool) -> None:
    decode = ParallelLayout(tp=2)
    prefill = ParallelLayout(pp=2) if tier else decode
    plain = Case(make_model(), prefill, decode, tier, "cuda", {"device_memory": "1GiB"})
    small = replace(plain, kv_element_bytes=1)
    one, other = plain.plan(), small.plan()
    assert other.block_bytes * 2 == one.block_bytes
    assert other.prefill_block_bytes * 2 == one.prefill_block_bytes
    assert other.arena_bytes == one.arena_bytes
    assert other.image_bytes == one.image_bytes
    if tier:
        assert other.tier_blocks in (2 * one.tier_blocks, 2 * one.tier_blocks + 1)


@pytest.mark.parametrize("triton", [True, False])
def test_experts_take_work_space_for_each_that_a_token_chooses(triton: bool) -> None:
    def work_bytes(layout: str = "tp1", **features: int) -> int:
        sizes = {"num_experts": 16, "num_experts_per_tok": 2, "moe_intermediate_size": 4096}
        spec = make_model(sparse=True, **{**sizes, **features})
        ranges = all_ranges(ParallelLayout.parse(layout), spec)[0]
        return workspace_bytes(
            spec, num_tokens=16384, num_sampled=1, max_model_len=128, block_size=32,
            element_bytes=2, kind="cuda", ranges=ranges, triton=triton,
        )  # fmt: skip

    four, eight = work_bytes(num_experts_per_tok=4), work_bytes(num_experts_per_tok=8)
    assert eight - four >= 4 * 16384 * (4096 + 64) * 2, "gated rows, and rows as wide as x"
    two = work_bytes("tp8")
    assert two == work_bytes(), "all tokens may choose the two experts of one rank"
    more = work_bytes("tp8", num_experts_per_tok=4) - two
    assert more < 2 * 16384 * 4096 * 2, "a rank with two experts runs two"
    assert work_bytes(moe_intermediate_size=8192) > two


def test_the_smallest_device_of_a_machine_counts() -> None:
    (mixed,) = read_machines("4xl4+4xt4")
    l4, t4 = mixed.devices[0].memory_bytes, mixed.devices[-1].memory_bytes
    assert t4 < l4
    host = mixed.host_memory_bytes
    assert Space.of(mixed) == Space("cuda", t4, t4, host, host)
    assert Space.of(mixed.first(4)) == Space("cuda", l4, l4, host, host)
    cpu = replace(mixed, devices=(replace(mixed.devices[0], kind="cpu"),))
    assert Space.of(cpu) == Space("cpu", host, host, host, host)
