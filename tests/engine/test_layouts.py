"""Which layouts are chosen, and which errors are told before any weight is read."""

from __future__ import annotations

import logging
import sys
from dataclasses import replace
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch

from seesaw.config import EngineConfig
from seesaw.engine import at_hand, host, layouts
from seesaw.engine.layouts import choose_layouts, figures, settled
from seesaw.errors import ConfigError
from seesaw.families.registry import spec_from_hf
from seesaw.families.spec import ModelSpec
from seesaw.layout import ParallelLayout
from seesaw.ops.native import native
from seesaw.plan import device_memory
from seesaw.plan.choice import LayoutChoice
from seesaw.plan.curve import Curve
from seesaw.plan.machine_files import builtin_cpu, local_path, read_machines, write_machines
from seesaw.plan.memory import plan_memory
from seesaw.scheduler import policies
from seesaw.scheduler.policies.continuous import Continuous

MIB = 2**20
CPU, CUDA = torch.device("cpu"), torch.device("cuda", 0)


def model(num_layers: int = 30, num_heads: int = 9, num_kv_heads: int = 3) -> ModelSpec:
    """513 MiB in float32 with 30 layers."""
    return spec_from_hf(
        {
            "architectures": ["LlamaForCausalLM"],
            "hidden_size": 576,
            "intermediate_size": 1536,
            "num_hidden_layers": num_layers,
            "num_attention_heads": num_heads,
            "num_key_value_heads": num_kv_heads,
            "head_dim": 64,
            "vocab_size": 49152,
            "max_position_embeddings": 8192,
            "rms_norm_eps": 1e-5,
            "tie_word_embeddings": True,
            "torch_dtype": "float32",
            "hidden_act": "silu",
            "rope_theta": 100000.0,
        }
    )


@pytest.fixture(autouse=True)
def machine(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """4 cores, 64 GiB, 4 GPUs of 24 GiB of which nothing is known."""
    gpu = type("Properties", (), {"total_memory": 24 * 2**30, "name": "Unheard Of 9000"})
    monkeypatch.setenv("SEESAW_CACHE_ROOT", str(tmp_path))
    for module in (layouts, at_hand):
        monkeypatch.setattr(module, "usable_cores", lambda: 4.0)
    for module in (host, at_hand):
        monkeypatch.setattr(module, "host_memory", lambda: (64 * 2**30, 64 * 2**30))
    monkeypatch.setattr(device_memory, "workspace_bytes", lambda spec, **sizes: 64 * MIB)
    monkeypatch.setattr(layouts, "has_kernels", lambda device: False)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 4)
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (23 * 2**30, 24 * 2**30))
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda index: gpu)


@pytest.fixture
def many_gpus(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 64)


def choose(
    device: torch.device = CPU, spec: ModelSpec | None = None, **settings: Any
) -> LayoutChoice:
    config = EngineConfig(model="m", **settings)
    return choose_layouts(config, spec or model(), torch.float32, device)


def pair(device: torch.device = CPU, spec: ModelSpec | None = None, **settings: Any) -> str:
    choice = choose(device, spec, **settings)
    return f"{choice.prefill} {choice.decode}"


def test_given_layouts_are_taken() -> None:
    both = pair(prefill_layout="pp2-dp2", decode_layout="tp2-dp2")
    assert both == "dp2-tp1-pp2 dp2-tp2-pp1"
    assert pair(tensor_parallel_size=2, pipeline_parallel_size=2) == "dp1-tp2-pp2 dp1-tp2-pp2"
    assert pair(decode_layout="tp2") == "dp1-tp2-pp1 dp1-tp2-pp1"
    assert pair(layouts="tp2") == "dp1-tp2-pp1 dp1-tp2-pp1"
    assert pair(layouts="pp14+16:tp2") == "dp1-tp1-pp14+16 dp1-tp2-pp1"
    assert "as asked for" in choose(decode_layout="tp2").describe()


def test_one_device_on_cpu_all_on_cuda() -> None:
    assert pair() == "dp1-tp1-pp1 dp1-tp1-pp1"
    assert choose().describe() == "layout dp1-tp1-pp1 on 1 device: the default"
    assert pair(CUDA) == "dp4-tp1-pp1 dp4-tp1-pp1"
    assert pair(CUDA, num_devices=3) == "dp3-tp1-pp1 dp3-tp1-pp1"


def test_without_figures_a_model_that_fits_one_device_is_replicated() -> None:
    choice = choose(CUDA, device_memory="1GiB")
    assert (choice.num_ranks, choice.dp) == (4, 4)
    assert "layout dp4-tp1-pp1 on 4 devices: the model fits one device" in choice.describe()
    assert "no figures for Unheard Of 9000, run `seesaw calibrate`" in choice.describe()


