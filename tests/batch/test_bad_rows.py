"""Every kind of row that is refused, with what people are told; and garbage of all kinds."""

from __future__ import annotations

import contextlib
import json
import random
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from seesaw.batch import reader
from seesaw.batch.body import IGNORED, derive_seed, parse_request
from seesaw.batch.reader import Line, Row, parse_row
from seesaw.errors import RequestError
from tests.batch.helpers import CHAT, Jobs, chat, completion, ids, read_rows


def error_of(row: dict[str, Any] | str | bytes, **options: Any) -> RequestError:
    with pytest.raises(RequestError) as caught:
        parse(row, **options)
    return caught.value


def parse(row: dict[str, Any] | str | bytes, **options: Any) -> Any:
    text = json.dumps(row) if isinstance(row, dict) else row
    raw = text.encode("utf-8") if isinstance(text, str) else text
    return parse_request(parse_row(Line(7, raw)), defaults={}, **options)


@pytest.mark.parametrize(
    ("raw", "message"),
    [
        ("{bad", "not valid JSON: Expecting property name"),
        ('{"custom_id": "a", "body": {"temperature": NaN}}', "NaN is not a JSON value"),
        ('{"custom_id": "a", "x": ' + "1" * 5000 + "}", "not valid JSON"),
        ("[" * 100_000, "nested too deeply"),
        (b'{"custom_id": "\xff"}', "not UTF-8 (byte 15 is 0xff)"),
        ("[1]", "expected a JSON object per line, got an array"),
        ("null", "got null"),
        ("{}", "custom_id: expected a string that is not empty, got none"),
        ('{"custom_id": 5}', "got a number 5"),
        ('{"custom_id": ""}', "got a string ''"),
        ('{"custom_id": "\\ud800"}', "half of a surrogate pair"),
    ],
)
def test_lines_without_identity(raw: str | bytes, message: str) -> None:
    error = error_of(raw)
    assert message in error.message
    assert error.code in ("invalid_json", "missing_custom_id", "invalid_type", "invalid_unicode")


SURROGATE = "\ud800"


