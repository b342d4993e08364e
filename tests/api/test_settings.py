"""Flags made from dataclasses: types, defaults, policies of one's own."""

from __future__ import annotations

import sys
import types
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from typing import Any, Literal

import click
import pytest

from seesaw.api.flags import Command, make_flags
from seesaw.api.settings import (
    EngineCommand,
    engine_flags,
    sampling_flags,
    take_engine_settings,
    take_sampling_settings,
)
from seesaw.config import EngineConfig
from seesaw.errors import ConfigError
from seesaw.sampling_params import SamplingParams


@dataclass
class Everything:
    needed: str
    number: int = 3
    maybe: float | None = None
    choice: Literal["a", "b"] = "a"
    amount: int | Literal["auto", "all"] = 7
    flag: bool = True
    many: tuple[int, ...] = ()
    table: Mapping[str, int] | None = None
    short: str | None = field(default=None, metadata={"short": "-s"})


def parse(command: click.Command, *args: str) -> dict[str, Any]:
    return command.make_context("test", list(args)).params


def make_command(owner: type, cls: type[click.Command] = Command) -> click.Command:
    options = [(f, None if f.name == "needed" else f.default, f.name) for f in fields(owner)]
    return cls("test", params=list(make_flags(owner, options, "Section")))


def test_every_kind_of_field() -> None:
    command = make_command(Everything)
    assert parse(command, "--needed", "x") == {
        "needed": "x", "number": 3, "maybe": None, "choice": "a", "amount": 7,
        "flag": True, "many": (), "table": None, "short": None,
    }  # fmt: skip
    given = ["--needed=x", "--number=-4", "--maybe=1e-3", "--choice=b", "--no-flag", "--many=1",
             "--amount=9"]  # fmt: skip
    parsed = parse(command, *given, "--many", "2", "--table", '{"a": 1}', "-s", "y")
    assert parsed == {
        "needed": "x", "number": -4, "maybe": 1e-3, "choice": "b", "amount": 9,
        "flag": False, "many": (1, 2), "table": {"a": 1}, "short": "y",
    }  # fmt: skip


def test_a_number_or_a_word() -> None:
    command = make_command(Everything)
    parsed = [parse(command, "--needed=x", f"--amount={text}") for text in ("auto", "all", "-2")]
    assert [values["amount"] for values in parsed] == ["auto", "all", -2]


@pytest.mark.parametrize(
    ("args", "says"),
    [
        ([], "needed"),
        (["--needed=x", "--number=two"], "'two' is not a valid integer"),
        (["--needed=x", "--choice=c"], "'c' is not one of"),
        (["--needed=x", "--amount=most"], "'most': expected an integer or auto or all"),
        (["--needed=x", "--table=[1]"], "expected a JSON object"),
        (["--needed=x", "--table={"], "is not JSON"),
    ],
)
def test_wrong_values_are_usage_errors(args: list[str], says: str) -> None:
    with pytest.raises(click.UsageError) as caught:
        parse(make_command(Everything), *args)
    assert says in caught.value.format_message()


def test_a_field_that_no_flag_can_set_is_refused() -> None:
    @dataclass
    class Odd:
        thing: complex = 1j

    with pytest.raises(ConfigError, match="thing"):
        make_command(Odd)


def test_help_has_sections_and_defaults() -> None:
    context = click.Context(make_command(Everything), terminal_width=100)
    text = context.command.get_help(context)
    assert "\nSection:\n" in text
    assert "[default: 3]" in text
    assert "[required]" in text
    assert "default: None" not in text


def engine_command() -> click.Command:
    return EngineCommand("test", params=list(engine_flags()))


def test_engine_settings_round_trip() -> None:
    values = parse(engine_command(), "--model", "m", "--no-enable-prefix-caching", "--seed", "7")
    settings = take_engine_settings(values)
    assert values == {}
    made = EngineConfig(**settings)
    assert (made.model, made.enable_prefix_caching, made.seed) == ("m", False, 7)
    assert made.policy_options == {}


@pytest.mark.parametrize("policy", ["auto", "continuous"])
def test_policy_options_that_were_given_are_kept(policy: str) -> None:
    args = ["--model", "m", "--policy", policy, "--max-prefill-chunk", "7"]
    settings = take_engine_settings(parse(engine_command(), *args))
    assert settings["policy"] == policy
    assert settings["policy_options"]["max_prefill_chunk"] == 7


def test_two_layouts_bring_the_flags_of_the_policy_that_can_change_them() -> None:
    layouts = ["--prefill-layout", "pp2", "--decode-layout=tp2"]
    values = parse(engine_command(), "--model", "m", *layouts, "--switch", "prefill-first")
    settings = take_engine_settings(values)
    assert settings["policy_options"] == {"switch": "prefill-first"}
    with pytest.raises(click.NoSuchOption):
        parse(engine_command(), "--model", "m", *layouts, "--block-watermark", "0.1")


