"""`seesaw generate` over a tiny checkpoint: what reaches which stream, in which form."""

from __future__ import annotations

import io
import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from seesaw import LLM, SamplingParams, cli

FEW = ("--max-tokens", "6", "--ignore-eos", "--temperature", "0")
SETTINGS = ("--device-memory", "256MiB", "--dtype", "float32")


@pytest.fixture(scope="module")
def model(tiny_checkpoint: Callable[..., Path]) -> str:
    return str(tiny_checkpoint("llama"))


@pytest.fixture(scope="module")
def expected(model: str) -> dict[str, str]:
    """Greedy answers as `LLM` gives them."""
    prompts = ["A request waits", "The dog"]
    sampling = SamplingParams(max_tokens=6, ignore_eos=True, temperature=0)
    with LLM(model, device_memory="256MiB", dtype="float32") as llm:
        outputs = llm.generate(prompts, sampling, use_tqdm=False)
    return {prompt: out.outputs[0].text for prompt, out in zip(prompts, outputs, strict=True)}


def run(model: str, *args: str) -> int:
    with pytest.raises(SystemExit) as stop:
        cli.main(["generate", "--model", model, *SETTINGS, *args])
    assert isinstance(stop.value.code, int)
    return stop.value.code


def test_one_prompt_is_answered_bare(
    model: str, expected: dict[str, str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(model, "--prompt", "The dog", *FEW) == 0
    assert capsys.readouterr().out == expected["The dog"] + "\n"


def test_one_prompt_on_a_terminal_grows_to_the_same_text(
    model: str,
    expected: dict[str, str],
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("sys.stdout.isatty", lambda: True)
    assert run(model, "--prompt", "The dog", *FEW) == 0
    assert capsys.readouterr().out == expected["The dog"] + "\n"


def test_several_prompts_are_told_apart(
    model: str, expected: dict[str, str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "prompt.txt"
    file.write_text("The dog")
    assert run(model, "--prompt", "A request waits", "--prompt-file", str(file), *FEW) == 0
    first, second = expected["A request waits"], expected["The dog"]
    assert capsys.readouterr().out == f"== 1\n{first}\n== 2\n{second}\n"


def test_a_prompt_from_standard_input(
    model: str,
    expected: dict[str, str],
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(b"The dog")))
    assert run(model, "--prompt-file", "-", *FEW) == 0
    assert capsys.readouterr().out == expected["The dog"] + "\n"


def test_json_on_standard_output_is_alone_there(
    model: str, expected: dict[str, str], capsys: pytest.CaptureFixture[str]
) -> None:
    args = ("--prompt", "The dog", "--logprobs", "2", "--n", "2", "--output-json", "-")
    assert run(model, *args, *FEW) == 0
    found = json.loads(capsys.readouterr().out)
    (result,) = found["results"]
    assert [answer["text"] for answer in result["outputs"]] == [expected["The dog"]] * 2
    assert all(len(answer["logprobs"]) == 6 for answer in result["outputs"])
    assert result["error"] is None
    assert found["model"] == model


def test_json_in_a_file_leaves_the_text_on_standard_output(
    model: str, expected: dict[str, str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    target = tmp_path / "answers.json"
    assert run(model, "--prompt", "The dog", "--output-json", str(target), *FEW) == 0
    assert capsys.readouterr().out == expected["The dog"] + "\n"
    assert json.loads(target.read_text())["results"][0]["prompt"] == "The dog"


def test_chat_goes_through_the_template(model: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(model, "--chat", "--prompt", "Who?", "--output-json", "-", *FEW) == 0
    (result,) = json.loads(capsys.readouterr().out)["results"]
    assert result["prompt"] == "<|im_start|>user\nWho?<|im_end|>\n<|im_start|>assistant\n"


def test_a_prompt_that_cannot_be_served_fails_alone(
    model: str, expected: dict[str, str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(model, "--prompt", "too long " * 600, "--prompt", "The dog", *FEW) == 1
    captured = capsys.readouterr()
    assert expected["The dog"] in captured.out
    assert "seesaw: error: prompt 1:" in captured.err
    assert "Traceback" not in captured.err


def test_sampling_defaults_of_the_model_are_told(
    model: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    copy = tmp_path / "model"
    shutil.copytree(model, copy)
    settings = {"temperature": 0.25, "top_k": 7, "max_new_tokens": 3}
    (copy / "generation_config.json").write_text(json.dumps(settings))
    assert run(str(copy), "--prompt", "The dog", "--ignore-eos", "--output-json", "-") == 0
    captured = capsys.readouterr()
    assert "temperature=0.25, top_k=7, max_tokens=3" in captured.err
    (result,) = json.loads(captured.out)["results"]
    assert len(result["outputs"][0]["token_ids"]) == 3
