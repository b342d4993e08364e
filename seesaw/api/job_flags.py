"""Flags of commands that look at a job without running it: which model, on what, and how much of
it. Loads nothing of the planner.
"""

from __future__ import annotations

from typing import Any

import click

from seesaw.api.flags import Flag
from seesaw.api.plan_inputs import DEFAULT_REQUESTS

SETTING_TEXTS = {
    "num_devices": "devices of the machine to use (default: all)",
    "max_num_batched_tokens": "most tokens computed in one step (default: what is fastest)",
}
"""Help of engine settings that mean something else here."""


def flag(name: str, section: str, text: str, **settings: Any) -> click.Option:
    return Flag([name], section=section, help=text, **settings)


def job_flags(*, model_is_required: bool) -> list[click.Option]:
    section, positive = "What for", click.IntRange(min=1)
    return [
        flag("--model", section, "model directory or its config.json", required=model_is_required),
        flag(
            "--machine",
            section,
            "g6.48xlarge, 8xl4, 4xl4+4xt4 or FILE.json (default: the machine at hand)",
        ),
        flag(
            "--workload",
            section,
            "sharegpt, arxiv, another trace's name, IN:OUT tokens, or a batch FILE.jsonl",
            default="sharegpt",
            show_default=True,
        ),
        flag(
            "--num-requests",
            section,
            f"requests of the job (default: {DEFAULT_REQUESTS}, or those of the batch file)",
            type=positive,
        ),
        flag(
            "--answer-tokens",
            section,
            "mean answer of a batch file (default: max_tokens of each row)",
            type=positive,
        ),
    ]


def kv_dtype_flag(text: str, section: str = "Settings") -> click.Option:
    kinds = click.Choice(("float32", "float16", "bfloat16", "fp8"))
    return flag("--kv-dtype", section, text, type=kinds)
