"""An op appears in every check and tool by its two files alone, which no other file names."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
NEW = Path(__file__).parent / "new_op"
NO_EDITABLE = """
import sys
# An editable installation would find the project where it was installed from, not this copy.
sys.meta_path[:] = [one for one in sys.meta_path if "Redirecting" not in type(one).__name__]
"""


@pytest.fixture(scope="module")
def tree(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of the project with the two files of an op more."""
    root = tmp_path_factory.mktemp("tree")
    for name in ("seesaw", "tests", "csrc"):
        shutil.copytree(ROOT / name, root / name, ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(ROOT / "pyproject.toml", root)
    (root / "sitecustomize.py").write_text(NO_EDITABLE)
    shutil.copy(NEW / "op.py", root / "seesaw/ops/double.py")
    shutil.copy(NEW / "kernel.py", root / "seesaw/kernels/double.py")
    return root


def run(tree: Path, *args: str, interpreted: bool = True) -> str:
    variables = {**os.environ, "PYTHONPATH": str(tree), "SEESAW_CACHE_ROOT": str(tree / "cache")}
    variables["TRITON_INTERPRET"] = "1" if interpreted else "0"
    done = subprocess.run(
        [sys.executable, *args], cwd=tree, env=variables, capture_output=True, text=True,
        check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    return done.stdout


def test_its_tests(tree: Path) -> None:
    files = ("kernels/test_interpreted.py", "ops/test_registry.py", "ops/test_door.py")
    out = run(
        tree, "-m", "pytest", "-rp", "-k", "double", "-p", "no:cacheprovider",
        *(f"tests/{file}" for file in files),
    )  # fmt: skip
    lines = out.splitlines()
    for test in (
        "test_kernel_equals_reference[double-2-float16]",
        "test_plain_torch_equals_reference[double-2-bfloat16]",
        "test_opcheck[double-1]",
        "test_compiled_calls_give_the_same[double]",
    ):
        assert any(line.startswith("PASSED") and line.endswith(test) for line in lines), test


def test_its_compile_check(tree: Path) -> None:
    report = tree / "aot.json"
    run(
        tree, "-m", "seesaw.kernels.aot", "--kernel", "double", "--arch", "80,120",
        "--report", str(report), interpreted=False,
    )  # fmt: skip
    assert "double" in json.dumps(json.loads(report.read_text()))


def test_its_bench_and_its_tuning(tree: Path) -> None:
    figures = tree / "figures.json"
    run(
        tree, "-m", "seesaw", "bench", "kernels", "--op", "double", "--quick",
        "--output-json", str(figures),
    )  # fmt: skip
    assert "double" in figures.read_text()
    code = "from seesaw.tune.model_cases import works; print([w.op for w in works([], None)])"
    assert "'double'" in run(tree, "-c", code)
