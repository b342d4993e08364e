"""How ranks are started: a command in front of each, an address for each."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest

from seesaw import LLM, ConfigError, SamplingParams
from seesaw.engine.rank_command import rank_command, rank_environment


def test_nothing_is_put_in_front_unless_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("SEESAW_RANK_COMMAND", raising=False)
    assert rank_command(3, "some.module", ["a", "b c"]) == [
        sys.executable, "-m", "some.module", "a", "b c",
    ]  # fmt: skip


def test_each_rank_has_a_command_of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SEESAW_RANK_COMMAND", "ip netns exec 'ns {rank}'")
    assert rank_command(1, "m", [])[:4] == ["ip", "netns", "exec", "ns 1"]
    monkeypatch.setenv("SEESAW_RANK_COMMAND", "ip 'netns")
    with pytest.raises(ConfigError, match=r"SEESAW_RANK_COMMAND.*cannot be read"):
        rank_command(1, "m", [])


@pytest.mark.parametrize(
    ("given", "ranks"),
    [("", ["127.0.0.1", "127.0.0.1"]), ("10.0.0.9", ["10.0.0.9"] * 3), ("a, b", ["a", "b"])],
)
def test_each_rank_knows_its_own_address(
    given: str, ranks: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SEESAW_COMM_HOST", given)
    found = [rank_environment(rank)["SEESAW_COMM_HOST"] for rank in range(len(ranks))]
    assert found == ranks


def test_a_rank_without_an_address_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SEESAW_COMM_HOST", "a,b")
    with pytest.raises(ConfigError, match="2 addresses, and there is a rank 2"):
        rank_environment(2)


def test_an_engine_starts_its_ranks_with_it(
    tiny_checkpoint: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    script = tmp_path / "start.sh"
    script.write_text('echo "$1" >> "$2"\nshift 2\nexec "$@"\n')
    said = tmp_path / "said"
    monkeypatch.setenv("SEESAW_RANK_COMMAND", f"sh {script} {{rank}} {said}")
    model = str(tiny_checkpoint("llama"))
    with LLM(model, device="cpu", dtype="float32", tensor_parallel_size=2, max_model_len=64) as llm:
        (answer,) = llm.generate([[1, 2, 3]], SamplingParams(temperature=0, max_tokens=4))
    assert len(answer.outputs[0].token_ids) > 0
    assert sorted(said.read_text().split()) == ["0", "1"]


def test_a_command_that_is_not_there_is_told(
    tiny_checkpoint: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SEESAW_RANK_COMMAND", "/no/such/command {rank}")
    with pytest.raises(ConfigError, match=r"rank 0 cannot be started with '/no/such/command'"):
        LLM(str(tiny_checkpoint("llama")), device="cpu", tensor_parallel_size=2, max_model_len=64)
