"""Compiles one kernel for one GPU, without one, and tells what the machine code needs of it."""

from __future__ import annotations

import contextlib
import io
import re
import subprocess
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import triton
from triton import knobs
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from seesaw.kernels.kernel import Build, Config, Kernel, Target

SPILLS = re.compile(r"(\d+) bytes spill stores, (\d+) bytes spill loads")
REGISTERS = re.compile(r"Used (\d+) registers")


@dataclass(frozen=True, slots=True)
class Resources:
    """Registers of a thread, bytes that its instructions store and load because these are too few,
    and shared memory of a block."""

    registers: int
    spill_bytes: int
    shared_bytes: int


def compile_build(kernel: Kernel, build: Build, config: Config, target: Target) -> Resources:
    """What `build` of `kernel` with `config` needs on `target`.

    Always compiled, never taken from Triton's cache, since the assembler says of spills what the
    machine code does not. Its words come by way of standard output, which is set aside meanwhile.
    Needs a process without TRITON_INTERPRET. Raises whatever Triton raises.
    """
    assert not knobs.runtime.interpret, "with TRITON_INTERPRET kernels are not compiled"
    log = io.StringIO()
    with knobs.compilation.scope(), knobs.nvidia.scope(), contextlib.redirect_stdout(log):
        knobs.compilation.always_compile = True
        knobs.nvidia.dump_ptxas_log = True
        compiled = triton.compile(
            _source(kernel, build, config),
            target=GPUTarget("cuda", target.capability, 32),
            options=config.options(),
        )
    registers, spills = REGISTERS.findall(log.getvalue()), SPILLS.findall(log.getvalue())
    assert registers, f"no figures in what ptxas said: {log.getvalue()}"
    assert spills, f"no figures in what ptxas said: {log.getvalue()}"
    return Resources(
        max(map(int, registers)),
        sum(int(stored) + int(loaded) for stored, loaded in spills),
        compiled.metadata.shared,
    )


def _source(kernel: Kernel, build: Build, config: Config) -> ASTSource:
    names = kernel.function.arg_names
    constants = {**build.constants, **config.blocks}
    odd = (set(build.signature) | set(constants)) ^ set(names)
    assert not odd, f"{kernel.name}: arguments of the build or the kernel alone: {sorted(odd)}"
    twice = set(build.signature) & set(constants)
    assert not twice, f"{kernel.name}: both with a type and constant: {sorted(twice)}"
    types = build.types(config)
    signature = {name: types.get(name, "constexpr") for name in names}
    attributes = {
        (names.index(name),): [["tt.divisibility", 16]]
        for name in build.aligned
        if types[name] == build.signature[name]
    }
    return ASTSource(kernel.function, signature, constants, attributes)


def resources_of_cubin(cubin: bytes) -> dict[str, Resources]:
    """By function of the machine code. Spills: what a thread has of local memory, which holds
    arrays of its own too."""
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(cubin)
        file.flush()
        tool = Path(triton.__file__).parent / "backends/nvidia/bin/cuobjdump"
        text = subprocess.check_output([tool, "-res-usage", file.name], text=True)
    found = re.findall(r"Function (\S+):\s+REG:(\d+) STACK:(\d+) SHARED:(\d+) LOCAL:(\d+)", text)
    assert found, text
    return {
        name: Resources(int(registers), int(stack) + int(local), int(shared))
        for name, registers, stack, shared, local in found
    }


def labels(kernel: Kernel) -> tuple[str, ...]:
    """A name for each build: its key, and what else tells the builds of the kernel apart."""
    table = [_properties(build) for build in kernel.builds]
    names = list(dict.fromkeys(name for row in table for name in row))
    shown: dict[tuple[str, ...], str] = {}  # of columns that say the same, the first
    for name in names:
        column = tuple(str(row.get(name)) for row in table)
        if name in kernel.builds[0].key or len(set(column)) > 1:
            shown.setdefault(column, name)
    found = [
        ",".join(f"{name}={row[name]}" for name in shown.values() if name in row) for row in table
    ]
    if len(set(found)) < len(found):
        found = [
            f"{label},aligned={len(build.aligned)}"
            for label, build in zip(found, kernel.builds, strict=True)
        ]
    twice = {label for label in found if found.count(label) > 1}
    assert not twice, f"{kernel.name}: builds that do not differ: {sorted(twice)}"
    return tuple(found)


def _properties(build: Build) -> Mapping[str, Any]:
    rest = {**build.constants, **build.signature, "least": build.least}
    return {**build.key, **{name: rest[name] for name in rest if name not in build.key}}