@pytest.mark.parametrize(
    ("num_devices", "heads", "expected"),
    [
        (2, (9, 3), "dp1-tp1-pp2 dp1-tp2-pp1"),
        (6, (9, 3), "dp1-tp1-pp6 dp1-tp6-pp1"),
        (10, (9, 3), "dp1-tp1-pp10 dp1-tp5-pp2"),
        (4, (2, 1), "dp1-tp1-pp4 dp1-tp2-pp2"),
        (60, (9, 3), "dp1-tp2-pp30 dp1-tp6-pp10"),
    ],
)
def test_without_figures_a_larger_model_is_cut_into_stages_for_prompts_and_by_heads_for_answers(
    num_devices: int, heads: tuple[int, int], expected: str, many_gpus: None
) -> None:
    asked = {"num_devices": num_devices, "device_memory": "300MiB"}
    choice = choose(CUDA, model(30, *heads), **asked)
    assert f"{choice.prefill} {choice.decode}" == expected
    assert "does not fit one device" in choice.describe()
    assert f"prefill in {choice.prefill}, decode in {choice.decode}" in choice.describe()


def test_a_policy_of_one_layout_gets_one() -> None:
    small = {"num_devices": 4, "device_memory": "300MiB"}
    assert pair(CUDA, policy="continuous", **small) == "dp1-tp4-pp1 dp1-tp4-pp1"
    assert pair(CUDA, policy="seesaw-cost", **small) == "dp1-tp1-pp4 dp1-tp4-pp1"


def test_a_policy_of_ones_own_says_whether_it_can_change_layouts(monkeypatch) -> None:
    class Mine(Continuous):
        uses_tier = True

    module = ModuleType("mine")
    vars(module).update(Phased=Mine, Plain=Continuous)
    monkeypatch.setitem(sys.modules, "mine", module)
    small = {"num_devices": 4, "device_memory": "300MiB"}
    assert pair(CUDA, policy="mine:Phased", **small) == "dp1-tp1-pp4 dp1-tp4-pp1"
    assert pair(CUDA, policy="mine:Plain", **small) == "dp1-tp4-pp1 dp1-tp4-pp1"


def test_a_number_that_no_dimension_allows_is_told_with_one_that_it_does(many_gpus: None) -> None:
    with pytest.raises(ConfigError, match=r"num_devices=37: .* 30 layers and 9 query heads") as e:
        choose(CUDA, num_devices=37, device_memory="300MiB")
    assert "Use num_devices=36" in str(e.value)
    assert pair(CUDA, num_devices=36, device_memory="300MiB") == "dp1-tp2-pp18 dp1-tp9-pp4"


@pytest.mark.parametrize(
    ("prefill", "decode", "says"),
    [
        ("pp4", "tp2", "dp1-tp2-pp2"),
        ("dp2-pp2", "tp4", "dp2-tp2-pp1"),
        ("tp10", "pp10", "9 query heads"),
        ("tp1-pp31", "tp31", "30 layers"),
    ],
)
def test_layouts_that_cannot_take_turns_are_told_with_those_that_can(
    prefill: str, decode: str, says: str
) -> None:
    with pytest.raises(ConfigError, match=says):
        choose(prefill_layout=prefill, decode_layout=decode)


@pytest.mark.parametrize(
    "settings", [{"num_devices": 5}, {"prefill_layout": "pp5"}, {"tensor_parallel_size": 8}]
)
def test_more_cuda_devices_than_there_are(settings: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match=r"[58] devices are asked for, but 4 CUDA devices"):
        choose(CUDA, **settings)


def test_as_many_replicas_are_chosen_as_are_asked_for() -> None:
    free = planned(CPU, model(), num_devices=2, device_memory="1GiB")
    assert free.dp == 2, "there is nothing to compare with"
    for dp in (1, 2):
        found = planned(CPU, model(), num_devices=2, data_parallel_size=dp, device_memory="1GiB")
        assert found.dp == dp


def test_a_model_fits_with_what_its_policy_needs() -> None:
    # A prompt of the longest length takes 360 MiB in each pool.
    asked = {"num_devices": 2, "max_model_len": 8192, "device_memory": "1000MiB"}
    assert pair(CUDA, **asked) == pair(CUDA, policy="continuous", **asked)
    assert pair(CUDA, **asked) == "dp2-tp1-pp1 dp2-tp1-pp1"
    assert pair(CUDA, policy="seesaw", **asked) == "dp1-tp1-pp2 dp1-tp2-pp1"


