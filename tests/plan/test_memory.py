"""The memory plan: exact parts of every device and of the host, and refusals with numbers before
anything is read."""

from __future__ import annotations

from typing import Any

import pytest

from seesaw.config import EngineConfig
from seesaw.errors import ConfigError, DoesNotFit
from seesaw.families.registry import spec_from_hf
from seesaw.families.spec import ModelSpec
from seesaw.layout import PanelFormat, ParallelLayout, PlainFormat, rank_ranges
from seesaw.layout.arena import layer_bytes, plan_arena
from seesaw.plan import device_memory
from seesaw.plan.choice import LayoutChoice
from seesaw.plan.memory import MemoryPlan, Space, plan_memory

MIB = 2**20
GIB = 2**30
KV_OF_TOKEN = 2 * 4 * 2 * 16 * 2  # k and v, layers, KV heads, head_dim, bf16


def spec(**changes: Any) -> ModelSpec:
    return spec_from_hf(
        {
            "architectures": ["LlamaForCausalLM"],
            "hidden_size": 64,
            "intermediate_size": 128,
            "num_hidden_layers": 4,
            "num_attention_heads": 4,
            "num_key_value_heads": 2,
            "head_dim": 16,
            "vocab_size": 5120,
            "max_position_embeddings": 4096,
            "rms_norm_eps": 1e-6,
            "tie_word_embeddings": True,
            "torch_dtype": "bfloat16",
            "hidden_act": "silu",
            "rope_theta": 10000.0,
            **changes,
        }
    )


HOST = Space("cpu", 4 * GIB, 8 * GIB, 4 * GIB, 8 * GIB)


@pytest.fixture(autouse=True)
def work_space(monkeypatch: pytest.MonkeyPatch) -> None:
    """3 MiB per step, whatever it computes."""
    monkeypatch.setattr(device_memory, "workspace_bytes", lambda spec, **sizes: 3 * MIB)


def plan(
    prefill: str = "tp1",
    decode: str | None = None,
    *,
    tier: bool | None = None,
    model: ModelSpec | None = None,
    **settings: Any,
) -> MemoryPlan:
    layouts = LayoutChoice(
        ParallelLayout.parse(prefill), ParallelLayout.parse(decode or prefill), "for the test"
    )
    if tier is None:
        tier = prefill != (decode or prefill)
    config = EngineConfig(model="m", policy="seesaw" if tier else "auto", **settings)
    return plan_memory(config, model or spec(), 2, HOST, layouts, tier)


WEIGHTS = spec().num_parameters * 2


# -- one device, one layout --------------------------------------------------------------------


def test_parts_fill_the_budget_and_never_exceed_it() -> None:
    made = plan(device_memory="8MiB", max_model_len=512)
    assert (made.arena_bytes, made.work_bytes) == (WEIGHTS, 3 * MIB)
    assert made.block_bytes == KV_OF_TOKEN * 32
    total = made.arena_bytes + made.work_bytes + made.kv_bytes
    assert made.budget_bytes - made.block_bytes < total <= made.budget_bytes
    assert (made.image_bytes, made.tier_bytes, made.prefill_blocks) == (0, 0, 0)


def test_no_more_blocks_than_requests_can_fill() -> None:
    assert plan(device_memory="1GiB", max_model_len=64, max_num_seqs=3).num_blocks == 3 * 2


def test_model_length_shrinks_to_what_fits_and_says_so() -> None:
    made = plan(device_memory="5MiB")
    assert made.max_model_len == made.num_blocks * 32 < 4096
    assert "as much as the KV memory holds" in made.describe()
    assert plan(device_memory="1GiB").max_model_len == 4096


def test_too_small_a_budget_is_refused_with_the_bytes_of_each_part() -> None:
    with pytest.raises(ConfigError) as error:
        plan(device_memory="4MiB", max_model_len=4096)
    weights = f"weights {WEIGHTS / 2**10:.2f} KiB"
    for words in ("4.00 MiB", weights, "work space 3.00 MiB", "4096 tokens 2.00 MiB", "Raise"):
        assert words in str(error.value)


