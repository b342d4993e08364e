"""The flags that commands share: engine, policy and sampling, and the way back to their objects.

Loads no torch: `--help` comes through here.
"""

from __future__ import annotations

import ast
import inspect
import shlex
import textwrap
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import Field, fields
from typing import Any

import click

from seesaw.api.dump_signal import dump_on_signal
from seesaw.api.flags import Command, FlagField, flag_fields, make_flags
from seesaw.config import EngineConfig, auto_policy
from seesaw.errors import ConfigError, RequestError
from seesaw.layout.pairs import layouts_of, parse_pair
from seesaw.sampling_params import SamplingParams
from seesaw.scheduler import policies

# Not for the command line: draws follow the engine's --seed there, and answers are for reading.
_NO_SAMPLING_FLAG = ("seed", "detokenize")


class EngineCommand(Command):
    """A command that loads a model: it also has the options of the policy chosen by `--policy`."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        ctx.meta["seesaw.policy"] = policy = _policy_in(args)
        try:
            return super().parse_args(ctx, args)
        except click.NoSuchOption as error:
            if owners := policies_with(error.option_name):
                told = (
                    f"{error.option_name} is an option of policy {' and '.join(owners)}, but the "
                    f"policy is {policy}. Leave it out, or add --policy {owners[0]}."
                )
                raise click.NoSuchOption(error.option_name, told, ctx=ctx) from error
            raise

    def invoke(self, ctx: click.Context) -> Any:
        with dump_on_signal():
            return super().invoke(ctx)

    def get_params(self, ctx: click.Context) -> list[click.Parameter]:
        own = super().get_params(ctx)
        return [
            *own,
            *_policy_flags(ctx.meta.get("seesaw.policy", auto_policy(two_layouts=False)), own),
        ]


def _policy_in(args: Sequence[str]) -> str:
    """The policy that the arguments choose; needed before they can be parsed."""
    policy = _last(args, "--policy") or "auto"
    if policy != "auto":
        return policy
    try:
        layouts = layouts_of(_last(args, "--prefill-layout"), _last(args, "--decode-layout"))
        layouts = layouts or parse_pair(_last(args, "--layouts") or "auto")
    except ConfigError:
        layouts = None  # told when the settings are checked
    return auto_policy(layouts is not None and layouts[0] != layouts[1])


def _last(args: Sequence[str], flag: str) -> str | None:
    """The value that `flag` ends up with."""
    found = None
    for position, arg in enumerate(args):
        if arg == "--":
            break
        if arg == flag and position + 1 < len(args):
            found = args[position + 1]
        elif arg.startswith(f"{flag}="):
            found = arg.partition("=")[2]
    return found


def _policy_flags(policy: str, taken: Iterable[click.Parameter]) -> list[click.Option]:
    """Flags of a policy's `Options`. Raises ConfigError where one has the name of another flag."""
    owner = policies.get(policy).Options
    names = {param.name for param in taken}
    options = flag_fields(owner)
    for item, _, _ in options:
        if item.name in names:
            raise ConfigError(
                f"policy {policy!r}: its option {item.name!r} has the name of a seesaw setting. "
                "Rename the field."
            )
    return make_flags(owner, options, f"Policy {policy}")


def parse_policy(text: str) -> tuple[str, dict[str, Any]]:
    """Name and options of a policy that is written with its flags, such as `seesaw --no-tail`.
    Raises ConfigError."""
    try:
        name, *args = shlex.split(text)
    except ValueError as error:
        raise ConfigError(
            f"policy {text!r}: expected a name, then flags of the policy if any."
        ) from error
    flags = _policy_flags(name, ())
    parser = Command(name, params=[*flags], add_help_option=False)
    try:
        with parser.make_context(name, args) as ctx:
            return name, dict(ctx.params)
    except click.UsageError as error:
        known = ", ".join(flag.opts[0] for flag in flags) or "none"
        raise ConfigError(
            f"policy {text!r}: {error.format_message()} Options of {name}: {known}."
        ) from error


