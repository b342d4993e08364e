"""The wheel as a stranger gets it: built, installed into an empty environment elsewhere, run.

The environment borrows the dependencies of this one (torch is large); that seesaw itself comes
from the wheel is asserted.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import sysconfig
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest

from seesaw import __version__, _cpu

ROOT = Path(__file__).parent.parent.parent
CLEAN = {
    name: value
    for name, value in os.environ.items()
    if name not in ("PYTHONPATH", "PYTHONHOME", "VIRTUAL_ENV") and not name.startswith("SEESAW_")
}


def run(command: list[str | Path], cwd: Path, **variables: str) -> str:
    done = subprocess.run(
        [str(part) for part in command],
        cwd=cwd,
        env={**CLEAN, **variables},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, f"{command}\n{done.stdout}\n{done.stderr}"
    return done.stdout


def build_wheel(folder: Path, **variables: str) -> Path:
    """pip's own way, in an isolated environment; nothing is written into the checkout."""
    run(
        [
            sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--wheel-dir", folder,
            f"--config-settings=build-dir={folder}/build", ROOT,
        ],
        folder,
        **variables,
    )  # fmt: skip
    (wheel,) = folder.glob("*.whl")
    return wheel


def install(wheel: Path, folder: Path) -> Path:
    """A virtual environment with the wheel and nothing else of its own -> its bin folder."""
    run([sys.executable, "-m", "venv", "--without-pip", folder], folder.parent)
    python = folder / "bin" / "python"
    run(
        [sys.executable, "-m", "pip", "--python", python, "install", "--quiet", "--no-deps", wheel],
        folder.parent,
    )
    code = "import sysconfig; print(sysconfig.get_paths()['purelib'])"
    packages = Path(run([python, "-c", code], folder).strip())
    # Lines of a .pth file are searched after the environment's own packages.
    (packages / "borrowed.pth").write_text(sysconfig.get_paths()["purelib"] + "\n")
    return folder / "bin"


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build_wheel(tmp_path_factory.mktemp("wheel"))


@pytest.fixture(scope="module")
def binaries(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return install(wheel, tmp_path_factory.mktemp("elsewhere") / "env")


def test_the_wheel_holds_the_package_and_nothing_else(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        names = archive.namelist()
    assert {name.split("/")[0] for name in names} == {
        "seesaw",
        f"seesaw_llm-{__version__}.dist-info",
    }
    in_checkout = {str(path.relative_to(ROOT)) for path in (ROOT / "seesaw").rglob("*.py")}
    assert in_checkout == {name for name in names if name.endswith(".py")}
    data = {str(path.relative_to(ROOT)) for path in (ROOT / "seesaw").rglob("*.json")}
    assert data == {name for name in names if name.endswith(".json")} != set()
    assert "seesaw/py.typed" in names
    assert any(name.startswith("seesaw/_cpu.") and name.endswith(".so") for name in names)
    assert any(name.endswith("licenses/LICENSE") for name in names)


def test_seesaw_comes_from_the_wheel(binaries: Path, tmp_path: Path) -> None:
    code = "import seesaw, seesaw._cpu; print(seesaw.__file__); print(seesaw._cpu.__file__)"
    for line in run([binaries / "python", "-c", code], tmp_path).splitlines():
        assert Path(line).is_relative_to(binaries.parent)


def test_version_and_help(binaries: Path, tmp_path: Path) -> None:
    assert run([binaries / "seesaw", "--version"], tmp_path) == f"seesaw {__version__}\n"
    for verb in ([], ["generate"], ["run-batch"], ["bench", "throughput"], ["collect-env"]):
        assert "Usage: seesaw" in run([binaries / "seesaw", *verb, "--help"], tmp_path)


def test_collect_env_knows_the_native_build(binaries: Path, tmp_path: Path) -> None:
    facts = json.loads(run([binaries / "seesaw", "collect-env", "--output-json", "-"], tmp_path))
    assert facts["native_build"]["compiler"].split()[0] in ("gcc", "clang")
    assert facts["native_build"]["cxx_standard"] >= 201703


@pytest.mark.parametrize("isa", ["", "avx2", "generic"])
def test_generate(
    isa: str, binaries: Path, tiny_checkpoint: Callable[..., Path], tmp_path: Path
) -> None:
    """On an older processor too, as far as forcing its instruction set shows that."""
    if isa == "avx2" and "avx2" not in _cpu.build_info()["cpu_features"]:
        pytest.skip("this processor has no AVX2")
    model = tiny_checkpoint("llama")
    out = run(
        [
            binaries / "seesaw", "generate", "--model", model, "--prompt", "A request waits",
            "--max-tokens", "5", "--ignore-eos", "--device-memory", "256MiB", "--output-json", "-",
        ],
        tmp_path,
        SEESAW_CPU_ISA=isa,
    )  # fmt: skip
    (result,) = json.loads(out)["results"]
    assert len(result["outputs"][0]["token_ids"]) == 5


def test_without_a_compiler_seesaw_is_pure_python(tmp_path: Path) -> None:
    wheel = build_wheel(tmp_path, SEESAW_PURE_PYTHON="1", CXX="/no/compiler")
    assert wheel.name == f"seesaw_llm-{__version__}-py3-none-any.whl"
    binaries = install(wheel, tmp_path / "env")
    out = run([binaries / "seesaw", "collect-env", "--output-json", "-"], tmp_path)
    assert json.loads(out)["native_build"] is None
