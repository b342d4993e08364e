"""What kernel files of several instruction sets may share: nothing.

The linker keeps one copy of a function that several files define alike (a template, an inline
function), whichever comes first. Were that one compiled for AVX-512, an older processor would stop
at it. So all that a kernel file defines for the linker to merge stands in the namespace of its set.
"""

from __future__ import annotations

import platform
import shutil
import subprocess
from pathlib import Path

import pytest

from tests.csrc.sanitizers import COMPILER, ROOT

KERNELS = sorted((ROOT / "csrc/cpu/kernels").glob("*.cpp"))
FLAGS = [
    "-std=c++20", "-O0", "-DSEESAW_ISA=avx512bf16", "-march=x86-64-v4", "-mavx512bf16",
    "-fno-exceptions", "-fno-rtti", "-Wno-psabi",
]  # fmt: skip
MERGED = "VvWwu"
"""Letters of nm for symbols of which the linker keeps one."""


def merged_symbols(source: Path, folder: Path) -> list[str]:
    """Without optimisation: what would be inlined is there too."""
    target = folder / "object.o"
    subprocess.run([str(COMPILER), *FLAGS, "-c", source, "-o", target], check=True)
    done = subprocess.run(
        ["nm", "--demangle", "--defined-only", target], capture_output=True, text=True, check=True
    )
    symbols = [line.split(maxsplit=2)[1:] for line in done.stdout.splitlines()]
    return [name for kind, name in symbols if kind in MERGED]


@pytest.mark.skipif(
    COMPILER is None or shutil.which("nm") is None or platform.machine() != "x86_64",
    reason="needs a compiler and nm, on x86",
)
def test_kernels_of_one_instruction_set_share_nothing_with_others(tmp_path: Path) -> None:
    assert KERNELS
    for source in KERNELS:
        shared = [name for name in merged_symbols(source, tmp_path) if "avx512bf16::" not in name]
        assert not shared, f"{source.name} leaves these to the linker: {shared}"
    planted = tmp_path / "planted.cpp"
    planted.write_text("#include <algorithm>\nint most(int a, int b) { return std::max(a, b); }\n")
    assert any("std::max" in name for name in merged_symbols(planted, tmp_path))
