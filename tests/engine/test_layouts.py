"""Which layouts are chosen, and which errors are told before any weight is read."""

from __future__ import annotations

import logging
import sys
from types import ModuleType
from typing import Any

import pytest
import torch

from seesaw.config import EngineConfig
from seesaw.engine import host, layouts
from seesaw.engine.layouts import choose_layouts
from seesaw.errors import ConfigError
from seesaw.families.registry import spec_from_hf
from seesaw.families.spec import ModelSpec
from seesaw.plan import device_memory
from seesaw.plan.choice import LayoutChoice
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
def machine(monkeypatch: pytest.MonkeyPatch) -> None:
    """4 cores, 64 GiB, 4 GPUs of 24 GiB."""
    gpu = type("Properties", (), {"total_memory": 24 * 2**30})
    monkeypatch.setattr(layouts, "usable_cores", lambda: 4.0)
    monkeypatch.setattr(host, "host_memory", lambda: (64 * 2**30, 64 * 2**30))
    monkeypatch.setattr(device_memory, "workspace_bytes", lambda spec, **sizes: 64 * MIB)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 4)
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (23 * 2**30, 24 * 2**30))
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda index: gpu)


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
    assert "as asked for" in choose(decode_layout="tp2").describe()


def test_one_device_on_cpu_all_on_cuda() -> None:
    assert pair() == "dp1-tp1-pp1 dp1-tp1-pp1"
    assert choose().describe() == "layout dp1-tp1-pp1 on 1 device: the default"
    assert pair(CUDA) == "dp4-tp1-pp1 dp4-tp1-pp1"
    assert pair(CUDA, num_devices=3) == "dp3-tp1-pp1 dp3-tp1-pp1"


def test_a_model_that_fits_one_device_is_replicated() -> None:
    choice = choose(num_devices=4, device_memory="1GiB")
    assert (choice.num_ranks, choice.dp) == (4, 4)
    assert "layout dp4-tp1-pp1 on 4 devices: the model fits one" in choice.describe()


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
def test_a_larger_model_is_cut_into_stages_for_prompts_and_by_heads_for_answers(
    num_devices: int, heads: tuple[int, int], expected: str
) -> None:
    found = pair(spec=model(30, *heads), num_devices=num_devices, device_memory="300MiB")
    assert found == expected
    choice = choose(spec=model(30, *heads), num_devices=num_devices, device_memory="300MiB")
    assert "does not fit one device" in choice.describe()
    assert f"prefill in {choice.prefill}, decode in {choice.decode}" in choice.describe()


def test_a_policy_of_one_layout_gets_one() -> None:
    small = {"num_devices": 4, "device_memory": "300MiB"}
    assert pair(policy="continuous", **small) == "dp1-tp4-pp1 dp1-tp4-pp1"
    assert pair(policy="seesaw-cost", **small) == "dp1-tp1-pp4 dp1-tp4-pp1"


def test_a_policy_of_ones_own_says_whether_it_can_change_layouts(monkeypatch) -> None:
    class Mine(Continuous):
        uses_tier = True

    module = ModuleType("mine")
    vars(module).update(Phased=Mine, Plain=Continuous)
    monkeypatch.setitem(sys.modules, "mine", module)
    small = {"num_devices": 4, "device_memory": "300MiB"}
    assert pair(policy="mine:Phased", **small) == "dp1-tp1-pp4 dp1-tp4-pp1"
    assert pair(policy="mine:Plain", **small) == "dp1-tp4-pp1 dp1-tp4-pp1"


def test_a_number_that_no_dimension_allows_is_told_with_one_that_it_does() -> None:
    with pytest.raises(ConfigError, match=r"num_devices=37: .* 30 layers and 9 query heads") as e:
        choose(num_devices=37, device_memory="300MiB")
    assert "Use num_devices=36" in str(e.value)
    assert pair(num_devices=36, device_memory="300MiB") == "dp1-tp2-pp18 dp1-tp9-pp4"


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


def test_a_model_fits_with_what_its_policy_needs() -> None:
    # A prompt of the longest length takes 360 MiB in each pool.
    asked = {"num_devices": 2, "max_model_len": 8192, "device_memory": "1000MiB"}
    assert pair(**asked) == pair(policy="continuous", **asked) == "dp2-tp1-pp1 dp2-tp1-pp1"
    assert pair(policy="seesaw", **asked) == "dp1-tp1-pp2 dp1-tp2-pp1"


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
