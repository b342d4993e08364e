"""What a step costs beside its layers: scheduler, messages, inputs and sampling, measured by
running the engine's own replicas on a model of few layers, whose time is known.
"""

from __future__ import annotations

import contextlib
import itertools
import logging
import time
from collections.abc import Iterator

import torch

from seesaw.config import EngineConfig
from seesaw.engine.build import torch_dtype
from seesaw.engine.calibrate_model import LayerSizes, calibration_spec, made_checkpoint
from seesaw.engine.loader import load_replicas
from seesaw.engine.replicas import Replicas
from seesaw.layout.parallel import ParallelLayout
from seesaw.log import get_logger
from seesaw.sampling_params import SamplingParams
from seesaw.scheduler.output import ModelOutput
from seesaw.scheduler.request import Request

STEP_LAYERS = 4
STEP_ROWS = (1, 64)
STEPS = 16
"""In a sample, after WARM_UP_STEPS."""
WARM_UP_STEPS = 4
_PROMPT, _ANSWER = 32, 96
STEP_KEYS = _PROMPT + WARM_UP_STEPS + STEPS // 2
"""Of a row in the middle of a sample."""


def step_samples(
    sizes: LayerSizes, num_ranks: int, device: str, dtype: str, rounds: int
) -> dict[str, list[float]]:
    """Seconds of a decode step, `steps/ROWS` -> one figure per round, over STEPS of them.

    Every rank is a replica, all of them decoding at once: each does all that a step needs of a
    rank, and nothing that depends on a layout.
    """
    found: dict[str, list[float]] = {f"steps/{rows}": [] for rows in STEP_ROWS}
    with _replicas(sizes, num_ranks, device, torch_dtype(dtype)) as replicas:
        numbers = itertools.count()
        for _ in range(rounds):
            for rows in STEP_ROWS:
                found[f"steps/{rows}"].append(_decode(replicas, rows, numbers))
    return found


@contextlib.contextmanager
def _replicas(
    sizes: LayerSizes, num_ranks: int, device: str, dtype: torch.dtype
) -> Iterator[Replicas]:
    layout = str(ParallelLayout(dp=num_ranks))
    config = EngineConfig(
        model="calibration",
        prefill_layout=layout,
        decode_layout=layout,
        device=device,  # type: ignore[arg-type]
        dtype=str(dtype).removeprefix("torch."),  # type: ignore[arg-type]
        device_memory="512MiB",
        max_model_len=_PROMPT + _ANSWER,
        enable_prefix_caching=False,
    )
    with _quiet():
        spec = calibration_spec(sizes, STEP_LAYERS, str(dtype).removeprefix("torch."))
        loaded = load_replicas(config, made_checkpoint(spec))
    try:
        yield loaded.replicas
    finally:
        loaded.replicas.shutdown()


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """What is logged of the made-up model is of no use to anyone."""
    logger = get_logger("seesaw")
    level = logger.level
    logger.setLevel(logging.WARNING)
    try:
        yield
    finally:
        logger.setLevel(level)


def _decode(replicas: Replicas, rows: int, numbers: Iterator[int]) -> float:
    """Seconds per step of `rows` requests on each replica, all of which decode."""
    count = rows * len(replicas.schedulers)
    ids = [str(next(numbers)) for _ in range(count)]
    sampling = SamplingParams(temperature=0, ignore_eos=True, max_tokens=_ANSWER)
    for name in ids:
        prompt = [1 + len(name)] * _PROMPT
        replicas.add(
            Request(
                name, prompt, sampling, seed=0, eos_token_ids=(), max_model_len=_PROMPT + _ANSWER
            )
        )
    _run(replicas, WARM_UP_STEPS)
    began_s = time.perf_counter()
    _run(replicas, STEPS)
    seconds = time.perf_counter() - began_s
    for name in ids:
        replicas.finish(name, "abort")
    while replicas.num_in_flight:
        replicas.update(replicas.collect())
    return seconds / STEPS


def _run(replicas: Replicas, steps: int) -> None:
    """Until that many steps of each replica have come back."""
    left = steps * len(replicas.schedulers)
    while left:
        replicas.issue()
        event = replicas.collect()
        left -= isinstance(event[1], ModelOutput)
        replicas.update(event)
