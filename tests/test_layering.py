"""Who may import whom. The table below is the architecture; these tests keep it true.

A package may import the packages named for it, any of the OPEN modules, and the third-party
libraries named for it (plus the standard library). Imports inside functions count too.
"""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest

import seesaw

ROOT = Path(seesaw.__file__).parent


class Allowed(NamedTuple):
    packages: str
    libraries: str = ""


# Open to all; import nothing of seesaw but each other, and no third-party library.
OPEN = "errors envs config sizes sampling_params outputs latency log trace"
STDLIB_ONLY = ""
# Settings are checked when they are made, layouts too, so these stand below `config`.
BELOW_CONFIG = "layout families errors"
LAYERS = {
    # package        may import of seesaw                  and these libraries
    "families":    Allowed("",                             STDLIB_ONLY),
    "layout":      Allowed("families",                     STDLIB_ONLY),
    "plan":        Allowed("families layout",              STDLIB_ONLY),
    "scheduler":   Allowed("layout plan",                  STDLIB_ONLY),
    "simulate":    Allowed("families layout plan scheduler", "numpy"),
    "batch":       Allowed("",                             STDLIB_ONLY),
    "tokenizer":   Allowed("",                             "tokenizers jinja2 transformers"),
    "kernels":     Allowed("plan hostmem",                 "torch triton cupy cupy_backends"),
    "ops":         Allowed("layout plan kernels _cpu",     "torch triton"),
    "layers":      Allowed("families layout ops",          "torch"),
    "hostmem":     Allowed("",                             "torch"),
    "measure":     Allowed("_cpu",                         "torch"),
    "cuda":        Allowed("kernels",                      "torch cupy numpy"),
    "kvcache":     Allowed("layout plan hostmem cuda ops _cpu", "torch"),
    "distributed": Allowed("layers layout plan hostmem cuda _cpu", "torch"),
    "models":      Allowed("families layout plan kvcache ops layers _cpu", "torch"),
    "weights":     Allowed("families layout hostmem cuda tokenizer _cpu",
                           "torch numpy safetensors gguf huggingface_hub"),
    "tune":        Allowed("families kernels ops measure",  "torch triton"),
    "engine":      Allowed("families layout plan scheduler tokenizer ops layers kvcache models "
                           "weights hostmem cuda distributed _cpu",
                           "torch psutil zmq msgspec"),
    "api":         Allowed("families layout plan scheduler simulate batch tokenizer weights engine "
                           "ops kernels measure tune _cpu",
                           "torch click rich tqdm matplotlib flashinfer"),
    # Finds its verbs by name, when one is asked for.
    "cli":         Allowed("",                             "click"),
    "__main__":    Allowed("cli",                          STDLIB_ONLY),
    # Its names load nothing until they are asked for (see the subprocess tests).
    "__init__":    Allowed("api engine",                   STDLIB_ONLY),
}  # fmt: skip


class Import(NamedTuple):
    where: str
    package: str  # of seesaw; empty for a third-party library
    library: str


def home(path: Path) -> str:
    """The row of the table that a file belongs to."""
    return path.relative_to(ROOT).parts[0].removesuffix(".py")


def imports_of(path: Path) -> Iterator[Import]:
    for node in ast.walk(ast.parse(path.read_text(), str(path))):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}:{node.lineno}: relative imports hide the layer"
            names = [node.module or ""]
            if node.module == "seesaw":
                names = [f"seesaw.{alias.name}" for alias in node.names]
        else:
            continue
        where = f"{path.relative_to(ROOT.parent)}:{node.lineno}"
        for name in names:
            top, _, rest = name.partition(".")
            if top == "seesaw":
                yield Import(where, rest.partition(".")[0] or "__init__", "")
            elif top not in sys.stdlib_module_names:
                yield Import(where, "", top)


FILES = sorted(ROOT.rglob("*.py"))


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(ROOT)))
def test_imports_keep_to_the_layers(path: Path) -> None:
    own = home(path)
    allowed = Allowed(OPEN) if own in OPEN.split() else LAYERS.get(own)
    assert allowed is not None, f"{own} is not in the table: say where it stands"
    packages = {own, *OPEN.split(), *allowed.packages.split(), "__version__"}
    if own == "config":
        packages.add("layout")
    if own in BELOW_CONFIG.split():
        packages.remove("config")
    for found in imports_of(path):
        if found.library:
            assert found.library in allowed.libraries.split(), (
                f"{found.where}: {own} must not import {found.library}"
            )
        else:
            assert found.package in packages, (
                f"{found.where}: {own} must not import seesaw.{found.package}"
            )


def test_the_walk_sees_imports_wherever_they_stand() -> None:
    file = ROOT / "engine" / "engine.py"
    assert {found.package for found in imports_of(file)} >= {"config", "scheduler", "errors"}
    assert "torch" in {found.library for found in imports_of(ROOT / "engine" / "loader.py")}


def run_python(code: str) -> str:
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT.parent, check=False
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


HEAVY = ("torch", "numpy", "transformers", "tokenizers", "gguf", "huggingface_hub", "rich", "tqdm")
BLOCK = """
import importlib, pkgutil, sys
class Block:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in {blocked!r}:
            raise ImportError(name + " is blocked")
sys.meta_path.insert(0, Block())
import seesaw
package = importlib.import_module("seesaw.{package}")
found = [package.__name__]
for module in pkgutil.walk_packages(package.__path__, package.__name__ + "."):
    importlib.import_module(module.name)
    found.append(module.name)
print(len(found))
"""


def test_import_seesaw_loads_nothing_heavy() -> None:
    code = f"import seesaw, sys; print([name for name in {HEAVY!r} if name in sys.modules])"
    assert run_python(code) == "[]\n"


def test_names_resolve_at_first_use_and_typos_do_not() -> None:
    code = """
import sys, seesaw
params = seesaw.SamplingParams(max_tokens=1)
assert "torch" not in sys.modules
assert set(seesaw.__all__) <= set(dir(seesaw))
try:
    seesaw.LMM
except AttributeError as error:
    print(error)
"""
    assert run_python(code) == "module 'seesaw' has no attribute 'LMM'\n"


@pytest.mark.parametrize(
    ("package", "blocked"),
    [
        ("families", ("torch", "numpy")),
        ("layout", ("torch", "numpy")),
        ("plan", ("torch", "numpy")),
        ("scheduler", ("torch", "numpy")),
        ("simulate", ("torch",)),
        ("batch", ("torch", "numpy")),
        ("tokenizer", ("torch",)),
    ],
)
def test_package_imports_without(package: str, blocked: tuple[str, ...]) -> None:
    count = int(run_python(BLOCK.format(package=package, blocked=blocked)))
    assert count == len(list((ROOT / package).rglob("*.py")))


def test_one_device_needs_none_of_the_libraries_that_join_processes() -> None:
    code = "import sys, seesaw.api.llm; print([n for n in ('zmq', 'msgspec') if n in sys.modules])"
    assert run_python(code) == "[]\n"


@pytest.mark.parametrize("arguments", [["--version"], ["--help"], ["run-batch", "--help"]])
def test_help_and_version_load_no_torch(arguments: list[str]) -> None:
    code = f"""
import sys
from seesaw.cli import main
try:
    main({arguments!r})
except SystemExit as stop:
    assert stop.code in (0, None), stop.code
print([name for name in ("torch", "numpy", "transformers") if name in sys.modules])
"""
    assert run_python(code).endswith("\n[]\n")
