"""Machines that come with seesaw: their figures, their names, the machine at hand, and the page."""

from __future__ import annotations

import contextlib
import io
import json
import re
from pathlib import Path
from typing import Any

import pytest

from seesaw.errors import ConfigError
from seesaw.plan.machine import Device, Links, Machine, Rates
from seesaw.plan.machine_files import (
    CPU_MEMORY_BYTES_PER_S,
    builtin_cpu,
    device_by_slug,
    device_by_torch_name,
    known_devices,
    known_machines,
    local_path,
    read_machines,
)

ROOT = Path(__file__).parent.parent.parent
FILES = ROOT / "seesaw" / "plan" / "machines"
PAGE = ROOT / "docs" / "machines.md"
CARDS = [slug for slug in known_devices() if slug != "cpu"]
ASKED_FOR = {
    "t4", "a10", "a10g", "a6000", "l4", "l20", "l40s", "rtx4090", "rtx5090", "a100-40-pcie",
    "a100-40-sxm", "a100-80-pcie", "a100-80-sxm", "h100-pcie", "h100-sxm", "h200", "b200", "cpu",
}  # fmt: skip


def as_json(slug: str) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((FILES / f"{slug}.json").read_text())
    return found


# -- what comes with seesaw ------------------------------------------------------------------------


def test_every_file_is_known_by_its_name() -> None:
    assert set(known_devices()) == ASKED_FOR == {path.stem for path in FILES.glob("*.json")}
    assert set(known_machines()) == {path.stem for path in (FILES / "hosts").glob("*.json")}
    for slug in known_devices():
        assert device_by_slug(slug)[0].slug == slug
    for name in known_machines():
        (machine,) = read_machines(name)
        assert machine.slug == name
        assert not set(known_devices()) & {name}


@pytest.mark.parametrize("slug", known_devices())
def test_every_figure_has_a_source_that_says_of_what_kind_it_is(slug: str) -> None:
    data = as_json(slug)
    named = {part for key in data["sources"] for part in key.split(", ")}
    wanted = {"memory_bytes", "links", *(f"rates.{name}" for name in data["rates"])}
    if slug != "cpu":
        wanted |= {"peak", "num_sms", "l2_bytes", "compute_capability", "shared_memory_bytes"}
    assert wanted <= named
    kinds = "data sheet|public|rule of thumb|another machine|assumed|Programming Guide|planning"
    for key, source in data["sources"].items():
        assert re.search(kinds, source), key
        top, *rest = key.split(", ")[0].split(".")
        found = data[top]
        for name in rest:
            found = found[name]  # a source of nothing would raise
        assert found is None or found


@pytest.mark.parametrize("slug", CARDS)
def test_nothing_is_faster_than_its_data_sheet(slug: str) -> None:
    device, links = device_by_slug(slug)
    peak, rates = device.peak, device.rates
    assert peak is not None
    assert set(rates.matmul_flops) == set(peak.matmul_flops) == set(device.dtypes)
    for dtype, curve in rates.matmul_flops.items():
        assert 0.3 <= curve.ys[-1] / peak.matmul_flops[dtype] <= 1.0
        assert list(curve.ys) == sorted(curve.ys)
        seconds = [rows / curve(rows) for rows in range(1, 5000, 7)]
        assert seconds == sorted(seconds), "more rows must not take less time"
    assert rates.attention_flops < rates.matmul_flops["float16"].ys[-1]
    assert 0.6 <= rates.memory_bytes_per_s / peak.memory_bytes_per_s <= 0.95
    assert rates.kv_bytes_per_s <= rates.memory_bytes_per_s
    assert rates.elementwise_bytes_per_s < peak.memory_bytes_per_s
    assert rates.copy_bytes_per_s <= peak.memory_bytes_per_s / 2
    assert 0.35 <= rates.load_bytes_per_s / peak.host_bytes_per_s <= 0.95
    assert 0.35 <= rates.store_bytes_per_s / peak.host_bytes_per_s <= 0.95
    assert links.bus_bytes_per_s < peak.memory_bytes_per_s


