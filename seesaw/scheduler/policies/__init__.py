"""Scheduling policies by name. A policy is one file: a frozen `Options` dataclass and a class with
`plan`."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import MISSING, fields, is_dataclass
from importlib import import_module
from typing import Any

from seesaw.errors import ConfigError, nearest
from seesaw.scheduler.policy import Policy

BUILT_IN = {
    "continuous": "seesaw.scheduler.policies.continuous:Continuous",
    "prefill-first": "seesaw.scheduler.policies.prefill_first:PrefillFirst",
    "sarathi": "seesaw.scheduler.policies.sarathi:Sarathi",
    "sarathi-serve": "seesaw.scheduler.policies.sarathi_serve:SarathiServe",
    "layered-prefill": "seesaw.scheduler.policies.layered_prefill:LayeredPrefill",
    "nexus": "seesaw.scheduler.policies.nexus:Nexus",
    "seesaw": "seesaw.scheduler.policies.seesaw:Seesaw",
    "seesaw-cost": "seesaw.scheduler.policies.seesaw_cost:SeesawCost",
}


def get(name: str) -> type[Policy]:
    """The policy class for a built-in name or `module.path:Class`. Raises ConfigError."""
    target = BUILT_IN.get(name, name)
    module, _, attribute = target.partition(":")
    if not attribute or not all(part.isidentifier() for part in module.split(".")):
        raise ConfigError(
            f"unknown policy {name!r}.{nearest(name, BUILT_IN)} "
            f"Known: {', '.join(BUILT_IN)}, or module.path:Class of your own."
        )
    try:
        policy = getattr(import_module(module), attribute)
    except (ImportError, AttributeError) as error:
        told = ""
        if isinstance(error, ModuleNotFoundError) and error.name == module.partition(".")[0]:
            told = f" Put the folder of {error.name}.py on PYTHONPATH, such as PYTHONPATH=."
        raise ConfigError(f"policy {name!r} cannot be loaded: {error}.{told}") from error
    if not (
        isinstance(policy, type)
        and callable(getattr(policy, "plan", None))
        and is_dataclass(getattr(policy, "Options", None))
    ):
        raise ConfigError(
            f"policy {name!r}: expected a class with a dataclass `Options` and `plan(step)`."
        )
    return policy


def uses_tier(name: str) -> bool:
    """Whether the policy keeps KV in the host tier between phases, and so can run two layouts.
    Raises as `get`."""
    return bool(getattr(get(name), "uses_tier", False))


def splits_layers(name: str) -> bool:
    """Whether rows of the policy may run some of the layers, so that ranks keep hidden states from
    step to step. Raises as `get`."""
    return bool(getattr(get(name), "splits_layers", False))


def is_for_experts(name: str) -> bool:
    """Whether the policy gains only where layers have experts. Raises as `get`."""
    return bool(getattr(get(name), "for_experts", False))


def num_lanes(name: str) -> int:
    """Streams of steps that the policy has run beside each other on a device: 1 or 2. Raises as
    `get`, and ConfigError where it wants what does not go with two."""
    count = getattr(get(name), "num_lanes", 1)
    if count not in (1, 2):
        raise ConfigError(f"policy {name!r}: num_lanes={count!r}, expected 1 or 2.")
    if count == 2 and (uses_tier(name) or splits_layers(name)):
        raise ConfigError(
            f"policy {name!r}: two lanes share one device in one layout and run all layers in each "
            "step. Give num_lanes = 1, or leave out uses_tier and splits_layers."
        )
    return int(count)


def make(name: str, options: Mapping[str, Any]) -> Policy:
    """A policy with its options; unknown and missing option names raise ConfigError."""
    policy = get(name)
    declared = fields(policy.Options)
    known = [f.name for f in declared]
    for f in declared:
        if f.default is MISSING and f.default_factory is MISSING and f.name not in options:
            raise ConfigError(f"policy {name!r} needs the option {f.name!r}. Give it a value.")
    for option in options:
        if option not in known:
            raise ConfigError(
                f"policy {name!r} has no option {option!r}.{nearest(option, known)} "
                f"Known: {', '.join(known) or 'none'}."
            )
    return policy(policy.Options(**options))
