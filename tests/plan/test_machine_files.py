"""Machine files that people write: read back as written, and what is refused."""

from __future__ import annotations

import json
import math
import random
import re
from collections.abc import Iterator
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest

from seesaw.errors import ConfigError
from seesaw.plan.curve import Curve
from seesaw.plan.machine import Machine
from seesaw.plan.machine_files import (
    builtin_cpu,
    device_by_slug,
    known_devices,
    known_machines,
    read_machines,
    write_machines,
)
from seesaw.plan.machine_json import encode_machines

# -- written and read back ------------------------------------------------------------------------


def plain(machines: tuple[Machine, ...]) -> list[dict[str, Any]]:
    return [asdict(machine) for machine in machines]


def random_machine(rng: random.Random) -> Machine:
    """All fields set, to values that no file has."""
    device, links = device_by_slug(rng.choice([slug for slug in known_devices() if slug != "cpu"]))

    def curve() -> Curve:
        xs = sorted({float(rng.randint(1, 10**6)) for _ in range(rng.randint(1, 5))})
        return Curve(tuple(xs), tuple(rng.uniform(1e-9, 1e15) for _ in xs))

    rates = replace(
        device.rates,
        matmul_flops={"bfloat16": curve(), "float32": curve()},
        row_matmul_flops={"bfloat16": curve()},
        row_overhead_keys=rng.random(),
        layer_overhead_s=0.0,
    )
    other = replace(device, rates=rates, slug="mine", peak=None, num_sms=None, sources={})
    devices = tuple(rng.choice((device, other)) for _ in range(rng.randint(1, 9)))
    return Machine(
        slug=f"m{rng.randint(0, 99)}",
        name='räumlich "quoted"',
        devices=devices,
        links=replace(links, latency_s=curve(), measured={2: curve(), 11: curve()}),
        host_memory_bytes=rng.randint(1, 2**50),
        host_bytes_per_s=rng.choice((None, rng.uniform(1, 1e12))),
        price_per_hour=rng.choice((None, 3.5)),
        sources={"links": "measured"},
    )


@pytest.mark.parametrize("name", [*known_machines(), *known_devices(), "2xl4+1xt4+1xl4"])
def test_what_comes_with_seesaw_reads_back_as_written(name: str, tmp_path: Path) -> None:
    machines = read_machines(name)
    path = tmp_path / "new" / "folder" / "machine.json"
    write_machines(path, machines)
    assert plain(read_machines(str(path))) == plain(machines)
    assert list(path.parent.iterdir()) == [path]


def test_any_machine_reads_back_as_written(tmp_path: Path) -> None:
    seed = random.randrange(2**32)
    rng = random.Random(seed)
    path = tmp_path / "machine.json"
    for _ in range(40):
        machines = tuple(random_machine(rng) for _ in range(rng.randint(1, 3)))
        write_machines(path, machines)
        back = read_machines(str(path))
        assert plain(back) == plain(machines), f"seed {seed}"
        for machine in back:
            assert all(isinstance(ranks, int) for ranks in machine.links.measured)


def test_a_cpu_reads_back_as_written(tmp_path: Path) -> None:
    machines = builtin_cpu(6, 10**11)
    write_machines(tmp_path / "local.json", machines)
    assert plain(read_machines(str(tmp_path / "local.json"))) == plain(machines)


def test_equal_devices_are_one_object_again() -> None:
    (machine,) = read_machines("g6.48xlarge")
    assert len({id(device) for device in machine.devices}) == 1
    assert len(encode_machines((machine,))["machines"][0]["devices"]) == 1