@pytest.mark.parametrize("slug", CARDS)
def test_figures_are_of_plausible_size(slug: str) -> None:
    device, _ = device_by_slug(slug)
    assert device.peak is not None
    assert device.kind == "cuda"
    assert device.torch_names
    assert device.compute_capability is not None
    assert re.fullmatch(r"\d+\.\d", device.compute_capability)
    assert 14 * 2**30 < device.memory_bytes < 200 * 2**30
    assert 8e12 < device.peak.matmul_flops["float16"] <= 2.3e15
    assert 3e11 <= device.peak.memory_bytes_per_s <= 8e12
    assert 40 <= (device.num_sms or 0) <= 170
    assert 48 * 2**10 < (device.shared_memory_bytes or 0) <= 227 * 2**10
    assert 4 * 2**20 <= (device.l2_bytes or 0) <= 128 * 2**20


def test_the_t4_has_no_bfloat16_and_says_that_it_is_for_planning() -> None:
    device, _ = device_by_slug("t4")
    assert device.dtypes == ("float32", "float16")
    assert "planning only" in device.sources["dtypes"]


def test_torch_names_find_their_device_and_no_other() -> None:
    names = [name for slug in CARDS for name in device_by_slug(slug)[0].torch_names]
    assert len(names) == len(set(names))
    for name in names:
        found = device_by_torch_name(name)
        assert found is not None
        assert name in found.torch_names
    assert device_by_torch_name("NVIDIA GeForce RTX 2080") is None
    found = device_by_torch_name("NVIDIA A100-SXM4-40GB")
    assert found is not None
    assert found.slug == "a100-40-sxm"


@pytest.mark.parametrize("slug", known_devices())
def test_more_bytes_and_more_ranks_take_longer(slug: str) -> None:
    _, links = device_by_slug(slug)
    sizes = [2**power for power in range(8, 31)]
    for ranks in range(2, 9):
        seconds = [links.all_reduce_s(ranks, size) for size in sizes]
        assert seconds == sorted(seconds)
        assert seconds[-1] > 10 * seconds[0]
        # The bus bound holds at the large end, up to what measuring scatters and switches add.
        wire = 2 * (ranks - 1) / ranks * sizes[-1]
        assert wire / seconds[-1] < 1.3 * links.bus_bytes_per_s
    assert links.latency_s(2) <= links.latency_s(8) * 1.5


@pytest.mark.parametrize("name", known_machines())
def test_hosts_have_memory_for_their_devices_and_sources(name: str) -> None:
    (machine,) = read_machines(name)
    assert machine.price_per_hour is None
    assert len({device.slug for device in machine.devices}) == 1
    assert machine.host_memory_bytes >= 40 * 2**30 * len(machine.devices)
    sources = {part for key in machine.sources for part in key.split(", ")}
    assert {"devices", "host_memory_bytes", "links", "host_bytes_per_s"} <= sources
    if machine.host_bytes_per_s is not None:
        peaks = [device.peak for device in machine.devices if device.peak is not None]
        assert machine.host_bytes_per_s <= sum(peak.host_bytes_per_s for peak in peaks)


# -- names -----------------------------------------------------------------------------------------


def slugs(machine: Machine) -> list[str]:
    return [device.slug for device in machine.devices]


def test_devices_by_number() -> None:
    (one,) = read_machines("h100-sxm")
    (same,) = read_machines(" 1xH100-SXM ")
    assert slugs(one) == slugs(same) == ["h100-sxm"]
    (eight,) = read_machines("8xl4")
    assert slugs(eight) == ["l4"] * 8
    assert eight.host_memory_bytes == 8 * 80 * 2**30
    assert "assumed" in eight.sources["host_memory_bytes"]
    assert slugs(read_machines("2xrtx4090")[0]) == ["rtx4090"] * 2


