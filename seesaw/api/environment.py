"""What a measurement or a bug report must say about the machine and the software on it."""

from __future__ import annotations

import os
import platform
import re
import sys
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from seesaw import __version__, envs
from seesaw.sizes import format_bytes

LIBRARIES = ("torch", "triton", "transformers", "tokenizers", "safetensors", "gguf", "numpy")
OPTIONAL_LIBRARIES = ("cupy-cuda13x", "cupy-cuda12x")


def environment() -> dict[str, Any]:
    """Plain data, ready for JSON. Imports torch, for what it knows of GPUs and threads."""
    import torch

    from seesaw.engine.host import cpu_backend, host_memory, usable_cores

    free, total = host_memory()
    return {
        "seesaw": __version__,
        "cpu_backend": cpu_backend(),
        "native_build": native_build(),
        "python": sys.version.split()[0],
        "os": os_name(),
        "cpu": cpu_model(),
        "cores": usable_cores(),
        "memory_bytes": total,
        "memory_free_bytes": free,
        "gpus": gpus(),
        "torch_threads": torch.get_num_threads(),
        "libraries": library_versions(),
        "variables": {
            name: value for name, value in sorted(os.environ.items()) if name in envs.DESCRIPTIONS
        },
    }


def describe(facts: dict[str, Any]) -> str:
    """`environment()` for people, one fact per line."""
    shown = dict(facts)
    for name in ("memory_bytes", "memory_free_bytes"):
        shown[name.removesuffix("_bytes")] = format_bytes(shown.pop(name))
    lines = []
    for name, value in shown.items():
        if isinstance(value, dict):
            value = ", ".join(f"{key} {_flat(part)}" for key, part in value.items())
        lines.append(f"{name + ':':<14} {_flat(value)}")
    return "\n".join(lines)


def _flat(value: Any) -> str:
    if isinstance(value, list):
        return ", ".join(map(_flat, value)) or "none"
    if isinstance(value, dict):
        return " ".join(map(_flat, value.values()))
    return str(value) if value not in (None, "") else "none"


def native_build() -> dict[str, object] | None:
    """What the C++ module says of itself, and what its kernels run with; None where seesaw was
    installed without it."""
    try:
        from seesaw import _cpu
    except ImportError:
        return None
    try:
        isa = _cpu.isa()
    except ValueError as error:  # of SEESAW_CPU_ISA; whoever looks for that is shown it
        isa = f"none: {error}"
    return {**_cpu.build_info(), "isa": isa, "threads": _cpu.num_threads()}


def library_versions() -> dict[str, str | None]:
    """Installed versions; an optional library that is missing is left out, another one is None."""
    found: dict[str, str | None] = {}
    for name in (*LIBRARIES, *OPTIONAL_LIBRARIES):
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            if name in LIBRARIES:
                found[name] = None
    return found


def os_name() -> str:
    try:
        pretty = platform.freedesktop_os_release()["PRETTY_NAME"]
    except (OSError, KeyError):
        pretty = platform.system()
    return f"{pretty}, {platform.system()} {platform.release()}, {platform.machine()}"


def cpu_model() -> str:
    try:
        text = Path("/proc/cpuinfo").read_text()
    except OSError:
        return platform.processor() or "unknown"
    match = re.search(r"^model name\s*:\s*(.+)$", text, re.MULTILINE)
    return match[1] if match else platform.processor() or platform.machine()


def gpus() -> list[dict[str, Any]]:
    import torch

    if not torch.cuda.is_available():
        return []
    found = []
    for index in range(torch.cuda.device_count()):
        facts = torch.cuda.get_device_properties(index)
        found.append(
            {
                "name": facts.name,
                "memory": format_bytes(facts.total_memory),
                "compute_capability": f"{facts.major}.{facts.minor}",
            }
        )
    return found
