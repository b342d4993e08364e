"""How the model lies over the devices: which rank holds what, as half-open ranges.

Standard library only, and no decision about weights, KV or time: those are set arithmetic on the
ranges made here.
"""

from seesaw.layout.arena import ArenaPlan as ArenaPlan
from seesaw.layout.arena import plan_arena as plan_arena
from seesaw.layout.pairs import check_pair as check_pair
from seesaw.layout.pairs import layouts_for as layouts_for
from seesaw.layout.panels import PanelFormat as PanelFormat
from seesaw.layout.panels import panels_suit as panels_suit
from seesaw.layout.parallel import ParallelLayout as ParallelLayout
from seesaw.layout.plain import PlainFormat as PlainFormat
from seesaw.layout.plain import stored_params as stored_params
from seesaw.layout.plan import plan_reshard as plan_reshard
from seesaw.layout.ranges import Range as Range
from seesaw.layout.ranges import RankRanges as RankRanges
from seesaw.layout.ranges import check_fits as check_fits
from seesaw.layout.ranges import rank_ranges as rank_ranges
from seesaw.layout.reshard import ReshardPlan as ReshardPlan
