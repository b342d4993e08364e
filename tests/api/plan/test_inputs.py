"""What `seesaw plan` is about: lengths of batch files, and the machine at hand."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from seesaw.api import batch_lengths
from seesaw.batch.body import CHAT_URL, COMPLETIONS_URL
from seesaw.engine import at_hand
from seesaw.plan.machine_files import local_path, read_machines, write_machines
from seesaw.plan.workload import Lengths
from seesaw.tokenizer import open_tokenizer
from tests.api.command import fails, run_json
from tests.checkpoints import write_tokenizer
from tests.plan.models import config_of, write_model

# -- batch files -----------------------------------------------------------------------------------


def rows(*bodies: dict[str, Any]) -> str:
    lines = [
        json.dumps(
            {
                "custom_id": str(number),
                "method": "POST",
                "url": CHAT_URL if "messages" in body else COMPLETIONS_URL,
                "body": body,
            }
        )
        for number, body in enumerate(bodies)
    ]
    return "\n".join(lines) + "\n"


def test_a_batch_file_is_counted_by_the_models_tokenizer(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = write_model(tmp_path / "small", config_of("tiny"))
    write_tokenizer(folder)
    texts = ["The dog", "The dog and the cat and the rest of them"]
    chat = [{"role": "user", "content": "Who is there?"}]
    job = tmp_path / "in.jsonl"
    job.write_text(
        rows(
            {"prompt": texts[0], "max_tokens": 5},
            {"prompt": texts[1], "max_tokens": 7, "n": 2},
            {"prompt": [1, 2, 3], "max_tokens": 9},
            {"messages": chat, "max_tokens": 11},
            {"prompt": "refused", "max_tokens": 0.5},
        )
    )
    tokenizer = open_tokenizer(folder)
    found = batch_lengths.batch_workload(job, tokenizer, None)
    one, two = (len(tokenizer.encode(text)) for text in texts)
    rendered = tokenizer.apply_chat_template(chat, add_generation_prompt=True)
    three = len(tokenizer.encode(rendered, add_special_tokens=False))
    assert found.lengths == (
        Lengths(one, 5), Lengths(two, 7), Lengths(two, 7), Lengths(3, 9), Lengths(three, 11),
    )  # fmt: skip
    assert "the model's tokenizer" in found.source
    assert "1 rows that cannot be served left out, the first is line " in found.source
    plan = run_json(
        ["plan", "--model", str(folder), "--machine", "2xl4", "--workload", str(job),
         "--dtype", "float32"], capsys,
    )  # fmt: skip
    assert plan["workload"]["num_requests"] == 5
    assert plan["workload"]["mean_answer_tokens"] == pytest.approx(39 / 5)
    assert f"-i {job}" in plan["recommended"]["command"]


def test_without_a_tokenizer_characters_are_counted(
    asked: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    job = tmp_path / "in.jsonl"
    job.write_text(rows({"prompt": "x" * 400}, {"prompt": "x" * 800, "max_tokens": 1000}))
    args = [*asked, "--workload", str(job)]
    assert "Give --answer-tokens" in fails(args, capsys)
    found = run_json([*args, "--answer-tokens", "30"], capsys)
    assert found["workload"]["mean_prompt_tokens"] == 150
    assert found["workload"]["mean_answer_tokens"] == 30
    assert "4 to a token" in found["workload"]["source"]
    # As many as were asked for, by the lengths of the file.
    assert found["workload"]["num_requests"] == 200


def test_a_batch_file_without_a_row_that_can_be_served(
    asked: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    job = tmp_path / "in.jsonl"
    job.write_text("nonsense\n")
    assert "none of 1 rows can be served" in fails([*asked, "--workload", str(job)], capsys)
    job.write_text("\n")
    assert "has no row" in fails([*asked, "--workload", str(job)], capsys)


# -- the machine at hand ---------------------------------------------------------------------------


def test_the_machine_at_hand_by_its_gpus(
    words: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(at_hand, "gpu_names", lambda: ["NVIDIA L4"] * 4)
    monkeypatch.setattr(at_hand, "host_memory", lambda: (2**38, 2**38))
    found = run_json(words, capsys)
    assert "NVIDIA L4 by name" in found["machine"]["source"]
    assert found["machine"]["host_memory_bytes"] == 2**38
    assert [way["num_devices"] for way in found["machine"]["ways"]] == [4]
    monkeypatch.setattr(at_hand, "gpu_names", lambda: ["Unheard Of 9000"])
    assert "GPU 'Unheard Of 9000', of which no figures" in fails(words, capsys)


def test_the_machine_at_hand_as_it_was_measured(
    words: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(at_hand, "gpu_names", lambda: ["NVIDIA L4"] * 8)
    monkeypatch.setattr(at_hand, "host_memory", lambda: (2**38, 2**38))
    write_machines(local_path(), read_machines("2xl40s"))
    found = run_json(words, capsys)
    assert f"measured by seesaw calibrate: {local_path()}" in found["machine"]["source"]
    assert [way["num_devices"] for way in found["machine"]["ways"]] == [2]


def test_a_cpu_at_hand(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(at_hand, "gpu_names", list)
    monkeypatch.setattr(at_hand, "usable_cores", lambda: 4.0)
    monkeypatch.setattr(at_hand, "host_memory", lambda: (2**34, 2**34))
    small = write_model(tmp_path / "small", config_of("tiny"))
    args = ["plan", "--model", str(small), "--workload", "100:20", "--dtype", "bfloat16"]
    found = run_json(args, capsys)
    assert [way["num_devices"] for way in found["machine"]["ways"]] == [1, 2, 4]
    assert "run `seesaw calibrate`" in found["machine"]["source"]