@pytest.mark.parametrize(
    ("row", "message", "code"),
    [
        ({"custom_id": "a", "urll": CHAT}, "'urll' of a batch line. Did you mean 'url'?",
         "unknown_parameter"),
        ({"custom_id": "a", "method": "GET", "url": CHAT}, "expected 'POST'", "invalid_type"),
        ({"custom_id": "a", "url": "/v1/embeddings", "body": {}},
         "'/v1/embeddings' is not supported. Use /v1/chat/completions", "unsupported_url"),
        ({"custom_id": "a", "url": ["x"], "body": {}}, "is not supported", "unsupported_url"),
        ({"custom_id": "a", "url": CHAT, "body": []}, "body=[]: expected an object",
         "invalid_type"),
        (chat("a", temprature=1), "'temprature' of /v1/chat/completions. Did you mean "
         "'temperature'?", "unknown_parameter"),
        (chat("a", stream=True), "stream=True is not supported yet", "unsupported"),
        (chat("a", stream=0), "stream=0 is not supported yet", "unsupported"),
        (chat("a", tools=[{"type": "function"}]), "tools=", "unsupported"),
        (chat("a", response_format={"type": "json_object"}), "response_format=", "unsupported"),
        (chat("a", functions=[{}]), "functions=", "unsupported"),
        (chat("a", modalities=["text", "audio"]), "modalities=", "unsupported"),
        (chat("a", audio={}), "audio=", "unsupported"),
        (chat("a", prompt="x"), "unknown field 'prompt'", "unknown_parameter"),
        (chat("a", model=5), "model=5: expected a string", "invalid_type"),
        (chat("a", messages=[]), "messages=[]: expected a list of messages", "invalid_type"),
        (chat("a", messages=None), "messages=None", "invalid_type"),
        (chat("a", messages=["hi"]), "messages[0]='hi': expected an object", "invalid_type"),
        (chat("a", messages=[{"role": "usr", "content": "x"}]), "messages[0].role='usr'",
         "invalid_type"),
        (chat("a", messages=[{"role": "tool", "content": "x"}]), "role='tool' is not supported",
         "unsupported"),
        (chat("a", messages=[{"role": "user", "contents": "x"}]), "Did you mean 'content'?",
         "unknown_parameter"),
        (chat("a", messages=[{"role": "user"}]), "messages[0].content=None: expected text",
         "invalid_type"),
        (chat("a", messages=[{"role": "user", "content": [{"type": "image_url"}]}]),
         "content of type 'image_url' is not supported yet", "unsupported"),
        (chat("a", messages=[{"role": "user", "content": [{"type": "text"}]}]),
         "messages[0].content[0].text=None", "invalid_type"),
        (chat("a", messages=[{"role": "user", "content": ["x"]}]), "an object with a type",
         "invalid_type"),
        (chat("a", messages=[{"role": "user", "content": SURROGATE}]), "surrogate pair",
         "invalid_unicode"),
        (chat("a", messages=[{"role": "assistant", "content": "x", "tool_calls": [{}]}]),
         "messages[0].tool_calls is not supported yet", "unsupported"),
        (chat("a", messages=[{"role": "user", "content": "x", "name": 5}]), "name=5",
         "invalid_type"),
        (chat("a", temperature="hot"), "temperature='hot': expected a number", "invalid_value"),
        (chat("a", temperature=-1), "temperature=-1", "invalid_value"),
        (chat("a", n=0), "n=0: expected an integer from 1", "invalid_value"),
        (chat("a", n=True), "n=True", "invalid_value"),
        (chat("a", max_tokens=1.5), "max_tokens=1.5", "invalid_value"),
        (chat("a", max_tokens=1, max_completion_tokens=2), "mean the same. Give one",
         "invalid_value"),
        (chat("a", stop=5), "stop=5", "invalid_type"),
        (chat("a", stop={"a": 1}), "stop=", "invalid_type"),
        (chat("a", stop=[""]), "non-empty strings", "invalid_value"),
        (chat("a", stop_token_ids="abc"), "stop_token_ids='abc'", "invalid_type"),
        (chat("a", seed="x"), "seed='x'", "invalid_value"),
        (chat("a", logprobs=3), "logprobs=3: expected true or false", "invalid_type"),
        (chat("a", top_logprobs=3), "top_logprobs needs logprobs=true", "invalid_value"),
        (chat("a", logprobs=True, top_logprobs=99), "logprobs=99", "invalid_value"),
        (chat("a", logit_bias=[1]), "logit_bias=[1]", "invalid_type"),
        (chat("a", logit_bias={"x": 1}), "token ids as keys", "invalid_type"),
        (chat("a", logit_bias={"1": 101}), "-100 to 100", "invalid_value"),
        (chat("a", logit_bias={"1": "a"}), "numbers from -100", "invalid_type"),
        (completion("a", ""), "prompt='': expected text", "invalid_type"),
        (completion("a", None), "prompt=None", "invalid_type"),
        (completion("a", ["x", "y"]), "a list of 2 prompts is not supported yet", "unsupported"),
        (completion("a", [[1], [2]]), "a list of 2 prompts", "unsupported"),
        (completion("a", [1, "x"]), "token ids", "invalid_type"),
        (completion("a", [True]), "token ids", "invalid_type"),
        (completion("a", SURROGATE), "surrogate pair", "invalid_unicode"),
        (completion("a", echo=True), "echo=True is not supported yet", "unsupported"),
        (completion("a", suffix="x"), "suffix='x'", "unsupported"),
        (completion("a", best_of=2), "best_of=2", "unsupported"),
        (completion("a", logprobs=True), "logprobs=True", "invalid_value"),
        (completion("a", messages=[]), "unknown field 'messages'", "unknown_parameter"),
        (completion("a", max_completion_tokens=3), "Did you mean", "unknown_parameter"),
    ],
)  # fmt: skip
def test_requests_that_are_refused(row: dict[str, Any], message: str, code: str) -> None:
    error = error_of(row)
    assert message in error.message
    assert error.code == code
    assert error.param


