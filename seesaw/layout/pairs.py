"""Which layouts a model can have on so many devices, and which two can take turns on the same."""

from __future__ import annotations

from seesaw.errors import ConfigError
from seesaw.families.spec import ModelSpec
from seesaw.layout.parallel import ParallelLayout
from seesaw.layout.ranges import check_fits


def layouts_of(
    prefill: str | None, decode: str | None
) -> tuple[ParallelLayout, ParallelLayout] | None:
    """Both layouts from their text; one stands for both; None without any. Raises ConfigError."""
    found = []
    for name, text in (("prefill_layout", prefill), ("decode_layout", decode)):
        if text is not None:
            try:
                found.append(ParallelLayout.parse(text))
            except ConfigError as error:
                raise ConfigError(f"{name}={text!r}: {error}") from error
    return (found[0], found[-1]) if found else None


def parse_pair(text: str) -> tuple[ParallelLayout, ParallelLayout] | None:
    """`pp2:tp2` or one layout for both; None for `auto`. Raises ConfigError."""
    if text == "auto":
        return None
    prefill, colon, decode = text.partition(":")
    try:
        return ParallelLayout.parse(prefill), ParallelLayout.parse(decode if colon else prefill)
    except ConfigError as error:
        raise ConfigError(
            f"layouts={text!r}: {error} Or give two, for prompts and for answers, as pp2:tp2, or "
            "auto."
        ) from error


def layouts_for(num_devices: int, spec: ModelSpec, dp: int | None = None) -> list[ParallelLayout]:
    """All layouts over exactly `num_devices` that `spec` allows, with `dp` replicas if given; few
    replicas first, then little tensor parallelism. Empty where there is none."""
    layouts = [
        ParallelLayout(dp=replicas, tp=tp, pp=num_devices // replicas // tp)
        for replicas in _divisors(num_devices)
        if dp in (None, replicas)
        for tp in _divisors(num_devices // replicas)
    ]
    return [layout for layout in layouts if _fits(layout, spec)]


def check_pair(prefill: ParallelLayout, decode: ParallelLayout, spec: ModelSpec) -> None:
    """Raises ConfigError unless `spec` allows both layouts, over as many devices and with as many
    replicas each."""
    check_fits(prefill, spec)
    check_fits(decode, spec)
    if prefill.num_ranks != decode.num_ranks:
        raise ConfigError(
            f"prefill_layout {prefill} takes {prefill.num_ranks} devices and decode_layout "
            f"{decode} takes {decode.num_ranks}: expected as many, since both run on the same "
            f"devices. {_advice('decode_layout', prefill, spec)}; "
            f"{_advice('prefill_layout', decode, spec)}."
        )
    if prefill.dp != decode.dp:
        raise ConfigError(
            f"prefill_layout {prefill} has dp={prefill.dp} and decode_layout {decode} has "
            f"dp={decode.dp}: expected the same number of replicas, since a request stays in its "
            f"replica. {_advice('decode_layout', prefill, spec)}; "
            f"{_advice('prefill_layout', decode, spec)}."
        )


def _advice(name: str, other: ParallelLayout, spec: ModelSpec) -> str:
    layouts = ", ".join(str(found) for found in layouts_for(other.num_ranks, spec, other.dp))
    return f"{name} beside {other} could be {layouts}"


def _fits(layout: ParallelLayout, spec: ModelSpec) -> bool:
    try:
        check_fits(layout, spec)
    except ConfigError:
        return False
    return True


def _divisors(number: int) -> list[int]:
    return [part for part in range(1, number + 1) if number % part == 0]
