"""The command line as a person meets it: help, mistakes, exit codes, output for machines."""

from __future__ import annotations

import json
import os
import re
import shlex
import signal
import subprocess
import sys
from dataclasses import fields

import click
import pytest

from seesaw import __version__, cli
from seesaw.api.flags import flag_fields
from seesaw.config import EngineConfig
from seesaw.errors import ConfigError, JobError

MODEL_VERBS = (
    ["generate"], ["run-batch"], ["bench", "throughput"], ["bench", "serve"], ["bench", "startup"],
)  # fmt: skip
VERBS = (*MODEL_VERBS, ["bench", "policies"], ["collect-env"])
UNSHARED = (["bench", "throughput"], ["bench", "serve"])
"""Share no prefixes unless asked to."""


def run(*args: str) -> int:
    with pytest.raises(SystemExit) as stop:
        cli.main(args)
    assert isinstance(stop.value.code, int)
    return stop.value.code


def find(verb: list[str]) -> click.Command:
    command: click.Command = cli.seesaw
    for word in verb:
        assert isinstance(command, click.Group)
        found = command.get_command(click.Context(command), word)
        assert found is not None, verb
        command = found
    return command


def parse(verb: list[str], args: list[str]) -> click.Context:
    return find(verb).make_context(verb[-1], list(args))


def test_version(capsys: pytest.CaptureFixture[str]) -> None:
    assert run("--version") == 0
    assert capsys.readouterr().out == f"seesaw {__version__}\n"


def test_python_dash_m_is_the_same_command() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "seesaw", "--version"], capture_output=True, text=True, check=True
    )
    assert done.stdout == f"seesaw {__version__}\n"