@pytest.mark.parametrize("name", ["3xl4+1xt4", "1xt4+3xl4"])
def test_devices_of_two_kinds_have_the_slower_links(name: str) -> None:
    (machine,) = read_machines(name)
    assert sorted(slugs(machine)) == ["l4"] * 3 + ["t4"]
    assert slugs(machine)[0] == name[2:4]
    _, slower = device_by_slug("t4")
    assert machine.links is slower
    assert machine.host_memory_bytes == 4 * 80 * 2**30


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("8xh100-smx", "Did you mean 'h100-sxm'.*g6.48xlarge.*a100-80-pcie"),
        ("h100", "Did you mean 'h100-pcie' or 'h100-sxm'"),
        ("2x4xl4", "got two counts, expected one"),
        ("g6.48xlarg", "Did you mean 'g6.48xlarge'"),
        ("0xl4", "got 0 devices"),
        ("99999xl4", "got 99999 devices"),
        ("-1xl4", "not known"),
        ("xl4", "not known"),
        ("", "not known"),
        ("4xl4+", "not known"),
        ("4xl4+1xg5.48xlarge", "'g5.48xlarge' is not known"),
        ("1xl4+1xcpu", "cpu and cuda"),
        ("../../etc/passwd", "not known"),
        ("none/such.json", "no such file"),
    ],
)
def test_names_that_are_not_known(name: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        read_machines(name)


# -- this machine ----------------------------------------------------------------------------------


def test_where_the_calibrated_file_lies(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.delenv("SEESAW_CACHE_ROOT", raising=False)
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    tail = Path("machines", "local.json")
    assert local_path() == tmp_path / "home" / ".cache" / "seesaw" / tail
    monkeypatch.setenv("XDG_CACHE_HOME", "relative")  # to be ignored, says the specification
    assert local_path() == tmp_path / "home" / ".cache" / "seesaw" / tail
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    assert local_path() == tmp_path / "cache" / "seesaw" / tail
    monkeypatch.setenv("SEESAW_CACHE_ROOT", "~/own")
    assert local_path() == tmp_path / "home" / "own" / tail
    monkeypatch.setenv("SEESAW_CACHE_ROOT", "own")
    with pytest.raises(ConfigError, match=r"SEESAW_CACHE_ROOT='own'.*absolute"):
        local_path()


@pytest.mark.parametrize("num_cores", [1, 2, 7, 12])
def test_a_cpu_has_a_way_for_each_number_of_ranks_that_divides_it(num_cores: int) -> None:
    core, _ = device_by_slug("cpu")
    machines = builtin_cpu(num_cores, 10**10)
    assert [len(machine.devices) for machine in machines] == [
        ranks for ranks in range(1, num_cores + 1) if num_cores % ranks == 0
    ]
    for machine in machines:
        assert machine.kind == "cpu"
        assert machine.host_memory_bytes == 10**10
        assert all("another machine" in machine.sources[name] for name in ("devices", "links"))
        rates = [device.rates for device in machine.devices]
        flops = sum(rate.matmul_flops["bfloat16"](256) for rate in rates)
        assert flops == pytest.approx(num_cores * core.rates.matmul_flops["bfloat16"](256))
        memory = sum(rate.memory_bytes_per_s for rate in rates)
        assert memory == pytest.approx(
            min(num_cores * core.rates.memory_bytes_per_s, CPU_MEMORY_BYTES_PER_S)
        )
        assert sum(rate.copy_bytes_per_s for rate in rates) <= CPU_MEMORY_BYTES_PER_S / 2 * 1.0001
    assert len({machine.slug for machine in machines}) == len(machines)


# -- the page --------------------------------------------------------------------------------------


def blocks(kind: str) -> list[str]:
    return re.findall(rf"```{kind}\n(.*?)```\n", PAGE.read_text(encoding="utf-8"), re.DOTALL)


def test_the_tables_of_the_page_are_those_that_its_code_prints() -> None:
    (code,) = blocks("python")
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed):
        exec(compile(code, str(PAGE), "exec"), {})
    tables = printed.getvalue()
    assert len(tables.splitlines()) > len(known_devices()) + len(known_machines())
    assert tables in PAGE.read_text(encoding="utf-8")


def test_the_example_of_the_page_is_a_whole_machine(tmp_path: Path) -> None:
    (example,) = blocks("json")
    path = tmp_path / "mine.json"
    path.write_text(example)
    (machine,) = read_machines(str(path))
    shown = json.loads(example)["machines"][0]
    assert set(shown) == {*Machine.__dataclass_fields__}
    device = shown["devices"][0]["device"]
    assert set(device) == {*Device.__dataclass_fields__}
    assert set(device["rates"]) == {*Rates.__dataclass_fields__}
    assert set(shown["links"]) == {*Links.__dataclass_fields__}
    assert machine.slug == shown["slug"]