def test_a_failed_write_leaves_the_old_file_and_nothing_else(tmp_path: Path) -> None:
    path = tmp_path / "local.json"
    write_machines(path, read_machines("2xl4"))
    before = path.read_bytes()
    (broken,) = read_machines("1xt4")
    with pytest.raises(ValueError, match="JSON"):
        write_machines(path, (replace(broken, host_bytes_per_s=math.nan),))
    assert path.read_bytes() == before
    assert list(tmp_path.iterdir()) == [path]
    folder = tmp_path / "folder.json"
    folder.mkdir()
    with pytest.raises(OSError, match=r"folder\.json"):
        write_machines(folder, read_machines("2xl4"))
    assert sorted(tmp_path.iterdir()) == [folder, path]


def test_devices_by_name_bring_their_usual_links(tmp_path: Path) -> None:
    path = tmp_path / "mine.json"
    own = {"slug": "mine", "name": "Mine", "host_memory_bytes": 2**36, "price_per_hour": 1.25}
    own["devices"] = [{"device": "l4", "count": 2}, {"device": "t4"}]
    path.write_text(json.dumps({"machines": [own]}))
    (machine,) = read_machines(str(path))
    assert [device.slug for device in machine.devices] == ["l4", "l4", "t4"]
    assert machine.links is device_by_slug("t4")[1]
    assert machine.price_per_hour == 1.25
    assert [device.slug for device in machine.first(2).devices] == ["l4", "l4"]


# -- what is refused -------------------------------------------------------------------------------


def small_machine() -> Machine:
    """Two devices with short curves, every optional field set."""
    device, links = device_by_slug("l4")
    curve = Curve((1.0, 64.0), (1e9, 1e12))
    curves = {"bfloat16": curve}
    rates = replace(device.rates, matmul_flops=curves, row_matmul_flops=curves)
    return Machine(
        slug="small",
        name="Small",
        devices=(replace(device, rates=rates),) * 2,
        links=replace(links, measured={2: curve}),
        host_memory_bytes=2**36,
        host_bytes_per_s=1e10,
        price_per_hour=1.0,
        sources={"links": "measured"},
    )


SAMPLE = encode_machines((small_machine(),))
OPTIONAL = {
    "attention_flops_by_share", "row_matmul_flops", "row_overhead_keys",
    "step_row_overhead_s", "torch_names", "sources",
    "compute_capability", "num_sms", "shared_memory_bytes", "l2_bytes", "dtypes", "measured",
    "host_bytes_per_s", "price_per_hour", "count", "links",
}  # fmt: skip