@pytest.mark.parametrize("verb", VERBS, ids=" ".join)
def test_help_ends_with_two_examples_that_parse(
    verb: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(*verb, "--help") == 0
    shown, _, examples = capsys.readouterr().out.partition("\nExamples:\n")
    assert "-h, --help" in shown
    lines = examples.splitlines()
    assert len(lines) == 2
    for line in lines:
        words = shlex.split(line)
        assert words[: len(verb) + 1] == ["seesaw", *verb]
        parse(verb, words[len(verb) + 1 :])


@pytest.mark.parametrize("verb", MODEL_VERBS, ids=" ".join)
def test_every_engine_setting_is_a_flag(verb: list[str]) -> None:
    flags = {option for param in find(verb).params for option in param.opts + param.secondary_opts}
    for field, _, _ in flag_fields(EngineConfig):
        assert "--" + field.name.replace("_", "-") in flags
    assert {"--no-enable-prefix-caching", "--no-enforce-eager"} <= flags


@pytest.mark.parametrize("verb", MODEL_VERBS, ids=" ".join)
def test_flags_not_given_leave_the_defaults(verb: list[str]) -> None:
    required = {"input": "i", "output": "o", "model": "m"}
    given = [
        f"--{name}={value}"
        for name, value in required.items()
        if f"--{name}" in {option for param in find(verb).params for option in param.opts}
    ]
    values = parse(verb, given).params
    default = EngineConfig(model="m")
    differs = {"enable_prefix_caching"} if verb in UNSHARED else set()
    for field in fields(EngineConfig):
        if field.name in values and field.name not in differs:
            assert values[field.name] == getattr(default, field.name), field.name


@pytest.mark.parametrize("verb", UNSHARED, ids=" ".join)
def test_benches_share_no_prefixes_unless_asked(verb: list[str]) -> None:
    parsed = parse(verb, ["--model", "m"])
    assert parsed.params["enable_prefix_caching"] is False


@pytest.mark.parametrize(
    ("args", "says"),
    [
        (["genrate"], "Did you mean 'generate'?"),
        (["generate", "--modle", "m"], "'--model'"),
        (["generate", "--prompt", "x"], "Missing option '--model'"),
        (["generate", "--model", "m"], "Give --prompt TEXT or --prompt-file FILE"),
        (["generate", "--model", "m", "--prompt", "x", "--top-p", "2"], "top_p=2.0: expected"),
        (["generate", "--model", "m", "--prompt", "x", "--dtype", "int8"], "'bfloat16'"),
        (["generate", "--model", "m", "--prompt", "x", "--logit-bias", "no"], "is not JSON"),
        (
            ["generate", "--model", "m", "--prompt", "x", "--logit-bias", '{"a": 1}'],
            "expected token ids as keys",
        ),
        (["generate", "--model", "m", "--prompt", "x", "--block-size", "33"], "power of two"),
        (["generate", "--model", "m", "--prompt", "x", "--policy", "contiuous"], "'continuous'?"),
        (["generate", "--model", "m", "--prompt-file", "/no/file"], "No such file"),
        (["run-batch", "-i", "x", "--model", "m"], "Missing option"),
        (["run-batch", "-i", "/no/x", "-o", "y", "--model", "m"], "/no/x"),
        (["bench", "throughput", "--model", "m", "--num-prompts", "0"], "x>=1"),
        (["bench", "troughput"], "throughput"),
        (["collect-env", "--output-json", "/no/folder/x.json"], "/no/folder does not exist"),
        (["collect-env", "--output-json", "/"], "is a folder"),
    ],
)
def test_mistakes_exit_with_2_and_say_what_to_do(
    args: list[str], says: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(*args) == 2
    captured = capsys.readouterr()
    assert says in " ".join(captured.err.split())
    assert "Traceback" not in captured.err
    assert captured.out == ""


def test_a_model_that_is_not_there_is_one_message(capsys: pytest.CaptureFixture[str]) -> None:
    assert run("generate", "--model", "/no/such/model", "--prompt", "x") == 2
    err = capsys.readouterr().err
    assert "/no/such/model" in err
    assert "Traceback" not in err


@pytest.fixture
def failing_verb(monkeypatch: pytest.MonkeyPatch) -> list[BaseException]:
    """`seesaw fail` raises what is put into the list."""
    errors: list[BaseException] = []

    @click.command()
    def fail() -> None:
        raise errors[0]

    monkeypatch.setitem(cli.seesaw.commands, "fail", fail)
    return errors


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (ConfigError("bad setting"), 2),
        (JobError("stopped"), 1),
        (PermissionError(13, "denied"), 1),
        (KeyboardInterrupt(), 130),
    ],
)
def test_errors_become_one_line_and_a_code(
    error: BaseException,
    code: int,
    failing_verb: list[BaseException],
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.delenv("SEESAW_LOGGING_LEVEL", raising=False)
    failing_verb.append(error)
    assert run("fail") == code
    err = capsys.readouterr().err
    assert err.strip().count("\n") == 0
    assert str(error) in err


def test_debug_shows_the_traceback(
    failing_verb: list[BaseException], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SEESAW_LOGGING_LEVEL", "DEBUG")
    failing_verb.append(JobError("stopped"))
    with pytest.raises(JobError, match="stopped"):
        cli.main(["fail"])


def test_a_reader_that_leaves_early_is_no_error() -> None:
    code = (
        "import click, sys; from seesaw import cli\n"
        "@cli.seesaw.command()\n"
        "def flood():\n"
        "    for _ in range(100000): click.echo('x' * 100)\n"
        "cli.main(['flood'])"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", code], stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )
    assert process.stdout is not None
    process.stdout.readline()
    process.stdout.close()
    _, err = process.communicate()
    assert process.returncode == 1
    assert err == b""


def test_collect_env_for_machines_and_for_people(capsys: pytest.CaptureFixture[str]) -> None:
    assert run("collect-env", "--output-json", "-") == 0
    captured = capsys.readouterr()
    facts = json.loads(captured.out)
    assert facts["seesaw"] == __version__
    assert facts["cores"] > 0
    assert 0 < facts["memory_free_bytes"] <= facts["memory_bytes"]
    assert facts["libraries"]["torch"]
    assert run("collect-env") == 0
    shown = capsys.readouterr().out
    assert re.search(rf"^seesaw: +{re.escape(__version__)}$", shown, re.MULTILINE)
    assert shown.count("\n") >= len(facts)


def test_a_second_interrupt_ends_the_process_at_once(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """While threads that compute are waited for; an exception there would end in an abort."""

    def interrupted(**_: object) -> None:
        raise KeyboardInterrupt

    codes: list[int] = []
    monkeypatch.setattr(cli.seesaw, "main", interrupted)
    monkeypatch.setattr(os, "_exit", codes.append)
    before = signal.getsignal(signal.SIGINT)
    try:
        with pytest.raises(SystemExit) as stop:
            cli.main([])
        os.kill(os.getpid(), signal.SIGINT)
    finally:
        signal.signal(signal.SIGINT, before)
    assert (stop.value.code, codes) == (130, [130])
    assert "interrupted" in capsys.readouterr().err