def test_messages_stay_short() -> None:
    for row in (chat("a", tools=["x" * 10**6]), chat("a", **{"t" * 10**5: 1}), "{" + "x" * 10**6):
        assert len(error_of(row).message) < 1000


def test_a_line_that_is_too_long(jobs: Jobs, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reader, "MAX_LINE_BYTES", 1000)
    jobs.write(chat("a"), chat("long", "x" * 5000), chat("b"), chat("last", "x" * 1500))
    assert jobs.run().exit_code == 3
    assert ids(jobs.answers) == ["a", "b"]
    messages = [r["response"]["body"]["error"]["message"] for r in read_rows(jobs.errors)]
    assert [m[:28] for m in messages] == [
        "line 2: the line is longer t",
        "line 4: the line is longer t",
    ]


def test_what_asks_for_nothing_is_accepted() -> None:
    request = parse(
        chat("a", stream=False, tools=[], tool_choice="none", response_format={"type": "text"},
             temperature=None, seed=None, top_p=None, user="u", metadata={}, store=False,
             messages=[{"role": "user", "content": "x", "tool_calls": None}])
    )  # fmt: skip
    assert set(request.ignored) == set(IGNORED)
    assert request.sampling.temperature == 1.0
    assert parse(completion("a", echo=False, best_of=1, suffix="")).kind == "completions"


def test_what_is_understood() -> None:
    request = parse(
        chat("a", temperature=0.5, top_p=0.9, n=2, stop=["x", "y"], seed=3, max_completion_tokens=9,
             presence_penalty=1, frequency_penalty=-1, logprobs=True, top_logprobs=4,
             logit_bias={"7": -100}, top_k=5, min_p=0.1, repetition_penalty=1.1,
             stop_token_ids=[3], ignore_eos=True, min_tokens=1, skip_special_tokens=False,
             include_stop_str_in_output=True,
             messages=[{"role": "developer", "content": [{"type": "text", "text": "a"},
                                                         {"type": "text", "text": "b"}]}])
    )  # fmt: skip
    s = request.sampling
    assert (s.temperature, s.top_p, s.n, s.stop, s.seed, s.max_tokens) == (
        0.5, 0.9, 2, ("x", "y"), 3, 9,
    )  # fmt: skip
    assert (s.logprobs, s.logit_bias, s.stop_token_ids) == (4, {7: -100}, (3,))
    assert s.ignore_eos
    assert s.include_stop_str_in_output
    assert not s.skip_special_tokens
    assert request.messages == [{"role": "system", "content": "a\nb"}]
    assert parse(chat("a", logprobs=True)).sampling.logprobs == 0
    assert parse(chat("a", logprobs=False)).sampling.logprobs is None
    assert parse(completion("a", [1, 2], logprobs=0, stop="x")).sampling.logprobs == 0
    assert parse(completion("a", [1, 2])).prompt == [1, 2]


def test_model_defaults_are_overlaid_by_the_row() -> None:
    row = parse_row(Line(1, json.dumps(chat("a", top_k=3)).encode()))
    sampling = parse_request(row, defaults={"temperature": 0.2, "top_k": 50}).sampling
    assert (sampling.temperature, sampling.top_k) == (0.2, 3)


def test_seeds_are_stable_and_differ() -> None:
    assert derive_seed(0, "row") == 1741637661865470896
    seeds = {derive_seed(j, f"r{i}") for j in range(20) for i in range(200)}
    assert len(seeds) == 4000
    assert all(0 <= seed < 2**63 for seed in seeds)