def written_policy(settings: Mapping[str, Any]) -> str:
    """The policy of checked settings as `parse_policy` takes it, without options that have their
    default."""
    name, options = settings["policy"], settings["policy_options"]
    given = options if name == "auto" else _given_options(name, options)
    parts = [name]
    for option, value in given.items():
        flag = option.replace("_", "-")
        if isinstance(value, bool):
            parts.append(f"--{flag}" if value else f"--no-{flag}")
        else:
            parts += [f"--{flag}", str(value)]
    return shlex.join(parts)


def policies_with(flag: str) -> list[str]:
    """Built-in policies that have this flag."""
    return [
        name
        for name in policies.BUILT_IN
        if any(flag in (*own.opts, *own.secondary_opts) for own in _policy_flags(name, ()))
    ]


def engine_flags(**defaults: Any) -> list[click.Option]:
    """A flag for each field of EngineConfig; `defaults` replaces some of their defaults."""
    return make_flags(EngineConfig, flag_fields(EngineConfig), "Model and engine", defaults)


def take_engine_settings(values: dict[str, Any]) -> dict[str, Any]:
    """Remove what belongs to EngineConfig from parsed `values`; return its arguments, checked.
    Those that a command has no flag for are left out.

    `values` must hold nothing but settings of the engine and of its policy by then. Raises
    ConfigError.
    """
    names = [f.name for f, _, _ in flag_fields(EngineConfig)]
    settings = {name: values.pop(name) for name in names if name in values}
    settings["policy_options"] = dict(values)
    values.clear()
    # Before anything heavy is imported: a bad setting is told at once.
    config = EngineConfig(**settings)
    layouts = config.given_layouts
    policy = config.resolve_policy(layouts is not None and layouts[0] != layouts[1])
    policies.make(policy, config.policy_options)
    if config.policy == "auto":
        # Another policy may be chosen when the model and the devices are known; defaults of this
        # one would be unknown to it.
        settings["policy_options"] = _given_options(policy, config.policy_options)
    return settings


def _given_options(policy: str, options: Mapping[str, Any]) -> dict[str, Any]:
    defaults = {item.name: own for item, own, _ in flag_fields(policies.get(policy).Options)}
    return {name: value for name, value in options.items() if value != defaults[name]}


def _sampling_fields() -> list[Field[Any]]:
    return [f for f in fields(SamplingParams) if f.name not in _NO_SAMPLING_FLAG]


def sampling_flags() -> list[click.Option]:
    """A flag for each field of SamplingParams; what is not given is left to the model."""
    docs = _field_docs(SamplingParams)
    options: list[FlagField] = [(f, None, docs[f.name]) for f in _sampling_fields()]
    return make_flags(SamplingParams, options, "Sampling (default: the model's own settings)")


def take_sampling_settings(values: dict[str, Any]) -> dict[str, Any]:
    """Remove what belongs to SamplingParams from parsed `values`; return what was given.

    Raises click.UsageError where it cannot be.
    """
    parsed = {f.name: values.pop(f.name) for f in _sampling_fields()}
    given = {name: value for name, value in parsed.items() if value not in (None, ())}
    if "logit_bias" in given:
        given["logit_bias"] = _token_keys(given["logit_bias"])
    try:
        SamplingParams.from_dict(given)
    except RequestError as error:
        raise click.UsageError(str(error)) from error
    return given


def _token_keys(bias: dict[str, Any]) -> dict[int, Any]:
    """JSON knows no integer keys."""
    try:
        return {int(token): value for token, value in bias.items()}
    except ValueError as error:
        raise click.UsageError(f"--logit-bias: expected token ids as keys ({error}).") from error


def _field_docs(owner: type) -> dict[str, str]:
    """The docstring under each field of a dataclass as the other flags' help is written: on one
    line, no capital at the beginning, no stop at the end.
    """
    (body,) = ast.parse(textwrap.dedent(inspect.getsource(owner))).body
    assert isinstance(body, ast.ClassDef), owner
    docs: dict[str, str] = {}
    for item, below in zip(body.body, body.body[1:], strict=False):
        if (
            isinstance(item, ast.AnnAssign)
            and isinstance(item.target, ast.Name)
            and isinstance(below, ast.Expr)
            and isinstance(below.value, ast.Constant)
        ):
            text = " ".join(str(below.value.value).split()).removesuffix(".")
            docs[item.target.id] = text[0].lower() + text[1:]
    return docs
