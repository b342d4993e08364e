"""Plots of what was planned, simulated or measured: one call, one file (SVG or PNG).

matplotlib is an optional dependency and is loaded by the call. Owns how things look; computes no
figure but the quantiles that it marks.
"""

from seesaw.api.plots.charts import bars, lines, percentiles
from seesaw.api.plots.described import draw, draw_all
from seesaw.api.plots.figure import check_plot_file
from seesaw.api.plots.lanes import timeline
from seesaw.api.plots.roof import roofline

__all__ = [
    "bars",
    "check_plot_file",
    "draw",
    "draw_all",
    "lines",
    "percentiles",
    "roofline",
    "timeline",
]
