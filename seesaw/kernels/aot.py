"""Compiles every kernel for every GPU that is supported, without one: every build of the Triton
kernels with the default and all shipped configurations, and every source of csrc/cuda.

    python -m seesaw.kernels.aot --arch 80,90 --report aot.json

Fails where something does not compile, asks for more shared memory than the GPU has, or spills more
registers than its file allows. All failures are listed, then the exit status is 1.
"""

from __future__ import annotations

import os

if __name__ == "__main__":  # before Triton is imported, which then would not compile
    os.environ.pop("TRITON_INTERPRET", None)

import argparse
import contextlib
import importlib.metadata
import importlib.util
import json
import multiprocessing
import shutil
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from seesaw.kernels.compiling import Resources, compile_build, labels, resources_of_cubin
from seesaw.kernels.config_files import SHIPPED, read_all
from seesaw.kernels.kernel import Config, Kernel, Key
from seesaw.kernels.registry import kernels
from seesaw.kernels.target import compile_targets

PROGRESS_EVERY_S = 10.0
NVRTC = "seesaw.kernels.nvrtc"
COMPILERS = ("triton", "nvidia-cuda-nvrtc")


@dataclass(frozen=True, slots=True)
class Task:
    """One compilation: build number `build` of a Triton kernel with `config`, or, without them, the
    source of csrc/cuda called `kernel`."""

    kernel: str
    capability: int
    build: int | None = None
    config: Config | None = None


@dataclass(frozen=True, slots=True)
class Result:
    """Of one function. `error`: why it did not compile; `too_much`: what it needs too much of;
    `seconds` that the compiler took, which no report holds as they differ each time."""

    kernel: str
    build: str
    config: str
    sm: int
    resources: Resources | None = None
    error: str = ""
    too_much: str = ""
    seconds: float = 0.0

    def row(self) -> dict[str, Any]:
        """For the report."""
        named = {"kernel": self.kernel, "build": self.build, "config": self.config, "sm": self.sm}
        return {**named, **(asdict(self.resources) if self.resources else {})}


def tasks(capabilities: Sequence[int], only: str) -> Iterator[Task]:
    """What there is to compile of kernels whose name contains `only`."""
    for name, kernel in kernels().items():
        if only not in name:
            continue
        for index, build in enumerate(kernel.builds):
            for capability in capabilities:
                if capability < build.least:
                    continue
                for config in _configs(kernel, build.key, capability):
                    yield Task(name, capability, index, config)
    for source in _cuda_sources():
        if only in source:
            yield from (Task(source, capability) for capability in capabilities)


def _configs(kernel: Kernel, key: Key, capability: int) -> list[Config]:
    """The default one, and those that come with seesaw for devices of `capability`."""
    found = [kernel.default(key, compile_targets()[capability])]
    for tuned in read_all(SHIPPED, kernel.name):
        builds_it = tuned.capability == capability and dict(tuned.key) == dict(key)
        if builds_it and tuned.config not in found:
            found.append(tuned.config)
    return found


def without_build(only: str) -> list[str]:
    """Shipped configurations that no build of their kernel has the key of, so that nothing of them
    would be compiled."""
    return [
        f"{tuned.kernel}/{tuned.file_name}"
        for name, kernel in kernels().items()
        if only in name
        for tuned in read_all(SHIPPED, name)
        if dict(tuned.key) not in [dict(build.key) for build in kernel.builds]
    ]


def _cuda_sources() -> list[str]:
    if importlib.util.find_spec(NVRTC) is None:
        return []
    found: list[str] = importlib.import_module(NVRTC).sources()
    return found


def run(task: Task) -> list[Result]:
    """In a process of its own or in this one; nothing that a kernel raises gets out."""
    start_s = time.monotonic()
    try:
        found = _run_triton(task) if task.build is not None else _run_cuda(task)
        return [replace(one, seconds=(time.monotonic() - start_s) / len(found)) for one in found]
    except Exception as error:
        label = "" if task.build is None else labels(kernels()[task.kernel])[task.build]
        said = f"{type(error).__name__}: {error}".strip()
        return [Result(task.kernel, label, str(task.config or ""), task.capability, error=said)]


def _run_triton(task: Task) -> list[Result]:
    assert task.build is not None
    assert task.config is not None
    kernel = kernels()[task.kernel]
    target = compile_targets()[task.capability]
    found = compile_build(kernel, kernel.builds[task.build], task.config, target)
    label = labels(kernel)[task.build]
    return [_checked(task, kernel.name, label, found, kernel.max_spills)]


def _run_cuda(task: Task) -> list[Result]:
    cubin = importlib.import_module(NVRTC).compile_source(task.kernel, task.capability)
    return [
        _checked(task, task.kernel, name, found, 0)
        for name, found in sorted(resources_of_cubin(cubin).items())
    ]


def _checked(task: Task, kernel: str, build: str, found: Resources, max_spills: int) -> Result:
    limit = compile_targets()[task.capability].shared_memory_bytes
    wrong = []
    if found.spill_bytes > max_spills:
        wrong.append(f"{found.spill_bytes} bytes of registers spilled, at most {max_spills}")
    if found.shared_bytes > limit:
        wrong.append(f"{found.shared_bytes} bytes of shared memory, at most {limit}")
    config = str(task.config or "")
    return Result(kernel, build, config, task.capability, found, too_much="; ".join(wrong))


