"""Machines by name: the files that come with seesaw, files of one's own, and `NxDEVICE`.

Owns where machine files lie and how machines are named. What stands in a file is `machine_json`.
"""

from __future__ import annotations

import json
import os
import re
import tempfile
from dataclasses import replace
from functools import cache
from importlib.resources import files
from importlib.resources.abc import Traversable
from pathlib import Path
from typing import Any

from seesaw.envs import cache_root
from seesaw.errors import ConfigError, nearest
from seesaw.plan.curve import Curve
from seesaw.plan.machine import Device, Links, Machine
from seesaw.plan.machine_json import decode_device, decode_machines, encode_machines

HOST_BYTES_PER_DEVICE = 80 * 2**30
"""Of a machine given as `NxDEVICE`, of whose host nothing is known: what Seesaw's authors had."""

CPU_MEMORY_BYTES_PER_S = 55e9
"""What two cores of the machine behind `cpu.json` read together; one alone reads 40e9. No more is
taken of a machine that was not measured."""

_GROUP = re.compile(r"(?:(?P<count>[0-9]+)x)?(?P<slug>[a-z0-9][a-z0-9.-]*)")


def local_path() -> Path:
    """Where `seesaw calibrate` leaves what it measured of this machine."""
    return cache_root() / "machines" / "local.json"


def known_devices() -> tuple[str, ...]:
    """Names of the devices that come with seesaw."""
    return tuple(sorted(_shipped("machines")))


def known_machines() -> tuple[str, ...]:
    """Names of the machines that come with seesaw."""
    return tuple(sorted(_shipped("machines", "hosts")))


def read_machines(name: str) -> tuple[Machine, ...]:
    """Every way to use the machine called `name`; graphics cards have one way, CPUs may have more.

    `name` is a machine that comes with seesaw (`g6.48xlarge`), devices of one or two kinds
    (`8xl4`, `l4`, `4xl4+4xt4`: joined by the slowest of their usual links, with 80 GiB of host
    memory for each), or a path that ends in `.json`. Raises ConfigError.
    """
    if name.endswith(".json"):
        return _read_file(Path(name))
    folded = name.strip().lower()
    hosts = _shipped("machines", "hosts")
    if folded in hosts:
        return decode_machines(_parse(hosts[folded]), hosts[folded].name, _resolve)
    return (_of_devices(folded, name),)


def device_by_torch_name(name: str) -> Device | None:
    """The device that `torch.cuda.get_device_name` calls `name`, if it comes with seesaw."""
    for slug in known_devices():
        device, _ = _device(slug)
        if name in device.torch_names:
            return device
    return None


def device_by_slug(slug: str) -> tuple[Device, Links]:
    """The device `slug` that comes with seesaw, and its usual links. Raises ConfigError."""
    return _resolve(slug, "device")


