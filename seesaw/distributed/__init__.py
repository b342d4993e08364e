"""Ranks of one replica talking to each other: sums within a stage, hand-over between stages, pieces
of weights between peers.

Owns the process groups of torch.distributed; knows nothing of models, steps or weights.
"""

from seesaw.distributed.exchange import PeerExchange as PeerExchange
from seesaw.distributed.rank_group import RankGroup as RankGroup
