"""Settings of the engine: what is refused, in which words. No model is needed."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from seesaw.config import EngineConfig, parse_bytes
from seesaw.errors import ConfigError


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
        ("tensor_parallel_size", 2),
    ],
)
def test_a_bad_setting_is_named_with_what_is_expected(name: str, value: Any) -> None:
    with pytest.raises(ConfigError, match=name) as caught:
        EngineConfig(**{"model": "m", name: value})
    text = str(caught.value)
    assert "expected" in text or "Leave" in text


def test_both_memory_settings_are_an_error() -> None:
    with pytest.raises(ConfigError, match="Give one of them"):
        EngineConfig(model="m", device_memory="1GiB", gpu_memory_utilization=0.5)


@pytest.mark.parametrize(
    ("text", "size"),
    [(5, 5), ("5", 5), (" 2 KiB ", 2048), ("1.5kb", 1500), ("2GiB", 2**31), (2.0e9, 2 * 10**9)],
)
def test_sizes(text: Any, size: int) -> None:
    assert parse_bytes(text) == size
