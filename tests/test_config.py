"""Settings of the engine: what is refused, in which words. No model is needed."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from seesaw.config import EngineConfig
from seesaw.errors import ConfigError
from seesaw.sizes import parse_bytes


def test_paths_are_taken_as_text() -> None:
    config = EngineConfig(
        model=Path("a/model"),  # type: ignore[arg-type]
        tokenizer=Path("b"),  # type: ignore[arg-type]
        chat_template=Path("c.jinja"),  # type: ignore[arg-type]
    )
    assert (config.model, config.tokenizer, config.chat_template) == ("a/model", "b", "c.jinja")


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("model", None),
        ("model", 5),
        ("tokenizer", 5),
        ("revision", 7),
        ("chat_template", b"x"),
        ("enable_prefix_caching", "no"),
        ("enforce_eager", 1),
        ("gpu_memory_utilization", "0.5"),
        ("gpu_memory_utilization", True),
        ("gpu_memory_utilization", float("nan")),
        ("gpu_memory_utilization", 1.5),
        ("device_memory", "9" * 400),
        ("device_memory", "1e30"),
        ("device_memory", "0.1"),
        ("device_memory", -1),
        ("policy", None),
        ("policy_options", [1]),
        ("max_num_seqs", 0),
        ("max_num_seqs", True),
        ("max_model_len", 1),
        ("seed", -1),
        ("block_size", 48),
        ("dtype", "int8"),
        ("trust_remote_code", True),
        ("tensor_parallel_size", 0),
        ("pipeline_parallel_size", True),
        ("num_devices", 0),
        ("prefill_layout", "pp2-xx3"),
        ("decode_layout", "tp0"),
        ("decode_layout", 2),
        ("host_kv_memory", "lots"),
        ("tier_block_size", 0),
        ("tier_order", "page"),
        ("reload", "some"),
        ("reshard_from", "disk"),
        ("expected_lengths", [5]),
        ("expected_lengths", [(5, 5, 5)]),
    ],
)
def test_a_bad_setting_is_named_with_what_is_expected(name: str, value: Any) -> None:
    with pytest.raises(ConfigError, match=name) as caught:
        EngineConfig(**{"model": "m", name: value})
    text = str(caught.value)
    assert "expected" in text.lower() or "Leave" in text


def test_both_memory_settings_are_an_error() -> None:
    with pytest.raises(ConfigError, match="Give one of them"):
        EngineConfig(model="m", device_memory="1GiB", gpu_memory_utilization=0.5)


def given(**settings: Any) -> tuple[str, str] | None:
    found = EngineConfig(model="m", **settings).given_layouts
    return found and (str(found[0]), str(found[1]))


def test_layouts_are_read_in_any_order_and_one_stands_for_both() -> None:
    assert given() is None
    assert given(num_devices=4) is None
    both = given(prefill_layout="pp4-dp2", decode_layout="tp4-dp2")
    assert both == ("dp2-tp1-pp4", "dp2-tp4-pp1")
    assert given(prefill_layout="pp2") == given(decode_layout="dp1-pp2") == ("dp1-tp1-pp2",) * 2
    static = given(tensor_parallel_size=2, pipeline_parallel_size=3)
    assert static == ("dp1-tp2-pp3",) * 2
    assert given(pipeline_parallel_size=3, num_devices=3) == ("dp1-tp1-pp3",) * 2


def test_both_layouts_in_one_setting() -> None:
    assert given(layouts="pp2:tp2") == given(prefill_layout="pp2", decode_layout="tp2")
    assert given(layouts="pp7+5") == given(decode_layout="pp7+5")
    assert EngineConfig(model="m", layouts="auto").given_layouts is None
    for bad in ("pp2:", "pp2:tp2:tp2", "atuo", ""):
        with pytest.raises(ConfigError, match="layouts="):
            EngineConfig(model="m", layouts=bad)
    for other in ({"decode_layout": "tp2"}, {"tensor_parallel_size": 2}):
        with pytest.raises(ConfigError, match=r"layouts='auto' and .* both say"):
            EngineConfig(model="m", layouts="auto", **other)
    with pytest.raises(ConfigError, match="expected_lengths=0"):
        EngineConfig(model="m", expected_lengths=[(5, 0)])


@pytest.mark.parametrize("static", ["tensor_parallel_size", "pipeline_parallel_size"])
@pytest.mark.parametrize("phased", ["prefill_layout", "decode_layout"])
@pytest.mark.parametrize("size", [1, 2])
def test_both_kinds_of_layout_are_an_error(static: str, phased: str, size: int) -> None:
    with pytest.raises(ConfigError) as caught:
        EngineConfig(**{"model": "m", static: size, phased: "tp2"})
    assert static in str(caught.value)
    assert phased in str(caught.value)


@pytest.mark.parametrize(
    "settings",
    [{"decode_layout": "tp2-dp2"}, {"tensor_parallel_size": 4}, {"prefill_layout": "pp4"}],
)
def test_a_number_of_devices_that_the_layout_does_not_take_is_an_error(settings: Any) -> None:
    name = next(iter(settings))
    with pytest.raises(ConfigError, match=rf"num_devices=3.*{name}\) takes 4"):
        EngineConfig(model="m", num_devices=3, **settings)


def test_the_policy_follows_the_layouts() -> None:
    def policy(prefill: str | None, decode: str | None, name: str = "auto") -> str:
        config = EngineConfig(model="m", prefill_layout=prefill, decode_layout=decode, policy=name)
        layouts = config.given_layouts
        return config.resolve_policy(layouts is not None and layouts[0] != layouts[1])

    assert policy(None, None) == policy("tp2", None) == policy("tp2", "pp1-tp2") == "continuous"
    assert policy("pp2", "tp2") == policy("pp2-dp2", "tp2-dp2") == "seesaw"
    assert policy("tp2", "tp2", "seesaw") == "seesaw"
    assert policy("pp2", "tp2", "seesaw-cost") == "seesaw-cost"
    assert policy("pp2", "tp2", "mine:Policy") == "mine:Policy"
    assert policy("pp2", "pp2-tp1", "continuous") == "continuous"
    with pytest.raises(ConfigError, match=r"'pp2'.*'tp2'.*seesaw-cost"):
        policy("pp2", "tp2", "continuous")


@pytest.mark.parametrize(
    ("text", "size"),
    [(5, 5), ("5", 5), (" 2 KiB ", 2048), ("1.5kb", 1500), ("2GiB", 2**31), (2.0e9, 2 * 10**9)],
)
def test_sizes(text: Any, size: int) -> None:
    assert parse_bytes(text) == size


@pytest.mark.parametrize("given", [{"reload": "all"}, {"reshard_from": "peers"}])
def test_with_one_layout_nothing_is_said_about_moving_weights(given: dict[str, str]) -> None:
    with pytest.raises(ConfigError, match=f"{next(iter(given))}=.*no weights move"):
        EngineConfig(model="m", tensor_parallel_size=2, **given)
    EngineConfig(model="m", prefill_layout="pp2", decode_layout="tp2", **given)


def test_what_is_not_fetched_has_no_source() -> None:
    with pytest.raises(ConfigError, match=r"reload='none' and reshard_from='host'.*Give one"):
        EngineConfig(model="m", reload="none", reshard_from="host")


def test_replicas_of_layouts_that_are_chosen() -> None:
    two = EngineConfig(model="m", num_devices=4, data_parallel_size=2)
    assert two.given_layouts is None
    both = EngineConfig(model="m", layouts="auto", num_devices=4, data_parallel_size=2)
    assert both.given_layouts is None
    alone = EngineConfig(model="m", data_parallel_size=2).given_layouts
    assert alone is not None
    assert str(alone[0]) == "dp2-tp1-pp1"
    beside = EngineConfig(model="m", data_parallel_size=2, tensor_parallel_size=3).given_layouts
    assert beside is not None
    assert beside[1].short == "dp2-tp3"


@pytest.mark.parametrize(
    ("settings", "why"),
    [
        ({"num_devices": 3, "data_parallel_size": 2}, "cannot be shared out"),
        ({"layouts": "auto", "data_parallel_size": 2}, "give num_devices too"),
        ({"layouts": "tp2", "data_parallel_size": 2}, "both say"),
        ({"data_parallel_size": 0}, "data_parallel_size=0"),
    ],
)
def test_replicas_that_make_no_sense_are_refused(settings: dict[str, Any], why: str) -> None:
    with pytest.raises(ConfigError, match=why):
        EngineConfig(model="m", **settings)
