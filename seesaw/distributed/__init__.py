"""Ranks of one replica talking to each other: sums within a stage, hand-over between stages, pieces
of weights between peers.

Owns how ranks are joined, over shared memory, TCP, gloo or NCCL; knows nothing of models, steps or
weights.
"""

from seesaw.distributed.collectives import Kind as Kind
from seesaw.distributed.collectives import choose as choose
from seesaw.distributed.collectives import links_name as links_name
from seesaw.distributed.rank_group import RankGroup as RankGroup
from seesaw.distributed.shm import new_shared_file as new_shared_file
from seesaw.distributed.transport import PeerExchange as PeerExchange
