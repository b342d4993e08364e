"""The shape of answers, and that reading a stream of rows needs no memory of them."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

from tests.batch.fake_engine import WORDS
from tests.batch.helpers import Jobs, chat, completion, ids, read_rows, write_rows


def test_chat_answers_have_the_shape_of_openai(jobs: Jobs) -> None:
    jobs.write(chat("a", n=2, logprobs=True, top_logprobs=1, max_tokens=3))
    jobs.run(now_s=1234.9)
    (row,) = read_rows(jobs.answers)
    assert list(row) == ["id", "custom_id", "response", "error"]
    assert (row["custom_id"], row["error"]) == ("a", None)
    assert row["response"]["status_code"] == 200
    assert row["response"]["request_id"]
    body = row["response"]["body"]
    assert (body["object"], body["created"], body["model"]) == ("chat.completion", 1234, "fake")
    assert [c["index"] for c in body["choices"]] == [0, 1]
    first, second = body["choices"]
    assert first.keys() == {"index", "message", "logprobs", "finish_reason"}
    assert first["message"].keys() == {"role", "content", "refusal"}
    assert first["message"]["role"] == "assistant"
    assert first["message"]["content"] != second["message"]["content"]
    assert first["finish_reason"] == "length"
    assert body["usage"] == {
        "prompt_tokens": len("<user>a question<assistant>"), "completion_tokens": 6,
        "total_tokens": 33, "prompt_tokens_details": {"cached_tokens": 1},
    }  # fmt: skip
    tokens = first["logprobs"]["content"]
    assert "".join(t["token"] for t in tokens).strip() == first["message"]["content"]
    for token in tokens:
        assert token.keys() == {"token", "logprob", "bytes", "top_logprobs"}
        assert bytes(token["bytes"]).decode() == token["token"]
        assert token["logprob"] == -1.5
        (best,) = token["top_logprobs"]
        assert best["logprob"] == -0.5


def test_logprobs_without_top_ones_and_with_impossible_ones(jobs: Jobs) -> None:
    jobs.write(chat("none", logprobs=True), chat("all", logprobs=True, top_logprobs=3), chat("off"))
    jobs.run()
    none, every, off = (r["response"]["body"]["choices"][0] for r in read_rows(jobs.answers))
    assert all(t["top_logprobs"] == [] for t in none["logprobs"]["content"])
    assert [t["logprob"] for t in every["logprobs"]["content"][0]["top_logprobs"]] == [
        -0.5, -1.5, -9999.0,
    ]  # fmt: skip
    assert off["logprobs"] is None


def test_completions_have_the_shape_of_openai(jobs: Jobs) -> None:
    jobs.write(completion("a", [65, 66], logprobs=2, max_tokens=2), completion("b"))
    jobs.run()
    first, second = (row["response"]["body"] for row in read_rows(jobs.answers))
    assert first["object"] == "text_completion"
    assert first["usage"]["prompt_tokens"] == 2
    (choice,) = first["choices"]
    assert choice.keys() == {"index", "text", "logprobs", "finish_reason"}
    logprobs = choice["logprobs"]
    assert logprobs.keys() == {"tokens", "token_logprobs", "top_logprobs", "text_offset"}
    assert len(logprobs["tokens"]) == 2
    assert logprobs["text_offset"] == [0, len(logprobs["tokens"][0])]
    assert logprobs["token_logprobs"] == [-1.5, -1.5]
    assert all(len(top) == 2 and -0.5 in top.values() for top in logprobs["top_logprobs"])
    assert second["choices"][0]["logprobs"] is None


def test_ids_are_unique(jobs: Jobs) -> None:
    jobs.write(*(chat(f"r{i}", "same") for i in range(20)))
    jobs.run()
    answers = read_rows(jobs.answers)
    assert len({row["id"] for row in answers}) == 20
    assert len({row["response"]["body"]["id"] for row in answers}) == 20


def test_text_is_not_escaped(jobs: Jobs) -> None:
    jobs.write(chat("Grüße 🙂\u2028\x7f"))
    jobs.run()
    assert "Grüße 🙂" in jobs.answers.read_text(encoding="utf-8")
    assert ids(jobs.answers) == ["Grüße 🙂\u2028\x7f"]
    assert any(word in jobs.answers.read_text() for word in WORDS)


MEMORY_SCRIPT = """
import json, sys
sys.path.insert(0, sys.argv[1])
from tests.batch.fake_job import run_job

class Watch:
    seen = []
    def message(self, text): pass
    def progress(self, now):
        with open('/proc/self/statm') as file:
            self.seen.append((now.answered_rows, int(file.read().split()[1])))

job = {'input': sys.argv[2], 'output': sys.argv[3]}
code = run_job(job, {'max_num_seqs': 64}, reporter=Watch())
json.dump([code, Watch.seen], sys.stdout)
"""


def test_twenty_thousand_rows_in_flat_memory(tmp_path: Path) -> None:
    """After as many to warm up: SQLite's page cache fills, which is 5% of so small a process."""
    num_rows = 40_000
    rows = (chat(f"r{i}", f"question {i}") for i in range(num_rows))
    source = write_rows(tmp_path / "in.jsonl", rows)
    root = str(Path(__file__).parents[2])
    process = subprocess.run(
        [sys.executable, "-c", MEMORY_SCRIPT, root, source, tmp_path / "out.jsonl"],
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    code, seen = json.loads(process.stdout)
    assert code == 0
    assert ids(tmp_path / "out.jsonl") == [f"r{i}" for i in range(num_rows)]
    warm = max(pages for rows, pages in seen if rows <= num_rows // 2)
    late = max(pages for rows, pages in seen)
    assert seen[-1][0] > 0.8 * num_rows
    assert late < 1.05 * warm, f"{warm} pages after half of the rows, {late} in the end"
