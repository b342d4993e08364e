"""How the process of a rank is started: its command line and what it finds in its environment.

Engine and calibration start ranks alike, so that what was measured is what runs.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping, Sequence

from seesaw import envs


def rank_command(rank: int, module: str, arguments: Sequence[str]) -> list[str]:
    """`python -m module arguments`, behind SEESAW_RANK_COMMAND. Raises ConfigError."""
    return [*envs.rank_command(rank), sys.executable, "-m", module, *arguments]


def rank_environment(rank: int, more: Mapping[str, str] | None = None) -> dict[str, str]:
    """This process's and `more`, with the one address of SEESAW_COMM_HOST that is the rank's.
    Raises ConfigError."""
    return {**os.environ, **(more or {}), "SEESAW_COMM_HOST": envs.comm_host(rank)}
