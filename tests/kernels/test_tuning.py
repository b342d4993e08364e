"""Which configuration a launch takes: tuned ones as folders hold them, else the default."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from seesaw.errors import ConfigError
from seesaw.kernels import tuning
from seesaw.kernels.config_files import TunedConfig, file_name, read, write
from seesaw.kernels.kernel import Config, Target
from seesaw.kernels.rms_norm import KERNEL

H100 = Target(90, 232_448, 132)
KEY = {"size": 4096}
CPU = torch.device("cpu")


def tuned(**changes: object) -> TunedConfig:
    made = TunedConfig(
        kernel="rms_norm", key=KEY, device_name="NVIDIA H100 80GB HBM3", capability=90,
        config=Config({"BLOCK": 4096}, num_warps=8), triton=tuning.triton_version(),
        clocks_mhz={"sm": 1980}, median_us=5.0, default_us=6.0, date="2026-01-31",
    )  # fmt: skip
    return replace(made, **changes)  # type: ignore[arg-type]


@pytest.fixture
def warnings(caplog: pytest.LogCaptureFixture) -> Iterator[pytest.LogCaptureFixture]:
    """What seesaw's logger, which hands nothing on, is told."""
    logger = logging.getLogger("seesaw")
    logger.addHandler(caplog.handler)
    yield caplog
    logger.removeHandler(caplog.handler)


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    monkeypatch.setenv("SEESAW_TUNED_CONFIG_FOLDER", str(tmp_path))
    tuning.forget()
    yield tmp_path
    monkeypatch.undo()
    tuning.forget()


def test_names_have_no_characters_that_shells_mind() -> None:
    assert file_name({"head_dim": 128, "dtype": "bfloat16"}, "NVIDIA A10 (24 GB)/x") == (
        "dtype=bfloat16,head_dim=128,device_name=NVIDIA_A10__24_GB__x.json"
    )


def test_a_file_reads_as_it_was_written(tmp_path: Path) -> None:
    assert read(write(tmp_path, tuned())) == tuned()


@pytest.mark.parametrize(
    "text", ["", "[]", "{}", '{"kernel": "rms_norm"}', "not json", '{"config": {}}']
)
def test_files_that_are_no_configuration_are_named(tmp_path: Path, text: str) -> None:
    path = tmp_path / "x.json"
    path.write_text(text)
    with pytest.raises(ConfigError, match=r"x\.json"):
        read(path)


def test_the_very_device_before_its_family(folder: Path) -> None:
    other = Config({"BLOCK": 4096}, num_warps=2)
    write(folder, tuned(device_name="NVIDIA H200", config=other))
    found = tuning.pick(KERNEL, KEY, "NVIDIA H100 80GB HBM3", H100)
    assert found is not None
    assert found.config == other, "of the same capability, where there is no other"
    write(folder, tuned())
    tuning.forget()
    found = tuning.pick(KERNEL, KEY, "NVIDIA H100 80GB HBM3", H100)
    assert found is not None
    assert found.config == tuned().config


def test_nothing_for_another_key_or_capability(folder: Path) -> None:
    write(folder, tuned())
    assert tuning.pick(KERNEL, {"size": 64}, "NVIDIA H100 80GB HBM3", H100) is None
    assert tuning.pick(KERNEL, KEY, "NVIDIA L4", Target(89, 101_376, 58)) is None


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"config": Config({"BLOCK_N": 64})}, "BLOCK_N"),
        ({"triton": "3.0"}, "Triton 3.0"),
    ],
)
def test_what_must_not_be_launched_is_named_and_left(
    folder: Path, warnings: pytest.LogCaptureFixture, change: dict[str, object], said: str
) -> None:
    path = write(folder, tuned(**change))
    with warnings.at_level(logging.WARNING):
        assert tuning.pick(KERNEL, KEY, "NVIDIA H100 80GB HBM3", H100) is None
    assert said in warnings.text
    assert path.name in warnings.text


def test_a_broken_file_does_not_stop_a_launch(
    folder: Path, warnings: pytest.LogCaptureFixture
) -> None:
    (folder / "rms_norm").mkdir()
    (folder / "rms_norm" / "broken.json").write_text("{")
    with warnings.at_level(logging.WARNING):
        assert tuning.pick(KERNEL, KEY, "NVIDIA H100 80GB HBM3", H100) is None
    assert "broken.json" in warnings.text


def test_one_warning_names_all_ops_without_a_configuration(
    folder: Path, warnings: pytest.LogCaptureFixture
) -> None:
    write(folder, tuned())
    with warnings.at_level(logging.WARNING):
        for _ in range(3):
            tuning._warn_of_missing("NVIDIA H100 80GB HBM3", H100)
    (record,) = warnings.records
    said = record.getMessage()
    assert "seesaw tune --op" in said
    assert "--op paged_decode" in said
    assert "--op rms_norm" not in said


def test_launches_can_be_forced_and_heard(folder: Path) -> None:
    wanted = Config({"BLOCK": 64}, num_warps=2)
    heard = []
    with tuning.listening(lambda kernel, key: heard.append((kernel.name, dict(key)))):
        with tuning.forced(KERNEL, wanted):
            assert tuning.config_for(KERNEL, CPU, size=64) == wanted
        assert tuning.config_for(KERNEL, CPU, size=64) != wanted
    assert heard == [("rms_norm", {"size": 64})] * 2
    assert tuning.config_for(KERNEL, CPU, size=64) is tuning.config_for(KERNEL, CPU, size=64)
