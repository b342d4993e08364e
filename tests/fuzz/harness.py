"""A real `Engine` over fake ranks: all of the driver, from `add_request` to the messages for ranks.

Left out is what loads a model and measures this machine: sizes come from the scenario, weights are
not read, prompts are token ids and each token is a character.
"""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from types import MappingProxyType
from typing import Any
from unittest import mock

from seesaw import envs
from seesaw.config import EngineConfig
from seesaw.engine import dump, loader, rank_loader
from seesaw.engine.engine import Engine
from seesaw.engine.rank_executor import RankExecutor
from seesaw.plan.choice import LayoutChoice
from seesaw.plan.memory import MemoryPlan
from seesaw.scheduler import policies
from seesaw.scheduler.scheduler import Scheduler
from tests.fuzz.costs import predict_bytes
from tests.fuzz.fake_ranks import STEP_TIMEOUT_S, FakeRanks
from tests.fuzz.scenario import FIRST_CHAR, SPEC, Scenario
from tests.scheduler.traces import EOS

CHARS = [chr(FIRST_CHAR + token) for token in range(SPEC.vocab_size)]


def text_of(token_ids: Sequence[int]) -> str:
    return "".join(map(CHARS.__getitem__, token_ids))


class FakeTokenizer:
    def decode(self, token_ids: Sequence[int], *, skip_special_tokens: bool = True) -> str:
        return text_of(token_ids)

    def detokenizer(self, *, skip_special_tokens: bool = True) -> FakeTokenizer:
        return self

    def push(self, token_id: int) -> str:
        return text_of([token_id])

    def flush(self) -> str:
        return ""


class FakeCheckpoint:
    """What an engine asks of a model that nobody loads."""

    spec = SPEC
    name = "fuzz"
    path = Path("fuzz")
    fingerprint = "fuzz"
    generation_config: Mapping[str, Any] = MappingProxyType({})
    tensors: Mapping[str, Any] = MappingProxyType({})
    eos_token_ids = (EOS,)

    def tokenizer(self) -> FakeTokenizer:
        return FakeTokenizer()

    def load_image(self, *_: object) -> None:
        pass


def config_of(scenario: Scenario) -> EngineConfig:
    config = scenario.config
    return EngineConfig(
        model="fuzz",
        dtype="float32",
        device="cpu",
        cpu_threads=1,
        seed=scenario.engine_seed,
        policy=scenario.policy,
        policy_options=dict(scenario.options),
        prefill_layout=str(scenario.prefill),
        decode_layout=str(scenario.decode),
        max_model_len=config.max_model_len,
        max_num_seqs=config.max_num_seqs,
        max_num_batched_tokens=config.max_num_batched_tokens,
        block_size=config.block_size,
        tier_block_size=config.tier.tier_block_size if config.tier else 64,
        enable_prefix_caching=config.enable_prefix_caching,
        reload="missing" if scenario.layouts_differ else "auto",
    )


def _memory_plan(scenario: Scenario) -> MemoryPlan:
    config, tier = scenario.config, scenario.config.tier
    return MemoryPlan(
        num_ranks=scenario.decode.num_ranks,
        num_replicas=scenario.decode.dp,
        budget_bytes=0,
        reason="the scenario",
        arena_bytes=0,
        work_bytes=0,
        graph_bytes=0,
        prefill_block_bytes=0,
        block_bytes=0,
        prefill_blocks=tier.prefill_blocks if tier else 0,
        num_blocks=config.num_blocks,
        block_size=config.block_size,
        max_model_len=config.max_model_len,
        model_len_reason="the scenario",
        image_bytes=0,
        tier_blocks=tier.tier_blocks if tier else 0,
        tier_block_size=tier.tier_block_size if tier else 64,
        tier_bytes=0,
        relays=tier is not None and tier.relays,
    )


def _schedulers(scenario: Scenario) -> list[Scheduler]:
    """With all that traces may ask for."""
    options = dict(scenario.options)
    return [
        Scheduler(scenario.config, policies.make(scenario.policy, options))
        for _ in range(scenario.decode.dp)
    ]


def _always(result: object) -> Callable[..., Any]:
    """Far quicker than a mock with a return value, of which a class is made."""
    return lambda *_, **__: result


@contextmanager
def fake_loading(scenario: Scenario, ranks: FakeRanks) -> Iterator[None]:
    """Inside, an engine finds the scenario's sizes in place of measured ones, and `ranks`."""
    layouts = LayoutChoice(scenario.prefill, scenario.decode, "the scenario")
    executor = partial(RankExecutor, clock=lambda: ranks.clock.now_s)
    with contextlib.ExitStack() as patches:

        def put(owner: Any, name: str, value: Any) -> None:
            patches.enter_context(mock.patch.object(owner, name, value))

        put(loader, "logger", logging.getLogger("tests.fuzz"))
        put(loader, "choose_layouts", _always(layouts))
        put(loader, "device_space", _always(None))
        put(loader, "has_kernels", _always(False))
        put(loader, "_weight_format", _always("plain"))
        put(loader, "plan_memory", _always(_memory_plan(scenario)))
        put(loader, "make_schedulers", _always(_schedulers(scenario)))
        put(envs, "step_timeout_s", _always(STEP_TIMEOUT_S))
        put(rank_loader, "Ranks", _always(ranks))
        put(rank_loader, "cores_of_rank", _always(None))
        put(rank_loader, "RankExecutor", executor)
        put(rank_loader, "predict_bytes", predict_bytes)
        yield


@contextmanager
def dumps_kept(dumps: list[str]) -> Iterator[None]:
    """Inside, what dying engines would write to files is kept there."""

    def write(
        why: str, describe: Callable[[], Iterable[str]], cause: BaseException | None = None
    ) -> None:
        dumps.append("\n".join([why, *describe()]))

    with mock.patch.object(dump, "write", write):
        yield


def make_engine(scenario: Scenario, ranks: FakeRanks) -> Engine:
    """Raises EngineDeadError where a rank dies while it starts."""
    checkpoint: Any = FakeCheckpoint()
    own: Any = ranks if scenario.keep_ranks else None
    with fake_loading(scenario, ranks):
        return Engine(config_of(scenario), checkpoint=checkpoint, ranks=own)
