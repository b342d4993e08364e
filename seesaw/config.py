"""Engine settings: one frozen dataclass.

`LLM` takes its arguments from it and the CLI its flags.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields
from functools import cache
from typing import Any, Literal, Self, get_args, get_origin, get_type_hints

from seesaw.errors import ConfigError, nearest
from seesaw.layout.kv import TierOrder
from seesaw.layout.pairs import layouts_of, parse_pair
from seesaw.layout.parallel import ParallelLayout
from seesaw.sizes import parse_bytes, parse_cores

DType = Literal["auto", "float32", "bfloat16", "float16"]
LoadFormat = Literal["auto", "safetensors", "gguf"]
Device = Literal["auto", "cpu", "cuda"]
Reload = Literal["auto", "missing", "all", "none"]
ReshardFrom = Literal["auto", "host", "peers"]
KVPath = Literal["auto", "tier", "peers"]
Collectives = Literal["auto", "shm", "tcp", "gloo"]
RunningTier = Literal["auto", "on", "off"]

STEP_TOKENS = 2048
"""Most tokens of a step where neither settings nor a plan say how many."""


def auto_policy(two_layouts: bool) -> str:
    """What `policy="auto"` means."""
    return "seesaw" if two_layouts else "continuous"


def _opt(default: Any, help: str) -> Any:
    return field(default=default, metadata={"help": help})


_STATIC = ("data_parallel_size", "tensor_parallel_size", "pipeline_parallel_size")
_PHASED = ("prefill_layout", "decode_layout")
_BOTH = ("layouts",)


@dataclass(frozen=True, kw_only=True)
class EngineConfig:
    model: str = field(metadata={"help": "model directory, .gguf file or hub name"})
    tokenizer: str | None = _opt(
        None, "tokenizer directory or hub name, if it is not the model's own"
    )
    revision: str | None = _opt(None, "branch, tag or commit of a hub model")
    load_format: LoadFormat = _opt("auto", "kind of the checkpoint")
    chat_template: str | None = _opt(
        None, "file with a Jinja chat template, instead of the tokenizer's own"
    )
    trust_remote_code: bool = _opt(
        False, "always refused: seesaw never runs code from a model directory"
    )
    dtype: DType = _opt(
        "auto", "of weights and KV; auto = the checkpoint's, but bfloat16 for float32 ones"
    )
    device: Device = _opt("auto", "auto = cuda where there is one")
    seed: int = _opt(0, "draws of requests without a seed of their own derive from it")
    cpu_threads: int | None = _opt(
        None, "threads that compute, of each device on cpu (default: the usable cores shared out)"
    )
    cpu_cores: str | None = _opt(
        None, "cores that these stay on, one each, such as 0-3,8 (default: as the system has it)"
    )
    max_model_len: int | None = _opt(
        None, "longest prompt + answer in tokens (default: the model's, as far as memory allows)"
    )
    max_num_seqs: int = _opt(256, "most requests running at once, in each replica")
    max_num_batched_tokens: int | None = _opt(
        None,
        f"most tokens computed in one step (default: {STEP_TOKENS}; where layouts are planned, "
        "what is fastest)",
    )
    block_size: int = _opt(32, "tokens per KV block")
    enable_prefix_caching: bool = _opt(True, "share the KV of common prompt beginnings")
    device_memory: str | None = _opt(
        None, "bytes of each device for weights, KV and work space, such as 2GiB"
    )
    gpu_memory_utilization: float | None = _opt(
        None, "the same as a fraction of the device's memory (cpu: of the machine's)"
    )
    layouts: str | None = _opt(
        None,
        "how prompts and answers are computed: one layout, such as tp2, two that take turns, such "
        "as pp2:tp2, or auto = what the planner finds fastest for the job (default where no layout "
        "is given)",
    )
    prefill_layout: str | None = _opt(
        None,
        "the first of them by itself: replicas, cut and stages, such as pp2 or dp2-tp2; pp7+5 has "
        "stages of 7 and 5 layers",
    )
    decode_layout: str | None = _opt(
        None, "the second, over the same devices (where one of the two is given it stands for both)"
    )
    data_parallel_size: int | None = _opt(
        None,
        "replicas of the model, beside the next two; with num_devices, how many of them the "
        "layouts have that are chosen",
    )
    tensor_parallel_size: int | None = _opt(
        None, "devices per layer, in both phases; instead of the layouts"
    )
    pipeline_parallel_size: int | None = _opt(
        None, "stages of layers, in both phases; instead of the layouts"
    )
    expected_lengths: Sequence[tuple[int, int]] = field(
        default=(),
        metadata={
            "help": "(prompt, answer) tokens of the requests to come, or of a sample of them, for "
            "which layouts are chosen; commands that know their job give it",
            "cli": False,
        },
    )
    expected_requests: int | None = field(
        default=None,
        metadata={"help": "how many these stand for (default: 1000)", "cli": False},
    )
    num_devices: int | None = _opt(
        None, "devices to use where no layout is given (default: all GPUs; 1 on cpu)"
    )
    host_kv_memory: str | None = _opt(
        None,
        "bytes of the host tier, which keeps KV between phases "
        "(default: half of what is free beside weights)",
    )
    tier_block_size: int = _opt(64, "tokens per block of the host tier")
    tier_order: TierOrder = _opt(
        "head", "what stands together in such a block: a head's layers, a layer's heads, or all of "
        "a device block's tokens",
    )  # fmt: skip
    running_tier: RunningTier = _opt(
        "auto",
        "let running requests take turns in the decode pool, their KV in the host tier, with three "
        "decode stages or more; auto = where the planner says that it pays",
    )
    reload: Reload = _opt(
        "auto",
        "weights fetched when the layout changes: what is not in place, all, or none, as ranks run "
        "from the host's copy; auto = none on cpu where they can, else missing",
    )
    reshard_from: ReshardFrom = _opt(
        "auto", "where those come from; auto = peers on cuda, host on cpu"
    )
    kv_path: KVPath = _opt(
        "auto",
        "how KV of prompts that will run at once comes into the decode pool: from rank to rank "
        "(peers), or through the tier as all else; auto = as weights on cuda, tier on cpu",
    )
    overlap: bool = _opt(
        True,
        "move weights and KV while steps compute: layers of the next layout one after another, "
        "stores by groups of layers; else stores wait for the step, and steps for all weights",
    )
    collectives: Collectives = _opt(
        "auto",
        "how ranks on cpu talk: shared memory, TCP (also between network namespaces, see "
        "SEESAW_COMM_HOST), or gloo of torch; auto = shm where seesaw's C++ module is built, else "
        "gloo. GPUs use NCCL",
    )
    enforce_eager: bool = _opt(
        False, "record no decode steps as CUDA graphs, which take memory and seconds at the start"
    )
    profile: bool = _opt(
        False, "split the time of steps by operation, count reads of experts; logged at the end"
    )
    policy: str = _opt(
        "auto",
        "scheduling policy: a built-in name or module.path:Class; "
        "auto = seesaw for two layouts, continuous for one",
    )
    policy_options: dict[str, Any] = field(
        default_factory=dict, metadata={"help": "options of the policy", "cli": False}
    )

    def __post_init__(self) -> None:
        for name in ("model", "tokenizer", "chat_template"):
            if isinstance(path := getattr(self, name), os.PathLike):
                object.__setattr__(self, name, os.fspath(path))
        self._check_types()
        self._check_words()
        for name in ("max_num_seqs", "block_size", "tier_block_size"):
            _check_int(name, getattr(self, name), 1)
        for name, low in (
            ("max_model_len", 2),
            ("max_num_batched_tokens", 1),
            ("data_parallel_size", 1),
            ("tensor_parallel_size", 1),
            ("pipeline_parallel_size", 1),
            ("num_devices", 1),
            ("cpu_threads", 1),
            ("expected_requests", 1),
        ):
            if getattr(self, name) is not None:
                _check_int(name, getattr(self, name), low)
        _check_int("seed", self.seed, 0)
        if self.block_size & (self.block_size - 1) or self.block_size > 256:
            raise ConfigError(f"block_size={self.block_size}: expected a power of two up to 256.")
        if self.trust_remote_code:
            raise ConfigError(
                "trust_remote_code=True: seesaw never runs code from a model directory. "
                "Leave it out."
            )
        if self.cpu_cores is not None:
            parse_cores(self.cpu_cores)
        self._check_memory()
        self._check_layouts()
        for lengths in self.expected_lengths:
            if not isinstance(lengths, Sequence) or len(lengths) != 2:
                raise ConfigError(
                    f"expected_lengths: got {lengths!r}, expected pairs of a prompt's and an "
                    "answer's tokens."
                )
            for tokens in lengths:
                _check_int("expected_lengths", tokens, 1)

    def _check_memory(self) -> None:
        if self.device_memory is not None and self.gpu_memory_utilization is not None:
            raise ConfigError(
                "device_memory and gpu_memory_utilization both set the memory budget. "
                "Give one of them."
            )
        for name in ("device_memory", "host_kv_memory"):
            if getattr(self, name) is not None:
                parse_bytes(getattr(self, name), name)
        if self.gpu_memory_utilization is not None and not 0 < self.gpu_memory_utilization <= 1:
            raise ConfigError(
                f"gpu_memory_utilization={self.gpu_memory_utilization}: expected a fraction "
                "above 0, up to 1."
            )

    def _check_layouts(self) -> None:
        given = [
            [name for name in names if getattr(self, name) is not None]
            for names in (_BOTH, _PHASED, _STATIC)
        ]
        named = [name for names in given for name in names]
        found = [names[0] for names in given if names]
        is_chosen = self.layouts == "auto" and named == ["layouts", "data_parallel_size"]
        if len(found) > 1 and not is_chosen:
            raise ConfigError(
                f"{' and '.join(f'{name}={getattr(self, name)!r}' for name in found[:2])} both say "
                "how the model lies over the devices. Give layouts, or prefill_layout and "
                "decode_layout, or data_parallel_size, tensor_parallel_size and "
                "pipeline_parallel_size."
            )
        if is_chosen and self.num_devices is None:
            raise ConfigError(
                f"layouts='auto' with data_parallel_size={self.data_parallel_size}: give "
                "num_devices too, which are shared out to the replicas."
            )
        if self.data_parallel_size and (self.num_devices or 0) % self.data_parallel_size:
            raise ConfigError(
                f"num_devices={self.num_devices} cannot be shared out to "
                f"data_parallel_size={self.data_parallel_size} replicas. Give a multiple."
            )
        if self.reload == "none" and self.reshard_from != "auto":
            raise ConfigError(
                f"reload='none' and reshard_from={self.reshard_from!r}: where nothing is fetched, "
                "it comes from nowhere. Give one of the two."
            )
        layouts = self.given_layouts
        if layouts is None:
            return
        for name, layout in zip(named + named, layouts, strict=False):
            if self.num_devices not in (None, layout.num_ranks):
                raise ConfigError(
                    f"num_devices={self.num_devices}, but layout {layout} ({name}) takes "
                    f"{layout.num_ranks}. Leave num_devices out, or give layouts of that size."
                )
        self.resolve_policy(layouts[0] != layouts[1])
        self.check_transition(*layouts)

    def check_transition(self, prefill: ParallelLayout, decode: ParallelLayout) -> None:
        """Raises ConfigError where there is none and settings say how it is done."""
        for name in ("reload", "reshard_from"):
            if prefill == decode and getattr(self, name) != "auto":
                raise ConfigError(
                    f"{name}={getattr(self, name)!r}: with one layout ({prefill}) no weights "
                    "move. Leave it out, or give prefill_layout and decode_layout."
                )

    @property
    def given_layouts(self) -> tuple[ParallelLayout, ParallelLayout] | None:
        """(prefill, decode) as given, one for both where only one is; None where they are to be
        chosen."""
        if self.layouts is not None:
            return parse_pair(self.layouts)
        tp, pp, dp = self.tensor_parallel_size, self.pipeline_parallel_size, self.data_parallel_size
        if tp or pp or (dp and self.num_devices is None):
            both = ParallelLayout(dp=dp or 1, tp=tp or 1, pp=pp or 1)
            return both, both
        return layouts_of(self.prefill_layout, self.decode_layout)

    @property
    def step_tokens(self) -> int:
        """`max_num_batched_tokens`, or what stands for it where nothing has chosen one."""
        return self.max_num_batched_tokens or STEP_TOKENS

    def resolve_policy(self, two_layouts: bool) -> str:
        """Name of the policy, `auto` resolved. Raises ConfigError where it cannot change layouts.

        A policy of one's own is judged when memory is planned: `plan/memory.py`.
        """
        if self.policy == "auto":
            return auto_policy(two_layouts)
        if self.policy == "continuous" and two_layouts:
            raise ConfigError(
                "policy='continuous' mixes prompts and answers in every step, which needs one "
                f"layout, got {self._given_texts()}. Use policy='seesaw' or 'seesaw-cost', or give "
                "one layout."
            )
        return self.policy

    def _given_texts(self) -> str:
        """What was said of layouts, as it was said."""
        names = (*_BOTH, *_PHASED)
        given = [(name, getattr(self, name)) for name in names if getattr(self, name) is not None]
        return " and ".join(f"{name}={text!r}" for name, text in given) or "two"

    def _check_types(self) -> None:
        for name, kinds, expected in (
            ("model", str, "a directory, a .gguf file or a hub name"),
            ("tokenizer", str | None, "a directory or a hub name"),
            ("revision", str | None, "a branch, tag or commit"),
            ("chat_template", str | None, "the path of a file"),
            ("cpu_cores", str | None, "cores such as 0-3,8"),
            ("gpu_memory_utilization", int | float | None, "a fraction above 0, up to 1"),
            ("layouts", str | None, "auto, a layout such as tp2 or two such as pp2:tp2"),
            ("expected_lengths", Sequence, "pairs of a prompt's and an answer's tokens"),
            ("prefill_layout", str | None, "a layout such as pp2 or dp2-tp2"),
            ("decode_layout", str | None, "a layout such as tp2 or dp2-tp2"),
            ("policy", str, "a built-in name or module.path:Class"),
            ("policy_options", Mapping, "a mapping from option to value"),
        ):
            value = getattr(self, name)
            if not isinstance(value, kinds) or isinstance(value, bool):
                raise ConfigError(f"{name}={value!r}: expected {expected}.")

    def _check_words(self) -> None:
        """Switches, and settings that are one of a few words, by their annotations."""
        for name, hint in _hints().items():
            value = getattr(self, name)
            if hint is bool and not isinstance(value, bool):
                raise ConfigError(f"{name}={value!r}: expected True or False.")
            if get_origin(hint) is Literal and value not in get_args(hint):
                raise ConfigError(f"{name}={value!r}: expected one of {', '.join(get_args(hint))}.")

    @classmethod
    def from_kwargs(cls, **given: Any) -> Self:
        """Like the constructor, but an unknown name raises ConfigError with the nearest one."""
        known = [f.name for f in fields(cls)]
        for name in given:
            if name not in known:
                hint = nearest(name, known)
                if not hint and "policy" in given:
                    hint = f" Options of the policy go into policy_options={{{name!r}: ..}}."
                raise ConfigError(f"unknown argument {name!r}.{hint} Known: {', '.join(known)}.")
        if "model" not in given:
            raise ConfigError("no model given. Pass a model directory, a .gguf file or a hub name.")
        return cls(**given)


def _check_int(name: str, value: object, low: int) -> None:
    if not isinstance(value, int) or isinstance(value, bool) or value < low:
        raise ConfigError(f"{name}={value!r}: expected an integer from {low}.")


@cache
def _hints() -> dict[str, Any]:
    return get_type_hints(EngineConfig)
