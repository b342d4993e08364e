"""`make sanitize`: the native code under AddressSanitizer and UndefinedBehaviorSanitizer (the tests
of ops, packing and the decoder, in each instruction set that this processor has), and its threads
under ThreadSanitizer (the stand-alone tests of tests/csrc).

Builds seesaw._cpu once more, with sanitizers, in build/sanitize (two minutes on two cores); the
installed one stays as it is. Python's own memory then comes from malloc too, so that reads past the
end of any tensor or string are seen. Arguments go to pytest: python scripts/sanitize.py -k linear
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
FOLDER = ROOT / "build" / "sanitize"
SANITIZERS = "address,undefined"
TESTS = (
    "tests/ops",
    "tests/models/test_cpu_decoder.py",
    "tests/weights/test_panels.py",
    "tests/measure",
)
THREAD_TESTS = ("tests/csrc",)
# Ahead of the installed module, in this process and in those that it starts.
FINDER = """\
import importlib.util
import sys


class Finder:
    def find_spec(self, name, path=None, target=None):
        if name == "seesaw._cpu":
            return importlib.util.spec_from_file_location(name, {module!r})


sys.meta_path.insert(0, Finder())
"""
FAULT = """\
from seesaw import _cpu
data = bytearray(4096)
import ctypes
_cpu.read_rate(ctypes.addressof(ctypes.c_char.from_buffer(data)), len(data) + 64)
"""


def fail(text: str) -> None:
    sys.exit(f"make sanitize: {text}")


def run(command: list[str], **variables: str) -> None:
    print("+", " ".join(command), flush=True)
    done = subprocess.run(command, cwd=ROOT, env={**os.environ, **variables}, check=False)
    if done.returncode:
        fail(f"this failed (exit {done.returncode}); the lines above say why")


def build() -> None:
    """The module with sanitizers, in a folder with a sitecustomize that finds it first."""
    wheels = FOLDER / "wheel"
    shutil.rmtree(wheels, ignore_errors=True)
    run(
        [
            sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", f"--wheel-dir={wheels}",
            f"--config-settings=build-dir={FOLDER / 'cmake'}",
            f"--config-settings=cmake.define.SEESAW_SANITIZE={SANITIZERS}", str(ROOT),
        ],
    )  # fmt: skip
    (wheel,) = wheels.glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        (name,) = (name for name in archive.namelist() if name.endswith(".so"))
        module = FOLDER / Path(name).name
        module.write_bytes(archive.read(name))
    (FOLDER / "sitecustomize.py").write_text(FINDER.format(module=str(module)))


def preloads(compiler: str) -> str:
    """Libraries that must come before all others, the C++ one so that throwing is seen."""
    found = []
    for name in ("libasan.so", "libstdc++.so"):
        path = subprocess.run(
            [compiler, f"-print-file-name={name}"], capture_output=True, text=True, check=True
        ).stdout.strip()
        if not os.path.isabs(path):
            fail(f"{compiler} has no {name}. Install it: sudo apt-get install -y libgcc-12-dev")
        found.append(os.path.realpath(path))
    return ":".join(found)


def check_that_faults_are_seen(variables: dict[str, str]) -> None:
    """Tests that pass prove nothing where it is not this module that they load."""
    done = subprocess.run(
        [sys.executable, "-c", FAULT],
        cwd=ROOT, env={**os.environ, **variables}, capture_output=True, text=True, check=False,
    )  # fmt: skip
    if "heap-buffer-overflow" not in done.stderr:
        fail(f"a read past the end of a buffer went unseen:\n{done.stdout}{done.stderr}")


def main(arguments: list[str]) -> None:
    compiler = os.environ.get("CXX", "g++")
    if shutil.which(compiler) is None:
        fail(f"no {compiler} here. Install it: sudo apt-get install -y g++ (or set CXX)")
    preload = preloads(compiler)
    build()
    pytest = [sys.executable, "-m", "pytest", "-p", "no:cacheprovider"]
    variables = {
        "LD_PRELOAD": preload,
        "PYTHONPATH": str(FOLDER),
        "PYTHONMALLOC": "malloc",
        "OMP_NUM_THREADS": "1",
        # What Python leaves at its end is no leak of ours.
        "ASAN_OPTIONS": "detect_leaks=0",
        "UBSAN_OPTIONS": "print_stacktrace=1",
    }
    check_that_faults_are_seen(variables)
    run([*pytest, *TESTS, *arguments], **variables)
    if not arguments:
        run([*pytest, *THREAD_TESTS])


if __name__ == "__main__":
    main(sys.argv[1:])
