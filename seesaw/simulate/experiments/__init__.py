"""Experiments by name: evaluations of papers on their hardware, and what Seesaw's left out.
Simulated."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from importlib import import_module
from typing import Any

from seesaw.errors import ConfigError, nearest

EXPERIMENTS: Mapping[str, str] = {
    "throughput-a10": "throughput:a10",
    "throughput-l4": "throughput:l4",
    "ratio": "sweeps:ratio",
    "links": "sweeps:links",
    "a100": "a100:a100",
    "pools": "pools:pools",
    "tier": "beyond:tier",
    "arrivals": "beyond:arrivals",
    "batches": "beyond:batches",
    "unequal": "beyond:unequal",
    "sarathi-stages": "schedulers_sarathi:pipeline",
    "sarathi-replicas": "schedulers_sarathi:replicas",
    "sarathi-card": "schedulers_sarathi:tables",
    "serve-capacity": "schedulers_sarathi_serve:capacity",
    "serve-parts": "schedulers_sarathi_serve:ablation",
    "serve-stalls": "schedulers_sarathi_serve:stalls",
    "layered-experts": "schedulers_layered:coverage",
    "layered-load": "schedulers_layered:load",
    "nexus": "schedulers_nexus:nexus",
}


def find(name: str) -> Callable[..., dict[str, Any]]:
    """The function that runs the experiment `name`. Raises ConfigError."""
    if name not in EXPERIMENTS:
        raise ConfigError(
            f"unknown experiment {name!r}.{nearest(name, EXPERIMENTS)} "
            f"Known: {', '.join(EXPERIMENTS)}."
        )
    module, _, function = EXPERIMENTS[name].partition(":")
    found: Callable[..., dict[str, Any]] = getattr(import_module(f"{__name__}.{module}"), function)
    return found