def test_bad_rows_fail_alone_with_their_line(jobs: Jobs) -> None:
    jobs.write(
        "", chat("a"), "{bad", chat("a", "again"), {"custom_id": "url", "url": "/v2"},
        chat("long", "x" * 600), chat("types", n="3"), completion("ids", [-1]), chat("z"),
    )  # fmt: skip
    assert jobs.run().exit_code == 3
    assert ids(jobs.answers) == ["a", "z"]
    errors = read_rows(jobs.errors)
    told = [
        (row["custom_id"], e["code"], e["message"].split(":")[0], e["param"])
        for row in errors
        for e in [row["response"]["body"]["error"]]
    ]
    assert told == [
        (None, "invalid_json", "line 3", None),
        ("a", "duplicate_custom_id", "line 4", "custom_id"),
        ("url", "unsupported_url", "line 5", "url"),
        ("long", "context_length_exceeded", "line 6", "messages"),
        ("types", "invalid_value", "line 7", "n"),
        ("ids", "invalid_value", "line 8", "prompt"),
    ]
    assert "is taken by line 2" in errors[1]["response"]["body"]["error"]["message"]
    for row in errors:
        assert row.keys() == {"id", "custom_id", "response", "error"}
        assert row["error"] is None
        assert row["response"]["status_code"] == 400
        assert row["response"]["body"].keys() == {"error"}
        body = row["response"]["body"]["error"]
        assert body.keys() == {"message", "type", "param", "code"}
        assert body["type"] == "invalid_request_error"
    assert len({row["id"] for row in errors}) == len(errors)


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False)
    | st.text(st.characters(exclude_categories=())),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
    max_leaves=12,
)  # fmt: skip
FIELDS = [
    "model", "messages", "prompt", "temperature", "top_p", "n", "stop", "seed", "max_tokens",
    "max_completion_tokens", "logprobs", "top_logprobs", "logit_bias", "stop_token_ids", "user",
    "stream", "tools", "response_format", "best_of", "min_tokens", "top_k", "ignore_eos",
]  # fmt: skip


@given(st.binary(max_size=200))
def test_garbage_bytes_are_only_ever_refused(raw: bytes) -> None:
    with pytest.raises(RequestError):
        parse(raw)


@settings(max_examples=500)
@given(
    body=st.dictionaries(st.sampled_from(FIELDS), JSON, max_size=6),
    url=st.sampled_from([CHAT, "/v1/completions"]),
    more=st.dictionaries(st.sampled_from(["method", "url", "body", "x"]), JSON, max_size=1),
)
def test_garbage_bodies_are_parsed_or_refused(
    body: dict[str, Any], url: str, more: dict[str, Any]
) -> None:
    if random.random() < 0.5:  # deeper than the first check
        body.setdefault("messages", [{"role": "user", "content": "x"}])
    row = Row(1, "a", b"", {"custom_id": "a", "url": url, "body": body, **more})
    with contextlib.suppress(RequestError):
        request = parse_request(row, defaults={})
        assert request.messages or request.prompt


@settings(max_examples=60)
@given(st.lists(st.binary(max_size=60) | JSON.map(lambda v: json.dumps(v).encode()), max_size=8))
def test_jobs_on_garbage_lose_no_line(jobs: Jobs, lines: list[bytes]) -> None:
    lines = [line.replace(b"\n", b" ") for line in lines]
    data = b"\n".join([json.dumps(chat("good")).encode(), *lines])
    jobs.input.write_bytes(data)
    result = jobs.run(overwrite=True)
    bad = sum(1 for line in lines if line.strip(b" \t\r\n"))
    assert result.summary["rows"]["failed"] == bad
    assert result.exit_code == (3 if bad else 0)
    assert ids(jobs.answers) == ["good"]
    assert (len(read_rows(jobs.errors)) if bad else 0) == bad