def test_both_layouts_in_one_flag_bring_them_too() -> None:
    values = parse(engine_command(), "--model=m", "--layouts", "pp2:tp2", "--switch=prefill-first")
    settings = take_engine_settings(values)
    assert settings["policy_options"] == {"switch": "prefill-first"}
    for one in ("tp2", "auto", "tp2:tp2"):
        with pytest.raises(click.NoSuchOption):
            parse(engine_command(), "--model=m", f"--layouts={one}", "--switch=prefill-first")


@pytest.mark.parametrize(
    "layouts",
    [
        ["--prefill-layout", "pp2", "--decode-layout", "pp2-tp1"],
        ["--prefill-layout", "pp2"],
        ["--prefill-layout", "pp2", "--decode-layout", "tp2", "--decode-layout", "pp2"],
        ["--prefill-layout", "pp2", "--decode-layout", "tp2", "--policy", "continuous"],
        ["--", "--prefill-layout", "pp2", "--decode-layout", "tp2"],
    ],
)
def test_one_layout_or_a_policy_by_name_keeps_the_flags(layouts: list[str]) -> None:
    with pytest.raises(click.NoSuchOption):
        parse(engine_command(), "--model", "m", "--switch", "prefill-first", *layouts)


def test_a_layout_that_cannot_be_read_is_told_as_such() -> None:
    values = parse(engine_command(), "--model", "m", "--prefill-layout", "pp2x")
    with pytest.raises(ConfigError, match="prefill_layout='pp2x'"):
        take_engine_settings(values)


@dataclass(frozen=True, kw_only=True)
class OwnOptions:
    patience: int = field(default=5, metadata={"help": "steps to wait"})
    ladder: tuple[int, ...] = field(default_factory=lambda: (1, 2), metadata={"help": "sizes"})


class Own:
    Options = OwnOptions

    def __init__(self, options: OwnOptions) -> None:
        self.options = options

    def plan(self, step: object) -> None:
        raise NotImplementedError


@pytest.fixture
def own_policy(monkeypatch: pytest.MonkeyPatch) -> str:
    module = types.ModuleType("own_policy_for_test")
    module.Own = Own  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "own_policy_for_test", module)
    return "own_policy_for_test:Own"


@pytest.mark.parametrize("form", ["--policy {}", "--policy={}"])
def test_a_policy_of_ones_own_brings_its_flags(own_policy: str, form: str) -> None:
    args = ["--model", "m", *form.format(own_policy).split(" "), "--patience", "9"]
    settings = take_engine_settings(parse(engine_command(), *args))
    assert settings["policy"] == own_policy
    assert settings["policy_options"] == {"patience": 9, "ladder": (1, 2)}


def test_flags_of_another_policy_are_unknown(own_policy: str) -> None:
    for flag in ("--block-watermark=0.1", "--no-tail"):
        with pytest.raises(click.NoSuchOption, match=f"{flag.split('=')[0]} is an option of pol"):
            parse(engine_command(), "--model", "m", "--policy", own_policy, flag)
    with pytest.raises(click.NoSuchOption):
        parse(engine_command(), "--model", "m", "--policy", own_policy, "--no-such-flag")


def test_a_policy_option_named_like_a_setting_is_refused(
    own_policy: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    @dataclass(frozen=True, kw_only=True)
    class Clash:
        block_size: int = 1

    monkeypatch.setattr(Own, "Options", Clash)
    with pytest.raises(ConfigError, match="'block_size' has the name of a seesaw setting"):
        parse(engine_command(), "--model", "m", "--policy", own_policy)


def test_bad_policy_options_are_refused_before_a_model_is_touched() -> None:
    values = parse(engine_command(), "--model", "m", "--block-watermark", "3")
    with pytest.raises(ConfigError, match="block_watermark"):
        take_engine_settings(values)


def sampling(*args: str) -> dict[str, Any]:
    values = parse(Command("test", params=list(sampling_flags())), *args)
    return take_sampling_settings(values)


def test_sampling_holds_only_what_was_given() -> None:
    assert sampling() == {}
    assert sampling("--temperature", "0", "--stop", "a", "--stop", "b", "--ignore-eos") == {
        "temperature": 0.0,
        "stop": ("a", "b"),
        "ignore_eos": True,
    }
    assert sampling("--no-ignore-eos") == {"ignore_eos": False}
    bias = sampling("--logit-bias", '{"5": -100, "7": 1.5}')["logit_bias"]
    assert bias == {5: -100, 7: 1.5}


def test_every_sampling_flag_has_a_help_text() -> None:
    flags = sampling_flags()
    left_out = {f.name for f in fields(SamplingParams)} - {flag.name for flag in flags}
    assert left_out == {"seed", "detokenize"}
    assert all(flag.help for flag in flags)