def builtin_cpu(num_cores: int, host_memory_bytes: int) -> tuple[Machine, ...]:
    """This machine's CPU from figures of another one's core: a way to use it for each number of
    ranks that divides the cores evenly, the fewest ranks first.

    Computing goes faster with the cores of a rank, reading memory until `CPU_MEMORY_BYTES_PER_S`
    are reached, which the ranks share.
    """
    core, links = device_by_slug("cpu")
    ways = []
    for ranks in range(1, num_cores + 1):
        if num_cores % ranks:
            continue
        cores = num_cores // ranks
        device = _of_cores(core, cores, cores / num_cores, host_memory_bytes // ranks)
        ways.append(
            Machine(
                slug=f"{ranks}x{device.slug}",
                name=f"CPU, {ranks} x {_count(cores, 'core')}, not measured",
                devices=(device,) * ranks,
                links=links,
                host_memory_bytes=host_memory_bytes,
                sources={
                    "devices": "another machine's figures (cpu.json); run `seesaw calibrate`",
                    "links": "another machine's figures (cpu.json); run `seesaw calibrate`",
                    "host_memory_bytes": "the system",
                },
            )
        )
    return tuple(ways)


def _of_cores(core: Device, cores: int, share: float, memory_bytes: int) -> Device:
    """A rank of `cores` cores, which are `share` of the machine's."""
    rates = core.rates
    most = CPU_MEMORY_BYTES_PER_S * share

    def read(bytes_per_s: float) -> float:
        return min(cores * bytes_per_s, most)

    def moved(bytes_per_s: float) -> float:
        # What is copied is read and written.
        return min(cores * bytes_per_s, most / 2)

    return replace(
        core,
        slug=f"cpu-{cores}",
        name=f"{_count(cores, 'core')} like {core.name}",
        memory_bytes=memory_bytes,
        rates=replace(
            rates,
            matmul_flops={
                dtype: Curve(curve.xs, tuple(cores * flops for flops in curve.ys))
                for dtype, curve in rates.matmul_flops.items()
            },
            attention_flops=cores * rates.attention_flops,
            # Activations of a step stay in the cores' own caches.
            elementwise_bytes_per_s=cores * rates.elementwise_bytes_per_s,
            memory_bytes_per_s=read(rates.memory_bytes_per_s),
            kv_bytes_per_s=read(rates.kv_bytes_per_s),
            load_bytes_per_s=moved(rates.load_bytes_per_s),
            store_bytes_per_s=moved(rates.store_bytes_per_s),
            copy_bytes_per_s=moved(rates.copy_bytes_per_s),
        ),
    )


def write_machines(path: Path, machines: tuple[Machine, ...]) -> None:
    """A file that `read_machines` reads back, equal field by field; it is there as a whole or not
    at all. Raises OSError."""
    path.parent.mkdir(parents=True, exist_ok=True)
    text = json.dumps(encode_machines(machines), indent=1, allow_nan=False) + "\n"
    draft, name = tempfile.mkstemp(dir=path.parent, prefix=path.name, suffix=".draft")
    try:
        with os.fdopen(draft, "w", encoding="utf-8") as file:
            file.write(text)
        os.chmod(name, 0o644)  # a draft is its maker's alone; others may plan with it
        os.replace(name, path)
    except BaseException:
        os.unlink(name)
        raise


# -- names -----------------------------------------------------------------------------------------


def _of_devices(folded: str, name: str) -> Machine:
    groups: list[tuple[int, Device, Links]] = []
    for part in folded.split("+"):
        match = _GROUP.fullmatch(part.strip())
        if match is None:
            raise _unknown("machine", name, part)
        if re.match(r"[0-9]+x", match["slug"]) and match["count"]:
            raise ConfigError(f"machine={name!r}: got two counts, expected one, as in 8xl4.")
        count = int(match["count"] or 1)
        if not 1 <= count <= 1024:
            raise ConfigError(f"machine={name!r}: got {count} devices, expected 1 to 1024.")
        groups.append((count, *_resolve(match["slug"], "machine", name)))
    if len({device.kind for _, device, _ in groups}) > 1:
        raise ConfigError(f"machine={name!r}: cpu and cuda devices cannot be ranks of one layout.")
    devices = tuple(device for count, device, _ in groups for _ in range(count))
    links = min((links for *_, links in groups), key=lambda one: one.bus_bytes_per_s)
    return Machine(
        slug="+".join(f"{count}x{device.slug}" for count, device, _ in groups),
        name=", ".join(f"{count} {device.name}" for count, device, _ in groups),
        devices=devices,
        links=links,
        host_memory_bytes=HOST_BYTES_PER_DEVICE * len(devices),
        sources={
            "host_memory_bytes": "assumed: 80 GiB per device, as in the evaluation of Seesaw",
            "links": f"assumed: those usual for {links.name}",
        },
    )


def _resolve(slug: str, where: str, name: str | None = None) -> tuple[Device, Links]:
    if slug not in _shipped("machines"):
        raise _unknown(where, name or slug, slug)
    return _device(slug)


def _unknown(where: str, name: str, part: str) -> ConfigError:
    devices, machines = known_devices(), known_machines()
    wanted = part.split("x", 1)[-1] if re.match(r"[0-9]+x", part) else part
    # Of "h100" there are several, each nearer than "h200" is.
    kinds = [device for device in devices if device.startswith(f"{wanted}-")]
    hint = nearest(wanted, (*devices, *machines))
    if kinds:
        hint = f" Did you mean {' or '.join(repr(kind) for kind in kinds)}?"
    return ConfigError(
        f"{where}={name!r}: {wanted!r} is not known.{hint} "
        f"Machines: {', '.join(machines)}. Devices, as in 8xl4: {', '.join(devices)}. "
        "Or the path of a FILE.json; docs/machines.md describes it."
    )


def _count(number: int, what: str) -> str:
    return f"{number} {what}" if number == 1 else f"{number} {what}s"


# -- files -----------------------------------------------------------------------------------------


def _read_file(path: Path) -> tuple[Machine, ...]:
    if not path.is_file():
        raise ConfigError(f"machine={str(path)!r}: no such file.")
    return decode_machines(_parse(path), str(path), _resolve)


def _parse(path: Path | Traversable) -> Any:
    try:
        return json.loads(path.read_text(encoding="utf-8"), object_pairs_hook=_once)
    except (OSError, ValueError, RecursionError) as error:
        raise ConfigError(f"{path}: not a machine file: {error}") from error


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        names = [name for name, _ in pairs]
        twice = next(name for name in names if names.count(name) > 1)
        raise ValueError(f"{twice!r} stands twice in one object")
    return found


@cache
def _shipped(*folder: str) -> dict[str, Traversable]:
    root = files("seesaw.plan").joinpath(*folder)
    return {
        found.name.removesuffix(".json"): found
        for found in root.iterdir()
        if found.name.endswith(".json")
    }


@cache
def _device(slug: str) -> tuple[Device, Links]:
    path = _shipped("machines")[slug]
    device, links = decode_device(_parse(path), path.name)
    if device.slug != slug:
        raise ConfigError(f"{path.name}: slug={device.slug!r}: expected the file's name.")
    return device, links
