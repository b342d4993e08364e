"""Which format a model's weights have on a machine: the one place that engine and planner ask."""

from __future__ import annotations

from collections.abc import Iterable

from seesaw.families.spec import ModelSpec
from seesaw.layout.format import FormatName, WeightFormat
from seesaw.layout.panels import PanelFormat, panels_suit
from seesaw.layout.parallel import ParallelLayout
from seesaw.layout.plain import PlainFormat


def format_name(
    spec: ModelSpec, dtype: str, layouts: Iterable[ParallelLayout], *, native: bool
) -> FormatName:
    """`native`: ranks compute with seesaw's own kernels for CPUs."""
    suits = native and panels_suit(spec, dtype, layouts) is None
    return "panels" if suits else "plain"


def make_format(name: FormatName, spec: ModelSpec, element_bytes: int) -> WeightFormat:
    kinds = {"plain": PlainFormat, "panels": PanelFormat}
    return kinds[name](spec, element_bytes)
