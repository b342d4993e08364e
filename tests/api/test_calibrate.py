"""`seesaw calibrate`: where it writes, what it prints, what it refuses before it measures."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from seesaw import cli
from seesaw.engine import calibrate as engine
from seesaw.engine.calibrate import Calibration
from seesaw.engine.calibrate_model import LayerSizes
from seesaw.plan.machine_files import read_machines
from seesaw.plan.machine_json import encode_machines


def run(*args: str) -> int:
    with pytest.raises(SystemExit) as stop:
        cli.main(["calibrate", *args])
    assert isinstance(stop.value.code, int)
    return stop.value.code


@pytest.fixture(scope="module")
def found() -> Calibration:
    """One device, measured as little as can be."""
    sizes = replace(
        engine.QUICK.sizes, walk_bytes=2**20, copy_bytes=2**18, num_layers=2, tokens=8,
        layer=LayerSizes(hidden=64, inner=128, kv_heads=2, group=2, head_dim=32),
        matmul_rows=(1, 64), decode_rows=((1, 64), (8, 64), (8, 128)), prefill_rows=((2, 32, 32),),
    )  # fmt: skip
    effort = replace(engine.QUICK, rounds=2, sample_s=0.001, sizes=sizes)
    return engine.calibrate("a processor", device="cpu", num_devices=(1,), effort=effort)


@pytest.fixture
def calm(found: Calibration, monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """The command finds `found`, as if nothing else had run; what it asked for."""
    asked: dict[str, Any] = {}
    return measured(monkeypatch, found, asked, cpu_share=1.0)


def measured(
    monkeypatch: pytest.MonkeyPatch, found: Calibration, asked: dict[str, Any], cpu_share: float
) -> dict[str, Any]:
    ways = tuple(
        replace(
            way,
            cpu_share=cpu_share,
            figures={name: replace(one, spread=0.1) for name, one in way.figures.items()},
        )
        for way in found.ways
    )

    def calibrate(name: str, **settings: Any) -> Calibration:
        asked.update(settings, name=name)
        settings["progress"]("1 rank", 1, 3)
        return replace(found, ways=ways)

    monkeypatch.setattr(engine, "calibrate", calibrate)
    return asked


def test_writes_where_the_planner_looks(
    found: Calibration,
    calm: dict[str, Any],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    root = tmp_path / "not" / "there"
    monkeypatch.setenv("SEESAW_CACHE_ROOT", str(root))
    assert run() == 0
    assert calm["effort"] is engine.FULL
    assert (calm["dtypes"], calm["num_devices"]) == (("bfloat16",), ())
    machines = read_machines(str(root / "machines" / "local.json"))
    assert encode_machines(machines) == encode_machines(found.machines)
    out = capsys.readouterr().out
    assert "matmul bfloat16, 16 rows" in out
    assert "GFLOP/s" in out


def test_flags_reach_the_measurement_and_standard_output_holds_json_only(
    found: Calibration, calm: dict[str, Any], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    target = tmp_path / "mine.json"
    flags = ("--dtype", "float32", "--dtype", "bfloat16", "--num-devices", "2", "--quick")
    assert run(*flags, "--output", str(target), "--output-json", "-") == 0
    assert calm["effort"] is engine.QUICK
    assert (calm["dtypes"], calm["num_devices"]) == (("float32", "bfloat16"), (2,))
    summary = json.loads(capsys.readouterr().out)
    assert summary["machines"] == encode_machines(found.machines)["machines"]
    (way,) = summary["ways"]
    assert (way["num_ranks"], way["complaint"]) == (1, None)
    copy = way["figures"]["copy"]
    assert copy["per_second"] == pytest.approx(copy["amount"] / copy["seconds"])
    assert summary["environment"]["libraries"]["torch"]
    assert len(read_machines(str(target))) == 1


def test_a_busy_machine_is_written_by_force_only(
    found: Calibration,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    measured(monkeypatch, found, {}, cpu_share=0.5)
    target, summary = tmp_path / "mine.json", tmp_path / "summary.json"
    flags = ("--output", str(target), "--output-json", str(summary))
    assert run(*flags) == 1
    told = capsys.readouterr().err
    assert "50%" in told
    assert "--force" in told
    assert not target.exists()
    assert json.loads(summary.read_text())["ways"][0]["cpu_share"] == 0.5
    assert run(*flags, "--force") == 0
    assert target.exists()
    assert "50%" in capsys.readouterr().err


@pytest.mark.parametrize("args", [(), ("--force",)])
def test_what_cannot_be_written_is_told_before_anything_is_measured(
    calm: dict[str, Any], tmp_path: Path, args: tuple[str, ...], capsys: pytest.CaptureFixture[str]
) -> None:
    for output, told in (
        (tmp_path, "is a folder"),
        (tmp_path / "no" / "machine.json", "does not exist"),
        (tmp_path / "machine", "ends in .json"),
    ):
        assert run("--output", str(output), *args) == 2
        assert told in capsys.readouterr().err
    assert calm == {}


@pytest.mark.parametrize(
    ("args", "told"),
    [
        (("--dtype", "bfloat17"), "Did you mean 'bfloat16'"),
        (("--num-devices", "100000"), "Give 1 to"),
        (("--num-devices", "0"), "x>=1"),
    ],
)
def test_settings_are_checked(
    args: tuple[str, ...], told: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    target = tmp_path / "machine.json"
    assert run("--output", str(target), *args) == 2
    assert told in capsys.readouterr().err
    assert not target.exists()
