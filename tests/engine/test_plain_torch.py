"""Where the C++ kernels are missing, plain torch gives the same answers, and each start says so."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from seesaw import LLM, SamplingParams
from seesaw.ops import native

PROMPT = list(range(5, 25))


@pytest.fixture(autouse=True)
def fresh_choice() -> Iterator[None]:
    native.native.cache_clear()
    yield
    native.native.cache_clear()


def answer(model: Path) -> list[int]:
    with LLM(model=str(model), device="cpu", device_memory="256MiB", dtype="float32") as llm:
        sampling = SamplingParams(temperature=0, max_tokens=12, ignore_eos=True)
        (output,) = llm.generate([PROMPT], sampling, use_tqdm=False)
    return list(output.outputs[0].token_ids)


def test_without_the_module(
    tiny_checkpoint: Callable[..., Path],
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    pytest.importorskip("seesaw._cpu")
    model = tiny_checkpoint("llama")
    expected = answer(model)
    assert "plain torch" not in caplog.text
    native.native.cache_clear()
    monkeypatch.delattr("seesaw._cpu")
    monkeypatch.setitem(sys.modules, "seesaw._cpu", None)
    assert answer(model) == expected
    (warning,) = (record.getMessage() for record in caplog.records if record.levelname == "WARNING")
    assert "not built" in warning
    assert native.SLOWDOWN in warning
    assert "make setup" in warning
