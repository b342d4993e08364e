"""Compiles every kernel for every GPU that is supported, without one: `python -m seesaw.kernels.aot`.

Fails where a kernel does not compile, asks for more shared memory than the GPU has, or spills more
registers than its file allows.
"""

from __future__ import annotations

import argparse
import re
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from seesaw.kernels.kernel import Build, Config, Kernel, Target
from seesaw.kernels.registry import kernels

TARGETS = {
    80: Target(80, 166_912, 108),
    86: Target(86, 101_376, 72),
    89: Target(89, 101_376, 58),
    90: Target(90, 232_448, 132),
    100: Target(100, 232_448, 148),
    120: Target(120, 101_376, 170),
}


@dataclass(frozen=True, slots=True)
class Compiled:
    kernel: str
    key: str
    target: int
    registers: int
    spill_bytes: int
    shared_bytes: int


def compile_build(kernel: Kernel, build: Build, config: Config, target: Target) -> Compiled:
    names = kernel.function.arg_names
    constants = {**build.constants, **config.blocks}
    signature = {name: build.signature.get(name, "constexpr") for name in names}
    assert set(build.signature) | set(constants) == set(names), (
        f"{kernel.name}: {sorted(set(build.signature) | set(constants) ^ set(names))}"
    )
    attributes = {(names.index(name),): [["tt.divisibility", 16]] for name in build.aligned}
    source = ASTSource(kernel.function, signature, constants, attributes)
    options = {"num_warps": config.num_warps, "num_stages": config.num_stages}
    compiled = triton.compile(
        source, target=GPUTarget("cuda", target.capability, 32), options=options
    )
    registers, stack = _resources(compiled.asm["cubin"])
    key = ",".join(f"{name}={value}" for name, value in build.key.items())
    shared = compiled.metadata.shared
    return Compiled(kernel.name, key, target.capability, registers, stack, shared)


def _resources(cubin: bytes) -> tuple[int, int]:
    """(registers of a thread, bytes of its stack), from the assembler's own notes in the binary."""
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(cubin)
        file.flush()
        tool = Path(triton.__file__).parent / "backends/nvidia/bin/cuobjdump"
        text = subprocess.check_output([tool, "-res-usage", file.name], text=True)
    found = re.search(r"REG:(\d+) STACK:(\d+)", text)
    assert found is not None, text
    return int(found[1]), int(found[2])


def compile_all(targets: list[int], only: str) -> Iterator[tuple[Kernel, Compiled]]:
    for kernel in kernels().values():
        if only not in kernel.name:
            continue
        for build in kernel.builds:
            for capability in targets:
                if capability < build.least:
                    continue
                target = TARGETS[capability]
                config = kernel.default(build.key, target)
                yield kernel, compile_build(kernel, build, config, target)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--arch", default=",".join(map(str, TARGETS)))
    parser.add_argument("--kernel", default="", help="only kernels whose name contains this")
    asked = parser.parse_args()
    bad = 0
    for kernel, one in compile_all([int(arch) for arch in asked.arch.split(",")], asked.kernel):
        target = TARGETS[one.target]
        ok = one.spill_bytes <= kernel.max_spills and one.shared_bytes <= target.shared_memory_bytes
        bad += not ok
        print(one, "" if ok else "  <-- too much")
    return min(bad, 1)


if __name__ == "__main__":
    sys.exit(main())
