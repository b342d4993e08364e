"""What `shaped_link.py` measures: cells (a model, a job, a link) and systems (ways to run them)."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

INPUT_LEN = 1024
LEAST_REQUESTS = 32


@dataclass(frozen=True)
class Cell:
    """`resident` requests at once, each with `output_len` tokens of answer, on ranks joined by a
    link of `rate` (as tc has it; none = not limited)."""

    hidden: int
    resident: int
    output_len: int
    rate: str
    input_len: int = INPUT_LEN
    least_requests: int = LEAST_REQUESTS

    @property
    def name(self) -> str:
        prompt = "" if self.input_len == INPUT_LEN else f"-i{self.input_len}"
        return f"h{self.hidden}-r{self.resident}{prompt}-o{self.output_len}-{self.rate}"

    @property
    def num_requests(self) -> int:
        return max(self.least_requests, 4 * self.resident)


CELLS = (
    *(Cell(2048, 8, 128, rate) for rate in ("1gbit", "3gbit", "10gbit", "none", "300mbit")),
    *(Cell(2048, 8, output, "1gbit") for output in (256, 64, 512, 16)),
    *(Cell(2048, resident, 128, "1gbit") for resident in (4, 16)),
    Cell(1024, 8, 256, "3gbit"),
    Cell(1024, 8, 64, "100mbit"),
)
"""The most telling ones first, since a session may end before the last."""

WEAK_CELLS = (
    Cell(2048, 8, 1, "1gbit"),
    Cell(1024, 4, 512, "1gbit", input_len=128, least_requests=16),
)
"""Where nothing is to be gained: answers of one token, and four times as long as prompts."""


@dataclass(frozen=True)
class System:
    """One way to run a cell: `settings` of the engine beside those of the cell. What was tuned for
    the static layout `tuned_as` counts too: the size of chunks, and for that layout itself the
    sizes of its stages."""

    name: str
    settings: dict[str, Any] = field(default_factory=dict)
    tuned_as: str | None = "pp2"


SPLIT = {"prefill_layout": "pp2", "decode_layout": "tp2", "host_kv_memory": "4GiB"}
AUTO = {
    "layouts": "auto",
    "num_devices": 2,
    "data_parallel_size": 1,  # one model over both, as where it does not fit one of them
    "host_kv_memory": "4GiB",
}
SYSTEMS = (
    System("pp2 -> tp2", SPLIT),
    System("tp2", {"prefill_layout": "tp2"}, tuned_as="tp2"),
    System("pp2", {"prefill_layout": "pp2"}),
    System("auto", AUTO, tuned_as=None),
)

BASE = Cell(2048, 8, 128, "1gbit")
"""Where the worth of single decisions is measured."""

MISSING = SPLIT | {"reload": "missing"}
ABLATIONS = (
    System("pp2 -> tp2, as it is", SPLIT),
    System("no overlap", SPLIT | {"overlap": False}),
    System("weights move: missing", MISSING),
    System("weights move: missing, no overlap", MISSING | {"overlap": False}),
    System("weights move: all", SPLIT | {"reload": "all"}),
    System("tier of 4 prompts", SPLIT | {"host_kv_memory": "192MiB"}),
    System("auto, tier of 4 prompts", AUTO | {"host_kv_memory": "192MiB"}, tuned_as=None),
    System("tier order: layer", SPLIT | {"tier_order": "layer"}),
    System("tier blocks of 256 tokens", SPLIT | {"tier_block_size": 256}),
    System("switch: decode-first", SPLIT | {"policy_options": {"switch": "decode-first"}}),
    System("switch: prefill-first", SPLIT | {"policy_options": {"switch": "prefill-first"}}),
    System("tier of 12 prompts", SPLIT | {"host_kv_memory": "576MiB"}),
    System("weights move: all, no overlap", SPLIT | {"reload": "all", "overlap": False}),
    System("tier of 24 prompts", SPLIT | {"host_kv_memory": "1152MiB"}),
    System("tier order: token", SPLIT | {"tier_order": "token"}),
    System("tier blocks of 32 tokens", SPLIT | {"tier_block_size": 32}),
)

CHUNKS = (256, 512, 1024, 2048)
STAGES = ("pp2", "pp7+5", "pp8+4")
TUNED_ON = {2048: Cell(2048, 8, 64, "1gbit"), 1024: Cell(1024, 8, 64, "1gbit")}
"""Where chunks and stages of static layouts are tuned, by hidden size: a quarter of a cell's
requests each."""


def settings_of(cell: Cell, system: System, model: str) -> dict[str, Any]:
    """All settings of an engine but what is tuned."""
    settings: dict[str, Any] = {
        "model": model,
        "device": "cpu",
        "dtype": "bfloat16",
        "device_memory": "5GiB",
        "max_model_len": cell.input_len + cell.output_len,
        "max_num_seqs": cell.resident,
        "enable_prefix_caching": False,
        "collectives": "tcp",
    }
    return settings | system.settings
