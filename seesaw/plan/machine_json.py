"""Machines as JSON and back: the fields of the dataclasses of `machine`, one to one.

Owns the shape of a machine file and what is refused in it. Which files there are, and what their
names mean, is `machine_files`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import MISSING, Field, fields, is_dataclass
from typing import Any, Literal, TypeVar, get_args, get_origin, get_type_hints

from seesaw.errors import ConfigError, nearest
from seesaw.plan.curve import Curve
from seesaw.plan.machine import Device, Links, Machine

Json = Any
Resolve = Callable[[str, str], tuple[Device, Links]]
"""(slug, where it stands) -> that device and the links it usually has."""

_T = TypeVar("_T")


def decode_machines(value: Json, where: str, resolve: Resolve) -> tuple[Machine, ...]:
    """`{"machines": [...]}` of a machine file. Raises ConfigError naming the field."""
    found = check_keys(value, where, required=("machines",))["machines"]
    machines = tuple(
        _machine(item, f"{where}: machines[{number}]", resolve)
        for number, item in enumerate(_list(found, f"{where}: machines"))
    )
    if not machines:
        raise ConfigError(f"{where}: machines=[]: expected at least one machine.")
    return machines


def encode_machines(machines: tuple[Machine, ...]) -> Json:
    """What `decode_machines` reads, equal field by field."""
    return {"machines": [_encode_machine(machine) for machine in machines]}


def decode_device(value: Json, where: str) -> tuple[Device, Links]:
    """A device file: the fields of `Device` and, as `links`, what usually joins such devices."""
    own = check_keys(value, where, required=("links",), others=_names(Device))
    links = decode(Links, own["links"], f"{where}: links")
    device = {name: item for name, item in own.items() if name != "links"}
    return decode(Device, device, where), links


# -- machines --------------------------------------------------------------------------------------


def _machine(value: Json, where: str, resolve: Resolve) -> Machine:
    own = dict(check_keys(value, where, required=("devices",), others=_names(Machine)))
    devices: list[Device] = []
    links: list[Links] = []
    for number, group in enumerate(_list(own.pop("devices"), f"{where}.devices")):
        at = f"{where}.devices[{number}]"
        group = check_keys(group, at, required=("device",), others=("count",))
        count = group.get("count", 1)
        if not isinstance(count, int) or isinstance(count, bool) or not 1 <= count <= 1024:
            raise ConfigError(f"{at}.count={count!r}: expected a whole number from 1 to 1024.")
        if isinstance(group["device"], str):
            device, usual = resolve(group["device"], f"{at}.device")
            links.append(usual)
        else:
            device = decode(Device, group["device"], f"{at}.device")
        devices += [device] * count
    if not devices:
        raise ConfigError(f"{where}.devices=[]: expected at least one device.")
    kinds = sorted({device.kind for device in devices})
    if len(kinds) > 1:
        raise ConfigError(f"{where}.devices: got kinds {' and '.join(kinds)}, expected one kind.")
    given: dict[str, Any] = {"devices": tuple(devices)}
    if "links" not in own:
        if not links:
            raise ConfigError(
                f"{where}.links: missing; only devices given by name bring their own."
            )
        given["links"] = min(links, key=lambda one: one.bus_bytes_per_s)
    return _build(Machine, own, where, given)


def _encode_machine(machine: Machine) -> Json:
    groups: list[dict[str, Json]] = []
    for device in machine.devices:
        item = encode(device)
        if groups and groups[-1]["device"] == item:
            groups[-1]["count"] += 1
        else:
            groups.append({"device": item, "count": 1})
    found: dict[str, Json] = {"slug": machine.slug, "name": machine.name, "devices": groups}
    for name, item in encode(machine, without=("devices",)).items():
        found.setdefault(name, item)
    return found


# -- any dataclass of `machine` --------------------------------------------------------------------


def encode(value: Any, without: tuple[str, ...] = ()) -> Json:
    """Dataclasses as objects of their fields, but for those that hold None by default."""
    if isinstance(value, Curve):
        return [[x, y] for x, y in zip(value.xs, value.ys, strict=True)]
    if is_dataclass(value):
        return {
            field.name: encode(getattr(value, field.name))
            for field in fields(value)
            if field.name not in without
            and (field.default is not None or getattr(value, field.name) is not None)
        }
    if isinstance(value, Mapping):
        return {str(key): encode(item) for key, item in value.items()}
    return list(value) if isinstance(value, tuple) else value


def decode(kind: type[_T], value: Json, where: str) -> _T:
    """An object with the fields of dataclass `kind`, which says their types.

    Numbers are finite and positive; overheads and latencies may be 0. Raises ConfigError naming the
    field, what was got and what is expected.
    """
    return _build(kind, value, where, {})


def _build(kind: type[_T], value: Json, where: str, given: dict[str, Any]) -> _T:
    known = {field.name: field for field in fields(kind)}  # type: ignore[arg-type]
    required = [
        name for name, field in known.items() if name not in given and not _has_default(field)
    ]
    own = check_keys(value, where, required=tuple(required), others=tuple(known))
    hints = get_type_hints(kind)
    found = {name: _value(hints[name], item, f"{where}.{name}") for name, item in own.items()}
    return kind(**found, **given)


def _value(hint: Any, value: Json, where: str) -> Any:
    origin, arguments = get_origin(hint), get_args(hint)
    if origin is Literal:
        if value not in arguments:
            raise _wrong(where, value, " or ".join(map(repr, arguments)))
        return value
    if type(None) in arguments:
        (inner,) = (one for one in arguments if one is not type(None))
        return None if value is None else _value(inner, value, where)
    if origin is tuple:
        return tuple(
            _value(arguments[0], item, f"{where}[{number}]")
            for number, item in enumerate(_list(value, where))
        )
    if origin is Mapping:
        if not isinstance(value, dict):
            raise _wrong(where, value, "an object")
        return {
            _key(arguments[0], name, where): _value(arguments[1], item, f"{where}.{name}")
            for name, item in value.items()
        }
    if hint is Curve:
        for number, point in enumerate(_list(value, where)):
            if not isinstance(point, list) or len(point) != 2:
                raise _wrong(f"{where}[{number}]", point, "[x, y]")
            for coordinate in point:
                _number(float, coordinate, f"{where}[{number}]")
        return Curve.of(value, where)
    if is_dataclass(hint):
        return decode(hint, value, where)  # type: ignore[arg-type]
    if hint is str:
        if not isinstance(value, str) or not value:
            raise _wrong(where, value, "text")
        return value
    return _number(hint, value, where)


def _number(kind: type[int] | type[float], value: Json, where: str) -> int | float:
    allowed = (int,) if kind is int else (int, float)
    may_be_zero = where.endswith(("_overhead_s", "_overhead_keys", "_latency_s"))
    if (
        isinstance(value, bool)
        or not isinstance(value, allowed)
        or not math.isfinite(value)
        or value < 0
        or (value == 0 and not may_be_zero)
    ):
        what = "a whole number" if kind is int else "a finite number"
        raise _wrong(where, value, f"{what}, {'0 or more' if may_be_zero else 'above 0'}")
    return value


def _key(kind: Any, name: str, where: str) -> Any:
    if kind is not int:
        return name
    if not name.isdecimal() or int(name) < 2:
        raise _wrong(f"{where}, key", name, "a number of ranks, 2 or more")
    return int(name)


def check_keys(
    value: Json, where: str, *, required: tuple[str, ...] = (), others: tuple[str, ...] = ()
) -> dict[str, Json]:
    """`value` if it is an object with all of `required` and nothing but these and `others`."""
    if not isinstance(value, dict):
        raise _wrong(where, value, "an object")
    known = dict.fromkeys((*required, *others))
    for name in value:
        if name not in known:
            raise ConfigError(
                f"{where}: unknown field {name!r}.{nearest(name, known)} Known: {', '.join(known)}."
            )
    for name in required:
        if name not in value:
            raise ConfigError(f"{where}: field {name!r} is missing.")
    return value


def _list(value: Json, where: str) -> list[Json]:
    if not isinstance(value, list):
        raise _wrong(where, value, "a list")
    return value


def _wrong(where: str, value: Json, expected: str) -> ConfigError:
    shown = repr(value)
    shown = shown if len(shown) <= 60 else shown[:57] + "..."
    return ConfigError(f"{where}={shown}: expected {expected}.")


def _names(kind: type) -> tuple[str, ...]:
    return tuple(field.name for field in fields(kind))


def _has_default(field: Field[Any]) -> bool:
    return field.default is not MISSING or field.default_factory is not MISSING