def test_more_ranks_than_cores_are_warned_of_once(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    logging.getLogger("seesaw").addHandler(caplog.handler)
    try:
        choose(prefill_layout="pp4", decode_layout="tp4")
        monkeypatch.setattr(torch.cuda, "device_count", lambda: 8)
        choose(CUDA, prefill_layout="pp8")
        assert not caplog.records
        choose(prefill_layout="pp5")
    finally:
        logging.getLogger("seesaw").removeHandler(caplog.handler)
    (record,) = caplog.records
    assert "5 ranks on 4 usable cores" in record.getMessage()


# -- planned ---------------------------------------------------------------------------------------


def as_gpus(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    gpu = type("Properties", (), {"total_memory": 24 * 2**30, "name": name})
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda index: gpu)


def large() -> ModelSpec:
    """15 B parameters: not on one GPU of 24 GiB in 2 bytes each."""
    return spec_from_hf(
        {
            "architectures": ["LlamaForCausalLM"],
            "hidden_size": 4096,
            "intermediate_size": 14336,
            "num_hidden_layers": 64,
            "num_attention_heads": 32,
            "num_key_value_heads": 8,
            "vocab_size": 128256,
            "max_position_embeddings": 8192,
            "rms_norm_eps": 1e-5,
            "torch_dtype": "float16",
        }
    )


def planned(device: torch.device, spec: ModelSpec, **settings: Any) -> LayoutChoice:
    config = EngineConfig(model="m", **settings)
    choice = choose_layouts(config, spec, torch.float16, device)
    # What is chosen must pass the engine's own memory plan.
    policy = config.resolve_policy(choice.prefill != choice.decode)
    space = host.device_space(device, choice.num_ranks)
    plan_memory(config, spec, 2, space, choice, policies.uses_tier(policy))
    return choice


def test_known_gpus_are_planned_for(monkeypatch: pytest.MonkeyPatch) -> None:
    as_gpus(monkeypatch, "NVIDIA L4")
    choice = planned(CUDA, large(), max_num_batched_tokens=2048)
    assert choice.num_ranks == 4
    assert "planned for 1000 requests of 1024 tokens in and 256 out" in choice.reason
    assert "see `seesaw plan`" in choice.reason
    assert "NVIDIA L4 by name" in choice.reason
    # Slow links, and both phases count: prompts in stages, answers cut further.
    assert choice.prefill.pp == 4
    assert choice.decode.tp > 1
    assert choice.max_num_batched_tokens == 2048
    assert "split gains" in choice.reason


def test_layouts_are_planned_for_the_job_that_is_expected(monkeypatch: pytest.MonkeyPatch) -> None:
    as_gpus(monkeypatch, "NVIDIA L4")
    asked = {"layouts": "auto", "max_model_len": 4096}
    one_token = planned(CUDA, large(), expected_lengths=[(3000, 1)], expected_requests=50, **asked)
    assert "planned for 50 requests of 3000 tokens in and 1 out" in one_token.reason
    assert one_token.prefill == one_token.decode
    assert one_token.prefill.tp == 1  # nothing but prompts: no sums between devices
    long_answers = planned(CUDA, large(), expected_lengths=[(16, 2000)], **asked)
    assert long_answers.decode.tp > 1
    # Rows that will be refused do not count.
    mixed = planned(CUDA, large(), expected_lengths=[(5000, 5000), (100, 20)], **asked)
    assert "1000 requests of 100 tokens in and 20 out" in mixed.reason


def test_a_policy_that_mixes_is_planned_one_layout(monkeypatch: pytest.MonkeyPatch) -> None:
    as_gpus(monkeypatch, "NVIDIA L4")
    choice = planned(CUDA, large(), policy="continuous")
    assert choice.prefill == choice.decode
    assert "planned for" in choice.reason


def test_a_short_model_is_planned_for_requests_that_it_can_take(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    as_gpus(monkeypatch, "NVIDIA L4")
    choice = planned(CUDA, large(), max_model_len=100)
    assert "1000 requests of 80 tokens in and 20 out" in choice.reason


def test_ranks_on_cpu_are_planned_by_another_cpus_figures() -> None:
    choice = planned(CPU, model(), num_devices=2)
    assert choice.num_ranks == 2
    assert "planned for" in choice.reason
    assert "run `seesaw calibrate`" in choice.reason


def test_ways_that_are_not_known_fall_back_to_the_rule() -> None:
    # 4 cores do not make 3 equal ranks.
    choice = planned(CPU, model(), num_devices=3)
    assert "there are no figures for 3 devices of kind cpu" in choice.reason


def test_what_was_measured_counts_before_names(monkeypatch: pytest.MonkeyPatch) -> None:
    as_gpus(monkeypatch, "NVIDIA L4")
    (measured,) = read_machines("4xl4")
    # All-reduces as fast as memory: nothing speaks for stages.
    links = replace(measured.links, bus_bytes_per_s=3e11, latency_s=Curve.flat(1e-6))
    write_machines(local_path(), (replace(measured, links=links),))
    choice = planned(CUDA, large())
    assert f"measured by seesaw calibrate: {local_path()}" in choice.reason
    assert choice.prefill.tp == choice.decode.tp == 4
    choice = planned(CUDA, large(), num_devices=2, device_memory="22GiB")
    assert choice.num_ranks == 2
    assert f"measured by seesaw calibrate: {local_path()}" in choice.reason


def test_figures_of_other_dtypes_are_measured_together_with_the_missing_one() -> None:
    """A machine file is written anew: what it has already must be asked for again."""
    found = []
    for machine in builtin_cpu(4, 2**36):
        (device, *_) = machine.devices
        flops = {"bfloat16": device.rates.matmul_flops["bfloat16"]}
        known = replace(device, rates=replace(device.rates, matmul_flops=flops))
        found.append(replace(machine, devices=(known,) * len(machine.devices)))
    write_machines(local_path(), found)
    assert figures(CPU, 2, "float32") == (
        f"{local_path()} has no figures for float32, run "
        "`seesaw calibrate --dtype bfloat16 --dtype float32`"
    )
    assert not isinstance(figures(CPU, 2, "bfloat16"), str)


def test_a_file_of_figures_that_cannot_be_read_stops_nobody(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    as_gpus(monkeypatch, "NVIDIA L4")
    local_path().parent.mkdir(parents=True, exist_ok=True)
    local_path().write_text("{")
    choice = planned(CUDA, large())
    assert choice.num_ranks == 4
    assert "Run `seesaw calibrate` again" in choice.reason


def test_a_model_that_no_planned_layout_can_hold_is_left_to_the_rule(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    as_gpus(monkeypatch, "NVIDIA L4")
    choice = choose(CUDA, large(), device_memory="2GiB")
    assert "no layout has room for 1000 requests of 1024 tokens in and 256 out" in choice.reason


def test_links_are_measured_where_figures_are_of_others(monkeypatch: pytest.MonkeyPatch) -> None:
    """Ranks that talk over TCP are not planned with what the memory of the host reaches."""
    if native() is None:
        pytest.skip("TCP between ranks is part of seesaw._cpu, which is not built here")
    monkeypatch.setenv("SEESAW_COMM_HOST", "127.0.0.1")
    asked: dict[str, Any] = {"num_devices": 2, "expected_lengths": [(512, 64)]}
    assert "links measured now" not in planned(CPU, model(), **asked).reason
    found = planned(CPU, model(), collectives="tcp", **asked)
    assert "links measured now, TCP over 127.0.0.1" in found.reason
    # What was calibrated over the same links is taken as it is.
    (machine,) = (one for one in builtin_cpu(4, 2**36) if len(one.devices) == 2)
    links = replace(machine.links, name="TCP over 127.0.0.1")
    write_machines(local_path(), (replace(machine, links=links),))
    found = planned(CPU, model(), collectives="tcp", **asked)
    assert "measured by seesaw calibrate" in found.reason
    assert "links measured now" not in found.reason


def test_what_is_about_two_layouts_does_not_count_where_one_was_chosen() -> None:
    auto = EngineConfig(model="m", layouts="auto", host_kv_memory="1GiB", reload="missing")
    one, two = ParallelLayout.parse("tp2"), ParallelLayout.parse("pp2")
    kept = settled(auto, LayoutChoice(two, one, "planned", "peers"))
    assert (kept.host_kv_memory, kept.reload, kept.reshard_from) == ("1GiB", "missing", "peers")
    left = settled(auto, LayoutChoice(one, one, "planned"))
    assert (left.host_kv_memory, left.reload, left.reshard_from) == (None, "auto", "auto")
    assert left.step_tokens == 2048
    chosen = LayoutChoice(one, one, "planned", max_num_batched_tokens=256)
    assert settled(auto, chosen).step_tokens == 256
    assert settled(replace(auto, max_num_batched_tokens=512), chosen).step_tokens == 512
    phased = replace(auto, policy="seesaw")
    assert settled(phased, LayoutChoice(one, one, "planned")).host_kv_memory == "1GiB"
    given = EngineConfig(model="m", layouts="tp2", host_kv_memory="1GiB")
    assert settled(given, LayoutChoice(one, one, "as asked for")) == given
