"""What `seesaw plan` says: JSON, a table, the memory of what it recommends, and a command line."""

from __future__ import annotations

import re
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from typing import Any

from rich.console import Console
from rich.table import Table

from seesaw.config import EngineConfig
from seesaw.plan.estimate import Estimate
from seesaw.plan.machine import Machine
from seesaw.plan.search import MOST_DRAWN, Plan, Refused
from seesaw.plan.workload import Workload, mean_lengths
from seesaw.sizes import format_bytes

SHOWN_SETTINGS = (
    "dtype", "max_num_seqs", "max_model_len", "device_memory", "gpu_memory_utilization",
    "host_kv_memory", "running_tier", "policy",
)  # fmt: skip
"""Settings that change a plan, and so stand in the command that carries it out."""

FIGURES = (
    "decode_batch", "prefill_s", "decode_s", "mixed_s", "transition_s", "num_transitions",
    "elapsed_s", "requests_per_s", "tokens_per_s", "output_tokens_per_s", "prefill_bottleneck",
    "decode_bottleneck",
)  # fmt: skip
LEAST_WANTED = ("policy", "limited by", "changes", "batch", "chunk")
"""Columns that a narrow terminal goes without, the first of them first."""

MEMORY = (
    "budget_bytes", "arena_bytes", "work_bytes", "kv_bytes", "num_blocks", "prefill_blocks",
    "block_size", "max_model_len", "image_bytes", "tier_bytes", "tier_blocks", "tier_block_size",
)  # fmt: skip


