"""Tuned configurations as files: `<folder>/<kernel>/<key=value,..>,device_name=<name>.json`.

Owns names and contents of these files; which of them a launch takes is the business of `tuning.py`,
making them that of `seesaw.tune`.
"""

from __future__ import annotations

import json
import os
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

from seesaw.errors import ConfigError
from seesaw.kernels.kernel import Config, Key

SHIPPED = Path(__file__).parent / "configs"
"""Configurations that come with seesaw; the folder is missing while there are none."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TunedConfig:
    """What was found fastest for one key on one device, and what that was found with.

    `capability` as in `Target`, `triton` "major.minor", times of a call in microseconds, clocks in
    MHz by domain (empty where the driver told none), `date` as YYYY-MM-DD.
    """

    kernel: str
    key: Key
    device_name: str
    capability: int
    config: Config
    triton: str
    clocks_mhz: dict[str, int]
    median_us: float
    default_us: float
    date: str

    @property
    def file_name(self) -> str:
        return file_name(self.key, self.device_name)


def file_name(key: Key, device_name: str) -> str:
    """Without braces, spaces or slashes, which hurt in shells."""
    parts = [f"{name}={key[name]}" for name in sorted(key)]
    plain = "".join(c if c.isalnum() or c in "-._" else "_" for c in device_name)
    return ",".join([*parts, f"device_name={plain}"]) + ".json"


def read(path: Path) -> TunedConfig:
    """Raises ConfigError, naming the file, where it is not what `write` writes."""
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ConfigError(f"{path}: cannot be read ({error}). Delete it and tune again.") from error
    names = {field.name for field in fields(TunedConfig)}
    if not isinstance(found, dict) or set(found) != names:
        raise ConfigError(
            f"{path}: expected an object with {', '.join(sorted(names))}. Delete it and tune again."
        )
    config = found["config"]
    try:
        numbers = {name: int(config[name]) for name in ("num_warps", "num_stages")}
        blocks = {str(name): int(value) for name, value in config["blocks"].items()}
        return TunedConfig(**{**found, "config": Config(blocks, **numbers)})
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise ConfigError(
            f"{path}: expected blocks, num_warps and num_stages under config ({error!r}). Delete "
            "it and tune again."
        ) from error


def write(folder: Path, tuned: TunedConfig) -> Path:
    """The file appears whole or not at all. Raises OSError."""
    path = folder / tuned.kernel / tuned.file_name
    path.parent.mkdir(parents=True, exist_ok=True)
    draft = path.with_name(f"{path.name}.{os.getpid()}.tmp")
    content: dict[str, Any] = asdict(tuned)
    draft.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
    draft.replace(path)
    return path


def read_all(folder: Path, kernel: str) -> list[TunedConfig]:
    """Of one kernel, by file name. Raises ConfigError where one of the files cannot be read."""
    return [read(path) for path in sorted((folder / kernel).glob("*.json"))]
