"""The copy pool under AddressSanitizer, UndefinedBehaviorSanitizer and ThreadSanitizer."""

from __future__ import annotations

import os
import random
import shutil
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent.parent
SOURCES = [ROOT / "csrc/cpu/copy_pool.cpp", Path(__file__).parent / "copy_pool_test.cpp"]
COMPILER = next((name for name in ("g++", "clang++") if shutil.which(name)), None)


def compile_and_run(
    sources: list[Path], sanitizers: str, folder: Path, *arguments: str
) -> subprocess.CompletedProcess[str]:
    """Skips where there is no compiler, or none with these sanitizers."""
    if COMPILER is None:
        pytest.skip("no g++ or clang++ here")
    program = folder / "program"
    flags = ["-std=c++17", "-O1", "-g", "-Wall", "-Wextra", "-Werror", "-pthread"]
    compile_ = [COMPILER, *flags, f"-fsanitize={sanitizers}", "-fno-sanitize-recover=all"]
    hello = folder / "hello.cpp"
    hello.write_text("int main() { return 0; }\n")
    probe = [*compile_, str(hello), "-o", str(folder / "hello")]
    if subprocess.run(probe, capture_output=True, check=False).returncode != 0:
        pytest.skip(f"{COMPILER} here has no -fsanitize={sanitizers}")
    built = subprocess.run(
        [*compile_, *map(str, sources), "-o", str(program)],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert built.returncode == 0, built.stderr
    return subprocess.run(
        [str(program), *arguments],
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
        env={**os.environ, "TSAN_OPTIONS": "halt_on_error=1", "ASAN_OPTIONS": "detect_leaks=1"},
    )


@pytest.mark.parametrize("sanitizers", ["address,undefined", "thread"])
def test_copy_pool_under(sanitizers: str, tmp_path: Path) -> None:
    seed = random.randrange(2**32)
    done = compile_and_run(SOURCES, sanitizers, tmp_path, str(seed))
    assert done.returncode == 0, f"seed {seed}\n{done.stdout}\n{done.stderr}"
    assert done.stderr == "", f"seed {seed}"
    assert len(done.stdout.splitlines()) == 7


@pytest.mark.parametrize(
    ("sanitizers", "fault", "report"),
    [
        ("address,undefined", "int* p = new int[2]; delete[] p; return p[0];", "use-after-free"),
        ("thread", "int x = 0; std::thread t([&] { x = 1; }); x = 2; t.join(); return 0;", "race"),
    ],
)
def test_the_sanitizers_see_faults(
    sanitizers: str, fault: str, report: str, tmp_path: Path
) -> None:
    source = tmp_path / "fault.cpp"
    source.write_text(f"#include <thread>\nint main() {{ {fault} }}\n")
    done = compile_and_run([source], sanitizers, tmp_path)
    assert done.returncode != 0
    assert report in done.stderr