def leaves(value: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """Paths of all numbers and texts."""
    if isinstance(value, dict):
        for key, item in value.items():
            yield from leaves(item, (*path, key))
    elif isinstance(value, list):
        for number, item in enumerate(value):
            yield from leaves(item, (*path, number))
    else:
        yield path


def objects(value: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    if isinstance(value, dict):
        yield path
    for key, item in value.items() if isinstance(value, dict) else enumerate(value):
        if isinstance(item, (dict, list)):
            yield from objects(item, (*path, key))


def changed(path: tuple[Any, ...], value: Any) -> Any:
    copy = json.loads(json.dumps(SAMPLE))
    holder = copy
    for step in path[:-1]:
        holder = holder[step]
    if value is ...:
        del holder[path[-1]]
    else:
        holder[path[-1]] = value
    return copy


def refusal(data: Any, path: Path) -> str:
    path.write_text(data if isinstance(data, str) else json.dumps(data))
    with pytest.raises(ConfigError) as caught:
        read_machines(str(path))
    assert str(path) in str(caught.value)
    return str(caught.value)


def test_the_sample_is_fine(tmp_path: Path) -> None:
    path = tmp_path / "sample.json"
    path.write_text(json.dumps(SAMPLE))
    assert encode_machines(read_machines(str(path))) == SAMPLE


def test_numbers_that_are_none_are_refused_wherever_they_stand(tmp_path: Path) -> None:
    seen = 0
    for path in leaves(SAMPLE):
        old = SAMPLE
        for step in path:
            old = old[step]
        if isinstance(old, str):
            continue
        name = next(step for step in reversed(path) if isinstance(step, str))
        wrong: list[Any] = [-1, math.nan, math.inf, "12", True, [1], {}]
        if not name.endswith(("_overhead_s", "_overhead_keys", "_latency_s")):
            wrong.append(0)
        for value in wrong:
            message = refusal(changed(path, value), tmp_path / "x.json")
            assert name in message, (path, value, message)
            seen += 1
    assert seen > 200


def test_texts_that_are_none_are_refused(tmp_path: Path) -> None:
    for path in leaves(SAMPLE):
        old = SAMPLE
        for step in path:
            old = old[step]
        if isinstance(old, str):
            for value in ("", 7, ["a", 1]):
                refusal(changed(path, value), tmp_path / "x.json")


def test_missing_fields_are_named(tmp_path: Path) -> None:
    missing = 0
    for path in objects(SAMPLE):
        holder = SAMPLE
        for step in path:
            holder = holder[step]
        if path and path[-1] in ("matmul_flops", "row_matmul_flops", "measured", "sources"):
            continue
        for name in holder:
            if name not in OPTIONAL and holder.get(name) is not None and name != "peak":
                assert name in refusal(changed((*path, name), ...), tmp_path / "x.json")
                missing += 1
    assert missing > 20


def test_unknown_fields_are_refused_with_the_nearest(tmp_path: Path) -> None:
    for path in objects(SAMPLE):
        if path and path[-1] in ("matmul_flops", "row_matmul_flops", "measured", "sources"):
            continue
        message = refusal(changed((*path, "hots_memory_byte"), 1), tmp_path / "x.json")
        assert "unknown field 'hots_memory_byte'" in message
    machine = ("machines", 0)
    message = refusal(changed((*machine, "host_memory_byte"), 1), tmp_path / "x.json")
    assert "Did you mean 'host_memory_bytes'?" in message


LINKS = ("machines", 0, "links")
DEVICE = ("machines", 0, "devices", 0)


@pytest.mark.parametrize(
    ("data", "message"),
    [
        ("", "not a machine file"),
        ("{", "not a machine file"),
        ("[" * 100_000, "not a machine file"),
        ('{"machines": [], "machines": []}', "stands twice"),
        ("[]", "expected an object"),
        ({}, "'machines' is missing"),
        ({"machines": []}, "at least one machine"),
        ({"machines": {}}, "expected a list"),
        ({"machines": [7]}, r"machines\[0\]=7: expected an object"),
        (changed(("machines", 0, "devices"), []), "at least one device"),
        (changed((*DEVICE, "count"), 0), "expected a whole number from 1 to 1024"),
        (changed((*DEVICE, "count"), 1.5), "expected a whole number from 1 to 1024"),
        (changed((*DEVICE, "device"), "l5"), "'l5' is not known"),
        (changed((*DEVICE, "device", "kind"), "tpu"), "expected 'cuda' or 'cpu'"),
        (changed(("machines", 0, "devices"), [{"device": "l4"}, {"device": "cpu"}]), "one kind"),
        (changed((*LINKS, "latency_s"), []), "rising"),
        (changed((*LINKS, "latency_s"), [[4, 1], [2, 1]]), "rising"),
        (changed((*LINKS, "latency_s"), [[4, 1], [4, 1]]), "rising"),
        (changed((*LINKS, "latency_s"), [[4, 1, 1]]), r"expected \[x, y\]"),
        (changed((*LINKS, "latency_s"), 4), "expected a list"),
        (changed((*LINKS, "measured", "1"), [[1, 1]]), "2 or more"),
        (changed((*LINKS, "measured", "two"), [[1, 1]]), "2 or more"),
        (changed((*LINKS, "measured"), []), "expected an object"),
    ],
)
def test_refused_files(data: Any, message: str, tmp_path: Path) -> None:
    assert re.search(message, refusal(data, tmp_path / "x.json"), re.DOTALL)


def test_own_devices_need_links(tmp_path: Path) -> None:
    assert "links: missing" in refusal(changed(LINKS, ...), tmp_path / "x.json")