def run_all(found: Sequence[Task], processes: int) -> list[Result]:
    """Results in an order that does not depend on who was first; progress on standard error."""
    start_s = shown_s = time.monotonic()
    results: list[Result] = []
    crashed: list[Task] = []
    with _pool(processes) as pool:
        futures = {pool.submit(run, task): task for task in found}
        for done, future in enumerate(as_completed(futures), 1):
            try:
                results += future.result()
            except BrokenProcessPool:
                crashed.append(futures[future])
            now_s = time.monotonic()
            if now_s - shown_s >= PROGRESS_EVERY_S:
                shown_s = now_s
                say = f"  {done} of {len(found)} compiled, {now_s - start_s:.0f} s"
                print(say, file=sys.stderr, flush=True)
    for task in crashed:  # one of them took the others with it
        results += _run_apart(task)
    return sorted(results, key=lambda one: (one.kernel, one.build, one.sm, one.config))


def _run_apart(task: Task) -> list[Result]:
    with _pool(1) as pool:
        try:
            return pool.submit(run, task).result()
        except BrokenProcessPool:
            config = str(task.config or "")
            error = "the compiler's process ended without a word"
            return [Result(task.kernel, f"{task.build}", config, task.capability, error=error)]


def _pool(processes: int) -> ProcessPoolExecutor:
    return ProcessPoolExecutor(processes, multiprocessing.get_context("spawn"))


def write_report(path: Path, results: Sequence[Result]) -> None:
    """One line for each, so that what changed between two reports is a few lines."""
    versions = {}
    for name in COMPILERS:
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            versions[name] = importlib.metadata.version(name)
    rows = ",\n".join("  " + json.dumps(one.row()) for one in results)
    path.write_text(f'{{\n "versions": {json.dumps(versions)},\n "kernels": [\n{rows}\n ]\n}}\n')


def table(results: Sequence[Result]) -> Iterator[str]:
    """The worst of each kernel over its builds, configurations and GPUs."""
    width = max([len("kernel"), *(len(one.kernel) for one in results)])
    yield f"{'kernel':<{width}} compiled registers spill bytes  shared KiB  seconds"
    for name in dict.fromkeys(one.kernel for one in results):
        own = [one for one in results if one.kernel == name]
        whole = [one.resources for one in own if one.resources is not None]
        worst = [max((getattr(one, field) for one in whole), default=0) for field in FIELDS]
        registers, spills, shared = worst
        yield (
            f"{name:<{width}} {len(whole):8d} {registers:9d} {spills:11d} {shared / 1024:11.1f} "
            f"{sum(one.seconds for one in own):8.0f}"
            + ("" if len(whole) == len(own) else f"  {len(own) - len(whole)} did not compile")
        )


FIELDS = ("registers", "spill_bytes", "shared_bytes")


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m seesaw.kernels.aot", description=__doc__)
    known = list(compile_targets())
    parser.add_argument("--arch", default=",".join(map(str, known)), help="default: %(default)s")
    parser.add_argument("--kernel", default="", help="only kernels whose name contains this")
    parser.add_argument("--report", type=Path, metavar="FILE", help="write all figures as JSON")
    parser.add_argument(
        "--processes", type=int, default=min(8, len(os.sched_getaffinity(0))), help="%(default)s"
    )
    asked = parser.parse_args(arguments)
    capabilities = []
    for text in asked.arch.split(","):
        if not text.strip().isdigit() or int(text) not in known:
            parser.error(f"--arch: got {text!r}, expected some of {', '.join(map(str, known))}")
        capabilities.append(int(text))
    found = list(tasks(capabilities, asked.kernel))
    if not found:
        parser.error(f"--kernel: none is called {asked.kernel!r}: {', '.join(kernels())}")
    start_s = time.monotonic()
    cache = tempfile.mkdtemp(prefix="seesaw-aot-")  # of what nobody will run
    os.environ["TRITON_CACHE_DIR"] = cache
    try:
        results = run_all(found, asked.processes)
    finally:
        shutil.rmtree(cache, ignore_errors=True)
    print("\n".join(table(results)))
    if asked.report is not None:
        write_report(asked.report, results)
        print(f"wrote {asked.report}")
    bad = [one for one in results if one.error or one.too_much]
    for one in bad:
        where = f"{one.kernel}[{one.build}] {one.config} sm_{one.sm}"
        print(f"FAILED {where}: {one.error or one.too_much}", file=sys.stderr)
    unbuilt = without_build(asked.kernel)
    for name in unbuilt:
        print(f"FAILED configs/{name}: no build of the kernel has this key", file=sys.stderr)
    print(
        f"{len(found)} compilations for {', '.join(f'sm_{one}' for one in capabilities)} in "
        f"{time.monotonic() - start_s:.0f} s: {len(bad) + len(unbuilt)} failed"
    )
    return min(len(bad) + len(unbuilt), 1)


if __name__ == "__main__":
    sys.exit(main())
