"""Command-line flags made from the fields of settings dataclasses, so that each exists once.

Owns how a field becomes a flag and how a command's help is laid out. Knows no command and no
setting by name, and imports nothing that loads torch.
"""

from __future__ import annotations

import json
import math
import types
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import MISSING, Field, fields
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, Literal, Union, get_args, get_origin, get_type_hints

import click

from seesaw.errors import ConfigError

FlagField = tuple[Field[Any], Any, str]
"""A field that is a command-line flag: (field, default, help)."""


class Flag(click.Option):
    """A click option that knows which section of the help it stands in."""

    def __init__(self, *declarations: Any, section: str = "Options", **settings: Any) -> None:
        super().__init__(*declarations, **settings)
        self.section = section


if TYPE_CHECKING:
    _ParamType = click.ParamType[Any]
else:
    _ParamType = click.ParamType  # generic only since click 8.4


LARGEST = 1e12
"""Far beyond every time and rate that is of use, and far from where sums of them overflow."""


class FiniteNumber(_ParamType):
    """A number that is neither nan nor beyond `most`, from `least` or above it (`is_open`)."""

    name = "number"

    def __init__(
        self, least: float = -LARGEST, *, is_open: bool = False, most: float = LARGEST
    ) -> None:
        self.least = least
        self.is_open = is_open
        self.most = most

    def convert(
        self, value: Any, param: click.Parameter | None, ctx: click.Context | None
    ) -> float:
        try:
            found = float(value)
        except ValueError:
            found = math.nan
        # Not the other way round: nan is not above anything.
        if not (self.least <= found <= self.most) or (self.is_open and found == self.least):
            low = f"above {self.least:g}" if self.is_open else f"from {self.least:g}"
            self.fail(f"{value!r}: expected a number {low} to {self.most:g}.", param, ctx)
        return found


class NumberOrWord(_ParamType):
    """An integer, or one of a few words."""

    def __init__(self, words: Sequence[str]) -> None:
        self.words = words
        self.name = "|".join(("integer", *words))

    def convert(
        self, value: Any, param: click.Parameter | None, ctx: click.Context | None
    ) -> int | str:
        if value in self.words:
            return str(value)
        try:
            return int(value)
        except ValueError:
            self.fail(f"{value!r}: expected an integer or {' or '.join(self.words)}.", param, ctx)


class JSONObject(_ParamType):
    """A JSON object given as text."""

    name = "json"

    def convert(
        self, value: Any, param: click.Parameter | None, ctx: click.Context | None
    ) -> dict[str, Any]:
        try:
            found = json.loads(value)
        except ValueError as error:
            self.fail(f"{value!r} is not JSON ({error}).", param, ctx)
        if not isinstance(found, dict):
            self.fail(f"{value!r}: expected a JSON object such as '{{\"5\": -100}}'.", param, ctx)
        return found


def flag_fields(owner: type) -> list[FlagField]:
    """The fields of a settings dataclass that are command-line flags: all but those whose metadata
    say `cli: False`. `help` and `short` (a one-letter form) stand in the metadata too.
    """
    found: list[FlagField] = []
    for f in fields(owner):
        default = f.default if f.default_factory is MISSING else f.default_factory()
        if f.metadata.get("cli", True):
            found.append((f, None if default is MISSING else default, f.metadata.get("help", "")))
    return found


def make_flags(
    owner: type,
    options: Iterable[FlagField],
    section: str,
    defaults: Mapping[str, Any] = MappingProxyType({}),
) -> list[click.Option]:
    """One flag per field: dashes for underscores, `--x/--no-x` for booleans.

    `defaults` replaces defaults of the dataclass for one command. A field without any default is
    required.
    """
    hints = get_type_hints(owner)
    flags: list[click.Option] = []
    for item, own_default, text in options:
        default = defaults.get(item.name, own_default)
        declared = "--" + item.name.replace("_", "-")
        kind, several = _click_type(hints[item.name], item.name)
        names = [item.name, declared]
        if kind is click.BOOL:
            names[1] += "/--no-" + item.name.replace("_", "-")
        if "short" in item.metadata:
            names.append(item.metadata["short"])
        required = (
            item.name not in defaults
            and item.default is MISSING
            and item.default_factory is MISSING
        )
        filling: dict[str, Any] = {"required": True}
        if not required:
            # An off switch or an absent value is no news; a 0 is.
            shown = default not in (None, ()) and default is not False
            filling = {"default": default, "show_default": shown}
        flags.append(
            Flag(
                names,
                section=section,
                type=None if kind is click.BOOL else kind,
                multiple=several,
                help=f"{text}; may be repeated" if several else text,
                **filling,
            )
        )
    return flags


def _click_type(hint: Any, name: str) -> tuple[click.ParamType[Any], bool]:
    """(click's type, may be given several times) of a field's annotation."""
    if get_origin(hint) in (Union, types.UnionType):
        parts = [part for part in get_args(hint) if part is not type(None)]
        words = [word for part in parts if get_origin(part) is Literal for word in get_args(part)]
        if words and int in parts:
            return NumberOrWord(words), False
        hint = parts[0]
    origin = get_origin(hint)
    if origin is Literal:
        return click.Choice(get_args(hint)), False
    if origin is tuple:
        return _click_type(get_args(hint)[0], name)[0], True
    if origin is not None and issubclass(origin, Mapping):
        return JSONObject(), False
    plain = {str: click.STRING, int: click.INT, float: click.FLOAT, bool: click.BOOL}
    if hint not in plain:
        raise ConfigError(f"{name}: a flag cannot be made of a field of type {hint}.")
    return plain[hint], False


class Command(click.Command):
    """A command whose help has sections and ends with examples that can be run as they are."""

    def __init__(self, *args: Any, examples: Sequence[str] = (), **settings: Any) -> None:
        super().__init__(*args, **settings)
        self.examples = examples

    def format_options(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        sections: dict[str, list[tuple[str, str]]] = {}
        for param in self.get_params(ctx):
            record = param.get_help_record(ctx)
            if record is not None:
                sections.setdefault(getattr(param, "section", "Options"), []).append(record)
        last = sections.pop("Options", [])
        for title, records in [*sections.items(), ("Options", last)]:
            if records:
                with formatter.section(title):
                    formatter.write_dl(records)

    def format_epilog(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        if self.examples:
            formatter.write("\nExamples:\n")
            for example in self.examples:
                formatter.write(f"  {example}\n")
