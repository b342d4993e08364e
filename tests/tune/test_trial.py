"""What a trial does to a configuration before it is timed, in Triton's interpreter."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import pytest
import torch

from seesaw.kernels import tuning
from seesaw.kernels.kernel import Config
from seesaw.kernels.registry import kernels
from seesaw.ops import OPS, triton_backend
from seesaw.tune import trial
from seesaw.tune.model_cases import works
from seesaw.tune.trial import Bench, Wrong
from seesaw.tune.units import Unit, Work

CASE = {"rows": (3,), "size": 64, "residual": True, "plus_one": False}
KERNEL = "rms_norm"
GOOD = Config({"BLOCK": 64}, num_warps=1)
SHORT = Config({"BLOCK": 32}, num_warps=1)
"""Leaves half of each row out."""


@pytest.fixture(autouse=True)
def in_interpreter(device: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    if device != "cpu":
        pytest.skip("in the interpreter alone")
    monkeypatch.setenv("SEESAW_KERNELS", "triton")
    triton_backend.runs_on.cache_clear()
    yield
    monkeypatch.undo()
    triton_backend.runs_on.cache_clear()


@pytest.fixture
def bench() -> Bench:
    return Bench(torch.device("cpu"))


def unit(case: dict[str, Any]) -> Unit:
    return Unit(KERNEL, {"size": case["size"]}, (Work("rms_norm", case, "float32"),), ())


def told_by(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> list[Work]:
    """Calls for which the reference was asked, once `bench` has asked."""
    asked: list[Work] = []
    ask = Bench._reference

    def reference(self: Bench, work: Work) -> list[torch.Tensor]:
        asked.append(work)
        return ask(self, work)

    monkeypatch.setattr(Bench, "_reference", reference)
    return asked


def test_a_wrong_configuration_is_found(bench: Bench) -> None:
    kernel = kernels()[KERNEL]
    bench._verify(kernel, unit(CASE), GOOD)
    with pytest.raises(Wrong, match="rms_norm"):
        bench._verify(kernel, unit(CASE), SHORT)


def test_a_large_call_is_held_against_the_default_alone(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    kernel, asked = kernels()[KERNEL], told_by(bench, monkeypatch)
    bench._verify(kernel, unit(CASE), GOOD)
    assert [work.case for work in asked] == [CASE]
    monkeypatch.setattr(trial, "REFERENCE_BYTES", 0)
    bench._verify(kernel, unit(CASE), GOOD)
    assert len(asked) == 1
    with pytest.raises(Wrong):
        bench._verify(kernel, unit(CASE), SHORT)


def test_the_ops_own_cases_come_before_the_units_calls(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    own = next(case for case in OPS["rms_norm"].cases if min(case["rows"]) > 0)
    asked = told_by(bench, monkeypatch)
    config = kernels()[KERNEL].default({"size": own["size"]}, trial.target_of(bench._device))
    bench._verify(kernels()[KERNEL], unit({**own, "rows": (5,)}), config)
    assert own in [work.case for work in asked]
    assert (5,) not in [work.case["rows"] for work in asked]


def test_what_a_reference_makes_lies_on_the_device(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Else it could not be compared, or not even be computed."""
    where: list[str] = []

    def reference(**inputs: Any) -> torch.Tensor:
        where.append(torch.get_default_device().type)
        return torch.zeros(0)

    monkeypatch.setitem(OPS, "rms_norm", replace(OPS["rms_norm"], reference=reference))
    monkeypatch.setattr(Bench, "_inputs", lambda self, work, seed: {})
    bench._device = torch.device("meta")
    assert bench._reference(unit(CASE).work[0])[0].device.type == "meta"
    assert where == ["meta"]


def test_memory_of_the_host_is_tuned_where_an_op_has_it_there() -> None:
    assert {tuple(work.host) for work in works(["kv_gather"], None)} == {("tier_TKL2PD",)}
    assert {tuple(work.host) for work in works(["rms_norm"], None)} == {()}


def test_results_are_what_a_forced_configuration_computes(bench: Bench) -> None:
    work = unit(CASE).work[0]
    with tuning.forced(kernels()[KERNEL], SHORT):
        short = bench._run(OPS["rms_norm"].function, work)
    whole = bench._run(OPS["rms_norm"].function, work)
    assert not torch.equal(short[0], whole[0])
