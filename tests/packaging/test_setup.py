"""`make setup` names what a machine lacks, and does nothing when there is nothing to do."""

from __future__ import annotations

import importlib.util
import runpy
import subprocess
import sys
import tomllib
from pathlib import Path
from types import ModuleType

import pytest

from seesaw.ops.native import SLOWDOWN

ROOT = Path(__file__).parent.parent.parent


@pytest.fixture
def setup() -> ModuleType:
    spec = importlib.util.spec_from_file_location("setup_script", ROOT / "scripts" / "setup.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def include(tmp_path: Path) -> Path:
    (tmp_path / "Python.h").touch()
    return tmp_path


def nowhere(name: str) -> None:
    return None


def test_nothing_is_missing_on_a_full_machine(setup: ModuleType, include: Path) -> None:
    assert setup.missing_packages("3.11", str(include), lambda name: f"/bin/{name}") == []


def test_each_missing_thing_is_named_with_its_package(
    setup: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("CXX", raising=False)
    missing = setup.missing_packages("3.12", str(tmp_path), nowhere)
    assert [name for name, _ in missing] == ["python3.12-dev", "g++"]


def test_the_compiler_of_CXX_is_the_one_that_counts(
    setup: ModuleType, include: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def only_gcc(name: str) -> str | None:
        return "/bin/g++" if name == "g++" else None

    monkeypatch.setenv("CXX", "my-c++ -O1")
    assert setup.missing_packages("3.11", str(include), only_gcc) == [("g++", "a C++ compiler")]
    monkeypatch.setenv("CXX", "g++ -O1")
    assert setup.missing_packages("3.11", str(include), only_gcc) == []


def test_without_venv_there_is_one_line_to_paste(
    setup: ModuleType, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(setup, "facts_of", lambda python: ("3.11", False, "/no/include"))
    with pytest.raises(SystemExit) as stop:
        setup.check_machine("python3")
    assert stop.value.code == 1
    err = capsys.readouterr().err
    assert "the venv module and the header Python.h" in err
    assert "    sudo apt-get install -y python3.11-venv python3.11-dev\n" in err


def test_without_a_compiler_setup_goes_on_and_says_what_that_costs(
    setup: ModuleType,
    include: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.delenv("SEESAW_PURE_PYTHON", raising=False)
    monkeypatch.setattr(setup, "facts_of", lambda python: ("3.12", True, str(include)))
    monkeypatch.setenv("CXX", "/no/compiler")
    pure = setup.check_machine("python3")
    assert pure == (
        "this machine lacks a C++ compiler",
        "sudo apt-get install -y g++ && make setup",
    )
    steps = []
    monkeypatch.setattr(setup, "run_quietly", lambda *args, **more: steps.append((args, more)))
    setup.install(["pip", "install"], pure)
    (((_, command), variables),) = steps
    assert command == ["pip", "install", "-e", ".[dev]"]
    assert variables == {"SEESAW_PURE_PYTHON": "1"}
    setup.tell_pure(pure)
    said = capsys.readouterr().out
    assert "not built: this machine lacks a C++ compiler." in said
    assert f"{SLOWDOWN} as long" in said
    assert said.endswith("    sudo apt-get install -y g++ && make setup\n")
    assert max(map(len, said.splitlines())) <= 80


def test_pure_python_can_be_asked_for(
    setup: ModuleType, include: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(setup, "facts_of", lambda python: ("3.12", True, str(include)))
    monkeypatch.setenv("CXX", sys.executable)
    for value, asked in (("1", True), ("0", False), ("", False)):
        monkeypatch.setenv("SEESAW_PURE_PYTHON", value)
        assert (setup.check_machine("python3") is not None) == asked


def test_a_build_that_fails_names_the_way_without_it(
    setup: ModuleType, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit):
        setup.install([sys.executable, "-c", "raise SystemExit('no g++')"], None)
    err = capsys.readouterr().err
    assert "no g++" in err
    assert err.endswith("    SEESAW_PURE_PYTHON=1 make setup\n")


def test_an_unsupported_python_is_named(
    setup: ModuleType, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(setup, "SUPPORTED", ((2, 6), (2, 7)))
    monkeypatch.setattr(setup.shutil, "which", nowhere)
    with pytest.raises(SystemExit):
        setup.find_python()
    assert f"found Python {sys.version.split()[0]}" in capsys.readouterr().err


def test_another_supported_python_on_the_path_serves(
    setup: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(setup, "SUPPORTED", ((2, 6), (2, 7)))
    monkeypatch.setattr(setup.shutil, "which", lambda name: f"/usr/bin/{name}")
    assert setup.find_python() == "/usr/bin/python2.7"


def test_nothing_is_done_when_the_stamp_is_right(
    setup: ModuleType,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    venv = tmp_path / ".venv"
    (venv / "bin").mkdir(parents=True)
    python = venv / "bin" / "python"
    python.touch()
    stamp = venv / "stamp"
    monkeypatch.setattr(setup, "VENV", str(venv))
    monkeypatch.setattr(setup, "STAMP", str(stamp))
    monkeypatch.setattr(setup, "announce", lambda: pytest.fail("work was begun"))
    machine: list[tuple[str, str] | None] = [None]
    monkeypatch.setattr(setup, "check_machine", lambda python: machine[0])
    monkeypatch.delenv("SEESAW_PURE_PYTHON", raising=False)
    stamp.write_text(setup.stamp_of(str(python), None))
    setup.main()
    assert capsys.readouterr().out == ""
    stamp.write_text("of an older pyproject.toml")
    with pytest.raises(pytest.fail.Exception):
        setup.main()
    # Without kernels each run tells, until a compiler comes. One that went takes none away.
    machine[0] = ("why", "the line")
    stamp.write_text(setup.stamp_of(str(python), machine[0]))
    setup.main()
    assert "not built: why" in capsys.readouterr().out
    machine[0] = None
    with pytest.raises(pytest.fail.Exception):
        setup.main()
    machine[0] = ("why", "the line")
    stamp.write_text(setup.stamp_of(str(python), None))
    setup.main()
    assert capsys.readouterr().out == ""
    monkeypatch.setenv("SEESAW_PURE_PYTHON", "1")
    with pytest.raises(pytest.fail.Exception):
        setup.main()


def test_a_failing_step_shows_why(setup: ModuleType, capsys: pytest.CaptureFixture[str]) -> None:
    code = "import sys; print('a reason'); sys.exit(3)"
    with pytest.raises(SystemExit):
        setup.run_quietly("step", [sys.executable, "-c", code])
    captured = capsys.readouterr()
    assert "a reason" in captured.err
    assert "exit 3" in captured.err


def test_ctrl_c_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(path: str) -> bool:
        raise KeyboardInterrupt

    monkeypatch.setattr("os.path.exists", interrupted)
    with pytest.raises(SystemExit) as stop:
        runpy.run_path(str(ROOT / "scripts" / "setup.py"), run_name="__main__")
    assert stop.value.code == 130


def test_the_tested_torch_is_one_that_the_package_admits(setup: ModuleType) -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    (low, high) = setup.TORCH_ADMITTED
    admitted = f"torch>={low[0]}.{low[1]},<{high[0]}.{high[1]}"
    assert admitted in project["dependencies"]
    version = tuple(int(part) for part in setup.TORCH.partition("==")[2].split(".")[:2])
    assert low <= version < high


def test_make_help_lists_the_two_commands() -> None:
    done = subprocess.run(["make", "help"], cwd=ROOT, capture_output=True, text=True, check=True)
    listed = [line.split()[1] for line in done.stdout.splitlines()]
    assert {"setup", "demo", "test", "lint", "check", "clean", "help"} <= set(listed)


def test_every_source_of_the_native_build_is_in_the_stamp(
    setup: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert {str(path.relative_to(ROOT)) for path in ROOT.glob("csrc/**/*.*")} < set(setup.inputs())
    monkeypatch.setattr(setup, "ROOT", str(tmp_path))
    monkeypatch.setattr(setup, "INPUTS", ())
    (tmp_path / "csrc/cpu").mkdir(parents=True)
    stamps = set()
    for name, text in [("a.cpp", "1"), ("a.cpp", "2"), ("cpu/b.h", ""), ("cpu/c.h", "")]:
        (tmp_path / "csrc" / name).write_text(text)
        stamps.add(setup.stamp_of("python", None))
    assert len(stamps) == 4