@dataclass(frozen=True, slots=True, kw_only=True)
class Report:
    """A plan with what it was made for. `machine_source` says where the machine's figures are
    from; `batch_file` is None where the workload is no file."""

    plan: Plan
    config: EngineConfig
    machines: Sequence[Machine]
    machine_source: str
    workload: Workload
    num_requests: int
    batch_file: str | None = None
    price_per_hour: float | None = None
    notes: Sequence[str] = ()

    @property
    def command(self) -> str:
        """Runs what is recommended, as it stands."""
        best, config = self.plan.recommended, self.config
        words = ["seesaw", "run-batch", "-i", self.batch_file or "in.jsonl", "-o", "out.jsonl"]
        words += ["--model", config.model]
        if best.is_split:
            words += ["--prefill-layout", best.prefill.short, "--decode-layout", best.decode.short]
        else:
            words += ["--decode-layout", best.decode.short]
        if best.reshard_from == "host" and self.machines[0].kind == "cuda":
            words += ["--reshard-from", best.reshard_from]  # else GPUs take them from each other
        words += ["--max-num-batched-tokens", str(best.max_num_batched_tokens)]
        defaults = {item.name: item.default for item in fields(EngineConfig)}
        for name in SHOWN_SETTINGS:
            value = getattr(config, name)
            if name == "host_kv_memory" and best.memory.tier_blocks == 0:
                continue
            if name == "running_tier" and value == "on" and best.rotation is None:
                continue  # it would be refused
            if value != defaults[name]:
                words += ["--" + name.replace("_", "-"), str(value)]
        return shlex.join(words)

    def price_of(self, one: Estimate) -> float | None:
        """Dollars, or whatever the price is in, for a million tokens."""
        if self.price_per_hour is None:
            return None
        return self.price_per_hour / 3600 / one.tokens_per_s * 1e6

    # -- JSON ------------------------------------------------------------------------------------

    def as_json(self) -> dict[str, Any]:
        plan = self.plan
        return {
            "recommended": {**self._candidate(plan.recommended), "command": self.command},
            "verdict": plan.verdict,
            "candidates": [self._candidate(one) for one in plan.candidates],
            "refused": [_refused(one) for one in plan.refused],
            "machine": machine_json(self.machines, self.machine_source),
            "workload": workload_json(self.workload, self.num_requests),
            "model": self.config.model,
            "price_per_hour": self.price_per_hour,
            "notes": list(self.notes),
        }

    def _candidate(self, one: Estimate) -> dict[str, Any]:
        return {
            "prefill_layout": str(one.prefill),
            "decode_layout": str(one.decode),
            "policy": one.policy,
            "max_num_batched_tokens": one.max_num_batched_tokens,
            "reshard_from": one.reshard_from if one.is_split else None,
            **{name: getattr(one, name) for name in FIGURES},
            "price_per_million_tokens": self.price_of(one),
            "running_tier": None if one.rotation is None else asdict(one.rotation),
            "memory": {name: getattr(one.memory, name) for name in MEMORY},
        }

    # -- for people ------------------------------------------------------------------------------

    def print(self, console: Console, top: int) -> None:
        names = " or ".join(dict.fromkeys(machine.name for machine in self.machines))
        console.print(f"machine   {names} ({self.machine_source})", highlight=False)
        prompt, answer = _mean_lengths(self.workload, self.num_requests)
        console.print(
            f"workload  {self.num_requests} requests of {prompt:.0f} tokens in and {answer:.0f} "
            f"out: {self.workload.source}",
            highlight=False,
        )
        for note in self.notes:
            console.print(f"note      {note}", highlight=False)
        table, left_out = self._table(top, console.width if console.is_terminal else None)
        console.print(table)
        if left_out:
            console.print(
                f"no room for {', '.join(left_out)}: make the terminal wider, or --output-json",
                highlight=False,
            )
        left = len(self.plan.candidates) - top
        if left > 0:
            console.print(
                f"{left} more candidates: --top {len(self.plan.candidates)}", highlight=False
            )
        if self.plan.refused:
            self._print_refused(console)
        console.print(f"\n{self.plan.recommended.memory.describe()}", highlight=False)
        if self.plan.recommended.rotation is not None:
            console.print(self.plan.recommended.rotation.describe(), highlight=False)
        console.print(f"\n{self.plan.verdict}", highlight=False)
        # Never wrapped, so that it can be copied.
        console.print(f"\n{self.command}", highlight=False, soft_wrap=True)

    def _table(self, top: int, width: int | None) -> tuple[Table, list[str]]:
        """The fastest `top`, and the columns that are left out to keep within `width`."""
        names = ["", "layouts", "policy", "chunk", "batch", "prompts s", "answers s", "changes",
                 "limited by", "tokens/s"]  # fmt: skip
        if self.price_per_hour is not None:
            names.append("$/1M tokens")
        shown = self.plan.candidates[:top]
        rows = [[str(rank), *self._cells(one)] for rank, one in enumerate(shown, 1)]
        least = {
            # What limits may go on in a second line, after its comma.
            name: max(len(part) for cell in (name, *cells) for part in re.split("(?<=,) ", cell))
            for name, *cells in zip(names, *rows, strict=True)
        }
        left_out: list[str] = []
        for name in LEAST_WANTED if width is not None else ():
            if sum(least.values()) + 2 * (len(least) - 1) <= (width or 0):
                break
            del least[name]
            left_out.append(name)
        table = Table(box=None, pad_edge=False, header_style="bold")
        for name in least:
            is_word = name in ("layouts", "policy", "limited by")
            table.add_column(
                name,
                justify="left" if is_word else "right",
                no_wrap=name != "limited by",
                min_width=least[name],
            )
        for one, row in zip(shown, rows, strict=True):
            style = "bold" if one is self.plan.recommended else None
            cells = dict(zip(names, row, strict=True))
            table.add_row(*(cells[name] for name in least), style=style)
        return table, left_out

    def _cells(self, one: Estimate) -> list[str]:
        changes = "-"
        if one.num_transitions:
            changes = f"{one.num_transitions} = {one.transition_s:.1f} s"
        # Steps of one layout have prompts and answers in them: they count where prompts do.
        prompts = f"{one.prefill_s:,.1f}" if one.prefill_s else f"{one.mixed_s:,.1f} mixed"
        limits = dict.fromkeys([one.prefill_bottleneck, one.decode_bottleneck])
        cells = [
            one.name,
            one.policy,
            str(one.max_num_batched_tokens),
            f"{one.decode_batch:.0f}",
            prompts,
            f"{one.decode_s:,.1f}",
            changes,
            ", ".join(limit for limit in limits if limit),
            f"{one.tokens_per_s:,.0f}",
        ]
        price = self.price_of(one)
        return cells if price is None else [*cells, f"{price:.3f}"]

    def _print_refused(self, console: Console) -> None:
        names = ", ".join(
            f"{one} (lacks {format_bytes(one.missing_bytes)})" for one in self.plan.refused[:6]
        )
        more = len(self.plan.refused) - 6
        tail = f" and {more} more" if more > 0 else ""
        console.print(f"do not fit: {names}{tail}", highlight=False)


def machine_json(machines: Sequence[Machine], source: str) -> dict[str, Any]:
    first = machines[0]
    return {
        "source": source,
        "ways": [
            {"slug": one.slug, "name": one.name, "num_devices": len(one.devices)}
            for one in machines
        ],
        "kind": first.kind,
        "host_memory_bytes": first.host_memory_bytes,
        "sources": dict(first.sources),
    }


def workload_json(workload: Workload, num_requests: int) -> Mapping[str, Any]:
    prompt, answer = _mean_lengths(workload, num_requests)
    return {
        "name": workload.name,
        "source": workload.source,
        "num_requests": num_requests,
        "mean_prompt_tokens": prompt,
        "mean_answer_tokens": answer,
    }


def _mean_lengths(workload: Workload, num_requests: int) -> tuple[float, float]:
    """Of prompts and answers: those that the plan was made for."""
    return mean_lengths(workload, min(num_requests, MOST_DRAWN), seed=0)


def _refused(one: Refused) -> dict[str, Any]:
    return {
        "prefill_layout": str(one.prefill),
        "decode_layout": str(one.decode),
        "reason": one.reason,
        "missing_bytes": one.missing_bytes,
    }