def test_a_length_asked_for_must_fit_whole() -> None:
    assert plan(device_memory="5MiB").max_model_len < 4096
    with pytest.raises(ConfigError, match="too small"):
        plan(device_memory="5MiB", max_model_len=4096)


def test_positions_end_where_the_model_says() -> None:
    with pytest.raises(ConfigError, match=r"max_model_len=8192.*4096"):
        plan(max_model_len=8192)


def test_two_budgets_are_refused() -> None:
    with pytest.raises(ConfigError, match="both set the memory budget"):
        plan(device_memory="1GiB", gpu_memory_utilization=0.5)


# -- the budget of each device -----------------------------------------------------------------


@pytest.mark.parametrize(
    ("layout", "settings", "budget"),
    [
        ("tp1", {}, 2 * GIB),
        ("tp2-pp2", {}, GIB // 2),
        ("dp2-tp2", {}, GIB // 2),
        ("pp4", {"gpu_memory_utilization": 0.25}, GIB // 2),
        ("pp4", {"device_memory": "1GiB"}, GIB),
    ],
)
def test_ranks_share_the_machine(layout: str, settings: dict[str, Any], budget: int) -> None:
    # Their weights are in the host's memory once more, so 4 x 1 GiB leaves no room for that.
    if "device_memory" in settings:
        with pytest.raises(ConfigError, match=r"host needs .* beside 4.00 GiB"):
            plan(layout, **settings)
    else:
        assert plan(layout, **settings).budget_bytes == budget


def test_more_than_is_free_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"5.00 GiB, but only 4.00 GiB of 8.00 GiB are free"):
        plan(device_memory="5GiB")
    with pytest.raises(ConfigError, match=r"2.00 GiB on each of 3 ranks .* 4.00 GiB"):
        plan("pp3", device_memory="2GiB")
    with pytest.raises(ConfigError, match=r"is 7.20 GiB, but only"):
        plan(gpu_memory_utilization=0.9)


def test_default_budgets_of_gpus() -> None:
    gpu = Space("cuda", 20 * GIB, 24 * GIB, 4 * GIB, 8 * GIB)

    def budget(space: Space, num_ranks: int, **settings: Any) -> int:
        config = EngineConfig(model="m", **settings)
        return device_memory.device_budget(config, space, num_ranks)[0]

    assert budget(gpu, 4, device_memory="18GiB") == 18 * GIB
    assert budget(gpu, 4, gpu_memory_utilization=0.5) == 12 * GIB
    assert budget(Space("cuda", 22 * GIB, 24 * GIB, 0, 0), 4) == int(24 * GIB * 0.9)
    with pytest.raises(DoesNotFit, match=r"0.9 of the GPU's memory is 21.60 GiB") as error:
        budget(gpu, 2)
    assert error.value.missing_bytes == int(24 * GIB * 0.9) - 20 * GIB


# -- several ranks -----------------------------------------------------------------------------


def shard_bytes(layout: str, rank: int, model: ModelSpec) -> int:
    ranges = rank_ranges(ParallelLayout.parse(layout), model, rank)
    fmt = PlainFormat(model, 2)
    return sum(run.size for param in fmt.params for run in fmt.runs(param, ranges))


@pytest.mark.parametrize("layout", ["tp2", "tp3", "tp4", "pp3", "tp2-pp2", "dp2-tp2"])
def test_the_rank_with_the_least_room_decides(layout: str) -> None:
    model = spec(num_hidden_layers=5, num_attention_heads=9, num_key_value_heads=3)
    parsed = ParallelLayout.parse(layout)
    made = plan(layout, model=model, device_memory="6MiB", max_num_seqs=10**6)
    held = [rank_ranges(parsed, model, rank) for rank in range(parsed.num_ranks)]
    per_block = [2 * r.layers.size * r.kv_heads.size * 16 * 32 * 2 for r in held]
    assert made.block_bytes == max(per_block)
    blocks = []
    for rank, block in enumerate(per_block):
        weights = shard_bytes(layout, rank % parsed.replica.num_ranks, model)
        assert weights <= made.arena_bytes
        blocks.append((6 * MIB - 3 * MIB - weights) // block)
    # Tensors are aligned, which takes a little more than their bytes.
    assert min(blocks) - 2 <= made.num_blocks <= min(blocks)
    assert made.image_bytes >= model.num_parameters * 2


def test_two_layouts_need_the_arena_of_both_and_room_to_stage_a_layer() -> None:
    model, fmt = spec(), PlainFormat(spec(), 2)
    made = plan("pp2", "tp2", device_memory="64MiB", model=model, reshard_from="peers")
    both = [
        [rank_ranges(ParallelLayout.parse(text), model, rank) for rank in range(2)]
        for text in ("pp2", "tp2")
    ]
    assert made.arena_bytes == max(plan_arena(fmt, both, rank).nbytes for rank in range(2))
    assert made.arena_bytes > plan("pp2", device_memory="64MiB").arena_bytes
    # ... and a rank's part of a tier block of 64 tokens, twice: on its way to or from the tier
    assert made.work_bytes == 3 * MIB + layer_bytes(fmt) + 2 * 2 * made.block_bytes
    # From the host only what a rank has already, but elsewhere, is held aside.
    from_host = plan("pp2", "tp2", device_memory="64MiB", model=model, reshard_from="host")
    assert from_host.work_bytes < made.work_bytes


def on_cpu(prefill: str, decode: str, *, model: ModelSpec, **settings: Any) -> MemoryPlan:
    """With ranks that compute with the C++ kernels, on a machine of 1 GiB."""
    layouts = LayoutChoice(*(ParallelLayout.parse(text) for text in (prefill, decode)), "given")
    config = EngineConfig(
        model="m", device_memory="64MiB", policy="seesaw", dtype="bfloat16", **settings
    )
    space = Space("cpu", GIB, GIB, GIB, GIB)
    return plan_memory(config, model, 2, space, layouts, True, native=True)


def test_ranks_that_run_from_the_image_have_no_weights_of_their_own() -> None:
    model = spec(num_attention_heads=8, num_key_value_heads=2, vocab_size=321)
    fmt = PanelFormat(model, 2)
    made = on_cpu("pp2", "tp2", model=model)
    assert (made.arena_bytes, made.image_bytes) == (0, fmt.image_bytes)
    fetched = on_cpu("pp2", "tp2", model=model, reload="missing")
    held = [
        [rank_ranges(ParallelLayout.parse(text), model, rank) for rank in range(2)]
        for text in ("pp2", "tp2")
    ]
    assert fetched.arena_bytes == max(plan_arena(fmt, held, rank).nbytes for rank in range(2))
    assert fetched.image_bytes == made.image_bytes
    assert fetched.work_bytes > made.work_bytes, "copies within the arena are held aside"
    assert fetched.num_blocks < made.num_blocks
    # A rank that shares its KV head has a copy of its queries and that head, of each such layer.
    shared = on_cpu("pp4", "tp4", model=model)
    rows = (2 + 2) * 32 * model.hidden_size
    assert shared.arena_bytes == 2 * rows * model.num_hidden_layers
    # What says where weights come from asks that they be fetched.
    assert on_cpu("pp2", "tp2", model=model, reshard_from="host") == fetched


@pytest.mark.parametrize("kind", ["cuda", "cpu"])
def test_only_kernels_for_cpus_run_from_the_image(kind: str) -> None:
    model = spec(head_dim=24) if kind == "cpu" else spec()
    layouts = LayoutChoice(ParallelLayout(pp=2), ParallelLayout(tp=2), "given")
    config = EngineConfig(model="m", device_memory="64MiB", policy="seesaw", reload="none")
    with pytest.raises(ConfigError, match=r"reload='none': ranks can .* only on CPU"):
        plan_memory(config, model, 2, Space(kind, GIB, GIB, GIB, GIB), layouts, True, native=True)


def test_replicas_are_alike() -> None:
    one, two = plan("tp2", device_memory="8MiB"), plan("dp2-tp2", device_memory="8MiB")
    assert (one.num_blocks, one.arena_bytes, one.max_model_len) == (
        two.num_blocks,
        two.arena_bytes,
        two.max_model_len,
    )


def test_a_rank_that_is_too_small_is_named_with_what_would_fit() -> None:
    model = spec(vocab_size=64, num_hidden_layers=40)
    kv_of_request = 2 * 40 * 16 * 256 * 2  # of one KV head
    budget = 3 * MIB + shard_bytes("tp4", 0, model) + kv_of_request + 16 * 2**10
    settings = {"model": model, "device_memory": str(budget), "max_model_len": 256}
    assert plan("tp4", **settings).num_blocks == 256 // 32
    with pytest.raises(ConfigError) as error:
        plan("dp2-tp2", **settings)
    assert "of rank 0" in str(error.value)
    assert "devices that fit: dp1-tp1-pp4, dp1-tp2-pp2, dp1-tp4-pp1." in str(error.value)
    with pytest.raises(ConfigError) as error:
        plan("tp2", **settings)
    assert "Raise device_memory" in str(error.value)
    assert "that fit" not in str(error.value)


def test_no_length_is_blamed_where_weights_alone_have_no_room() -> None:
    settings = {"model": spec(vocab_size=64, num_hidden_layers=40), "max_model_len": 256}
    with pytest.raises(ConfigError, match="weights alone are more than that") as error:
        plan("tp2", device_memory="64KiB", **settings)
    assert "lower" not in str(error.value)


def test_layouts_that_would_fit_keep_one_of_the_two_where_they_can() -> None:
    model = spec(vocab_size=64, num_hidden_layers=40)
    settings = {"model": model, "max_model_len": 256}
    roomy = plan("pp2", "tp2", device_memory="64MiB", **settings)
    kv_of_request = 256 // 32 * (roomy.block_bytes + roomy.prefill_block_bytes)
    needed = roomy.arena_bytes + roomy.work_bytes + kv_of_request
    plan("pp2", "tp2", device_memory=str(needed), **settings)
    less = str(needed - 1)
    with pytest.raises(
        ConfigError, match=r"256 tokens in the pools of both phases 1.25 MiB"
    ) as error:
        plan("pp2", "tp2", device_memory=less, **settings)
    # One layout stages nothing, and these have one of the two that were asked for.
    _, _, fitting = str(error.value).partition("Layouts of these devices that fit: ")
    assert fitting == "dp1-tp1-pp2, dp1-tp2-pp1."
    plan("pp2", tier=True, device_memory=less, **settings)


# -- the prefill pool --------------------------------------------------------------------------


def kv_room(made: MemoryPlan) -> int:
    return made.budget_bytes - made.arena_bytes - made.work_bytes


@pytest.mark.parametrize(("prefill", "stages"), [("pp2", 2), ("pp4", 4), ("tp2", 1), ("tp1", 1)])
def test_the_prefill_pool_is_as_small_as_keeps_the_pipeline_full(prefill: str, stages: int) -> None:
    decode = {"pp2": "tp2", "pp4": "tp4", "tp2": "pp2", "tp1": "tp1"}[prefill]
    made = plan(prefill, decode, tier=True, device_memory="512MiB", max_num_batched_tokens=2000)
    tokens = stages * 2000 + 2 * 4096
    assert made.prefill_blocks == -(-tokens // 32)
    short = {"device_memory": "512MiB", "max_num_batched_tokens": 64, "max_model_len": 100}
    few = plan(prefill, decode, tier=True, **short)
    assert few.prefill_blocks * 32 - 32 < stages * 64 + 2 * 100 <= few.prefill_blocks * 32


def test_the_prefill_pool_takes_a_third_at_most() -> None:
    made = plan("pp2", "tp2", device_memory="6MiB", max_num_seqs=10**6)
    prefill_bytes = made.prefill_blocks * made.prefill_block_bytes
    assert prefill_bytes <= kv_room(made) / 3 < prefill_bytes + 2 * made.prefill_block_bytes
    assert made.kv_bytes <= kv_room(made) < made.kv_bytes + 2 * made.block_bytes
    assert made.max_model_len == made.prefill_blocks * 32 < 4096
    assert "as much as the prefill pool holds" in made.describe()


def test_a_length_asked_for_may_take_more_of_it() -> None:
    free = plan("pp2", "tp2", device_memory="6MiB")
    longer = free.max_model_len + 32
    made = plan("pp2", "tp2", device_memory="6MiB", max_model_len=longer)
    assert made.prefill_blocks * 32 >= longer == made.max_model_len
    assert made.kv_bytes <= kv_room(made)


# -- the host ----------------------------------------------------------------------------------


def test_the_tier_is_half_of_what_is_free_beside_weights_and_devices() -> None:
    made = plan("pp2", "tp2")
    free = 4 * GIB - 2 * GIB - made.image_bytes
    block_bytes = KV_OF_TOKEN * 64
    assert made.tier_blocks == free // 2 // block_bytes
    assert made.tier_bytes == made.tier_blocks * block_bytes
    alone = plan(tier=True)
    assert alone.image_bytes == 0
    assert alone.tier_bytes == 2 * GIB // 2
    assert "KV tier 1.00 GiB" in alone.describe()


@pytest.mark.parametrize("tokens", [32, 64, 256])
def test_replicas_share_the_tier(tokens: int) -> None:
    made = plan("dp2-pp2", "dp2-tp2", host_kv_memory="96MiB", tier_block_size=tokens)
    assert made.tier_blocks == 48 * MIB // (KV_OF_TOKEN * tokens)
    assert made.tier_bytes == 96 * MIB
    assert "of each replica" in made.describe()


def test_a_prompt_is_no_longer_than_the_tier() -> None:
    made = plan("pp2", "tp2", host_kv_memory=str(KV_OF_TOKEN * 700))
    assert (made.max_model_len, made.tier_blocks) == (640, 10)
    assert "as much as the host tier holds" in made.describe()
    with pytest.raises(ConfigError, match=r"one request of 641 tokens takes 352.00 KiB"):
        plan("pp2", "tp2", host_kv_memory=str(KV_OF_TOKEN * 700), max_model_len=641)
    with pytest.raises(ConfigError, match=r"one block takes"):
        plan("pp2", "tp2", host_kv_memory="1KiB")
    # One replica's share is what counts.
    with pytest.raises(ConfigError, match="each of 2 replicas"):
        plan("dp2-tp2", tier=True, host_kv_memory=str(KV_OF_TOKEN * 700), max_model_len=640)


def test_a_tier_larger_than_memory_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"3.00 GiB, but only 2.00 GiB"):
        plan(tier=True, host_kv_memory="3GiB")
    with pytest.raises(ConfigError, match=r"3.00 GiB, but only 1.00 GiB"):
        plan(tier=True, host_kv_memory="3GiB", device_memory="3GiB")
    assert plan(tier=True, host_kv_memory="3GiB", device_memory="1GiB").tier_bytes == 3 * GIB


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ({"prefill": "pp2", "decode": "tp2", "tier": False}, "keeps no KV in the host tier"),
        ({"prefill": "tp1", "host_kv_memory": "1GiB"}, "uses no host tier"),
        ({"prefill": "tp1", "tier": True, "tier_block_size": 48}, "multiple of block_size=32"),
        ({"prefill": "tp1", "tier": True, "block_size": 128}, "multiple of block_size=128"),
    ],
)
def test_policy_and_tier_must_go_together(arguments: dict[str, Any], says: str) -> None:
    with pytest.raises(ConfigError, match=says):
        plan(**arguments)
    if "tier_block_size" in arguments or "block_size" in arguments:
        plan(**{**arguments, "tier": False})
