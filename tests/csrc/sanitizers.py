"""Compiles a stand-alone C++ test with sanitizers and runs it."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent.parent
COMPILER = next((name for name in ("g++", "clang++") if shutil.which(name)), None)
SANITIZERS = ("address,undefined", "thread")


def compile_and_run(
    sources: list[Path], sanitizers: str, folder: Path, *arguments: str, flags: Sequence[str] = ()
) -> subprocess.CompletedProcess[str]:
    """Skips where there is no compiler, or none with these sanitizers."""
    if COMPILER is None:
        pytest.skip("no g++ or clang++ here")
    program = folder / "program"
    common = ["-std=c++20", "-O1", "-g", "-Wall", "-Wextra", "-Werror", "-pthread"]
    compile_ = [COMPILER, *common, *flags, f"-fsanitize={sanitizers}", "-fno-sanitize-recover=all"]
    hello = folder / "hello.cpp"
    hello.write_text("int main() { return 0; }\n")
    probe = [*compile_, str(hello), "-o", str(folder / "hello")]
    if subprocess.run(probe, capture_output=True, check=False).returncode != 0:
        pytest.skip(f"{COMPILER} here has no -fsanitize={sanitizers}")
    objects = [folder / f"{number}.o" for number in range(len(sources))]
    with ThreadPoolExecutor(os.cpu_count()) as threads:
        steps = [
            threads.submit(_compile, [*compile_, "-c", str(source), "-o", str(out)])
            for source, out in zip(sources, objects, strict=True)
        ]
    for step in steps:
        step.result()
    _compile([*compile_, *map(str, objects), "-o", str(program)])
    return subprocess.run(
        [str(program), *arguments],
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
        env={**os.environ, "TSAN_OPTIONS": "halt_on_error=1", "ASAN_OPTIONS": "detect_leaks=1"},
    )


def _compile(command: list[str]) -> None:
    built = subprocess.run(command, capture_output=True, text=True, check=False)
    assert built.returncode == 0, built.stderr
