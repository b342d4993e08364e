"""The compile check finds what it is for: planted kernels that need too much, or do not compile."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

import seesaw
from seesaw.kernels import aot
from seesaw.kernels.compiling import labels
from seesaw.kernels.config_files import TunedConfig, write
from seesaw.kernels.kernel import Build, Config
from seesaw.kernels.registry import kernels

ROOT = Path(seesaw.__file__).parent.parent
RUN = """
import sys
import seesaw.kernels
seesaw.kernels.__path__.append({folder!r})
from seesaw.kernels import aot
if __name__ == "__main__":
    sys.exit(aot.main(sys.argv[1:]))
"""
PLANTED = """
import triton
import triton.language as tl
from seesaw.kernels.kernel import Build, Config, Kernel


@triton.jit
def _row(x_ptr, out_ptr, BLOCK: tl.constexpr):
    at = tl.arange(0, BLOCK)
    x = tl.load(x_ptr + at)
    tl.store(out_ptr + at, x / tl.sum(x, 0))


@triton.jit
def _product(x_ptr, out_ptr, depth, BLOCK: tl.constexpr):
    at = tl.arange(0, BLOCK)[:, None] * BLOCK + tl.arange(0, BLOCK)[None, :]
    sums = tl.zeros((BLOCK, BLOCK), tl.float32)
    for step in range(depth):
        x = tl.load(x_ptr + step * BLOCK * BLOCK + at)
        y = tl.load(x_ptr + step * BLOCK + at)
        sums = tl.dot(x, y, sums)
    tl.store(out_ptr + at, sums)


@triton.jit
def _wrong(x_ptr, out_ptr, BLOCK: tl.constexpr):
    tl.store(out_ptr + tl.arange(0, BLOCK), tl.load(x_ptr + tl.arange(0, BLOCK // 2)))


def kernel(name, function, config, signature, max_spills=0):
    build = Build(key={"size": 1}, signature=signature, aligned=("x_ptr", "out_ptr"))
    return Kernel(name="planted." + name, function=function, builds=(build,),
                  default=lambda key, target: config, max_spills=max_spills)


ROW = {"x_ptr": "*fp32", "out_ptr": "*fp32"}
WIDE = Config({"BLOCK": 16384}, num_warps=1)
KERNELS = (
    kernel("fits", _row, Config({"BLOCK": 128}), ROW),
    kernel("spills", _row, WIDE, ROW),
    kernel("may_spill", _row, WIDE, ROW, max_spills=10**6),
    kernel("large", _product, Config({"BLOCK": 256}, 8, 4),
           {"x_ptr": "*fp16", "out_ptr": "*fp32", "depth": "i32"}),
    kernel("wrong", _wrong, Config({"BLOCK": 128}), ROW),
)
"""
ENDS = """
import multiprocessing, os
if multiprocessing.parent_process() is not None:
    os._exit(3)
"""


def check(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    script = folder / "run.py"
    script.write_text(RUN.format(folder=str(folder)))
    return subprocess.run(
        [sys.executable, str(script), *arguments],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": f"{ROOT}:{folder}", "TRITON_INTERPRET": "0"},
        capture_output=True,
        text=True,
        check=False,
    )


def test_what_needs_too_much_or_does_not_compile_is_named(tmp_path: Path) -> None:
    (tmp_path / "planted.py").write_text(PLANTED)
    report = tmp_path / "report.json"
    done = check(tmp_path, "--arch", "90", "--kernel", "planted", "--report", str(report))
    assert done.returncode == 1, done.stderr
    failed = {
        line.split("[")[0].split(".")[1]: line
        for line in done.stderr.splitlines()
        if line.startswith("FAILED")
    }
    assert set(failed) == {"spills", "large", "wrong"}, done.stderr
    assert "bytes of registers spilled, at most 0" in failed["spills"]
    assert "bytes of shared memory, at most 232448" in failed["large"]
    assert "CompilationError" in failed["wrong"]
    assert "5 compilations for sm_90" in done.stdout
    assert "3 failed" in done.stdout
    rows = {row["kernel"]: row for row in json.loads(report.read_text())["kernels"]}
    assert rows["planted.may_spill"]["spill_bytes"] > 0
    assert rows["planted.fits"]["spill_bytes"] == 0
    assert rows["planted.large"]["shared_bytes"] > 232448
    assert "registers" not in rows["planted.wrong"]


def test_a_compiler_that_crashes_is_one_failure(tmp_path: Path) -> None:
    (tmp_path / "planted.py").write_text(ENDS + PLANTED)
    done = check(tmp_path, "--arch", "90", "--kernel", "planted.fits")
    assert done.returncode == 1, done.stderr
    assert "ended without a word" in done.stderr


def test_shipped_configurations_are_compiled_too(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    kernel = kernels()["rms_norm"]
    other = Config({"BLOCK": 8192}, num_warps=32)
    tuned = TunedConfig(
        kernel="rms_norm", key=kernel.builds[1].key, device_name="NVIDIA X", capability=90,
        config=other, triton="3.9", clocks_mhz={}, median_us=1.0, default_us=2.0,
        date="2026-01-01",
    )  # fmt: skip
    write(tmp_path, tuned)
    write(tmp_path, replace(tuned, key={"size": 77}))
    monkeypatch.setattr(aot, "SHIPPED", tmp_path)
    found = [task for task in aot.tasks([89, 90], "rms_norm") if task.config == other]
    same_key = [n for n, build in enumerate(kernel.builds) if build.key == tuned.key]
    assert [(task.build, task.capability) for task in found] == [(n, 90) for n in same_key]
    assert aot.without_build("rms_norm") == ["rms_norm/size=77,device_name=NVIDIA_X.json"]


def test_builds_have_names_that_tell_them_apart() -> None:
    for kernel in kernels().values():
        assert len(set(labels(kernel))) == len(kernel.builds) > 0


def test_builds_list_every_argument_of_the_kernel_once() -> None:
    for kernel in kernels().values():
        names = set(kernel.function.arg_names)
        for build in kernel.builds:
            assert isinstance(build, Build)
            assert set(build.signature) <= names, kernel.name
            assert set(build.aligned) <= set(build.signature), kernel.name
            assert not set(build.signature) & set(build.constants), kernel.name
