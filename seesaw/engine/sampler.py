"""Draws the next token of each row: keeps what sampling needs to know of a request between steps.

A draw depends on the request's seed and the position alone, so an answer is the same whatever runs
beside it, after a preemption, and with any number of steps in flight.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import torch

from seesaw.ops.adjust_logits import RowAdjustment, adjust_logits
from seesaw.ops.logprobs import logprobs as top_logprobs
from seesaw.ops.sample import sample, uniform
from seesaw.sampling_params import SamplingParams
from seesaw.scheduler.output import TokenLogprobs
