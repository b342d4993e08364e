"""The memory plan: exact parts, and refusals with numbers before anything is read."""

from __future__ import annotations

import pytest
import torch

from seesaw.config import EngineConfig
from seesaw.engine.host import host_memory
from seesaw.engine.memory import plan_memory
from seesaw.errors import ConfigError
from seesaw.families.spec import LayerSpec, ModelSpec, ParamSpec, RopeSpec

MIB = 2**20


def spec(**changes) -> ModelSpec:
    fields = {
        "family": "llama",
        "architecture": "LlamaForCausalLM",
        "hidden_size": 64,
        "intermediate_size": 128,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": 16,
        "vocab_size": 1024,
        "max_position_embeddings": 4096,
        "rms_norm_eps": 1e-6,
        "tie_word_embeddings": True,
        "torch_dtype": "bfloat16",
        "layers": (LayerSpec(None, RopeSpec(10000.0)),) * 2,
        "params": (ParamSpec("model.embed_tokens.weight", (1024, 512), None),),
    }
    return ModelSpec(**(fields | changes))


def plan(work=0, **settings):
    config = EngineConfig(model="m", **settings)
    return plan_memory(
        config, spec(), torch.bfloat16, torch.device("cpu"), lambda tokens, length: work
    )


def test_parts_fill_the_budget_and_never_exceed_it():
    made = plan(work=3 * MIB, device_memory="8MiB", max_model_len=512)
    assert made.weight_bytes == MIB
    assert made.block_bytes == 2 * 2 * 2 * 16 * 32 * 2  # layers, k and v, heads, dim, block, bf16
    total = made.weight_bytes + made.work_bytes + made.kv_bytes
    assert made.budget_bytes - made.block_bytes < total <= made.budget_bytes


def test_no_more_blocks_than_requests_can_fill():
    made = plan(device_memory="1GiB", max_model_len=64, max_num_seqs=3)
    assert made.num_blocks == 3 * 2


def test_model_length_shrinks_to_what_fits_and_says_so():
    made = plan(device_memory="1.5MiB")
    assert made.max_model_len == made.num_blocks * 32 < 4096
    assert "as much as the KV memory holds" in made.describe()
    assert plan(device_memory="1GiB").max_model_len == 4096


def test_too_small_a_budget_is_refused_with_the_bytes_of_each_part():
    with pytest.raises(ConfigError) as error:
        plan(work=MIB, device_memory="2MiB", max_model_len=4096)
    for words in ("2.00 MiB", "weights 1.00 MiB", "work space 1.00 MiB", "4096 tokens", "Raise"):
        assert words in str(error.value)


def test_a_length_asked_for_must_fit_whole():
    assert plan(device_memory="1.5MiB").max_model_len < 4096
    with pytest.raises(ConfigError, match="too small"):
        plan(device_memory="1.5MiB", max_model_len=4096)


def test_positions_end_where_the_model_says():
    with pytest.raises(ConfigError, match=r"max_model_len=8192.*4096"):
        plan(max_model_len=8192)


def test_more_than_is_free_is_refused():
    with pytest.raises(ConfigError, match="are free"):
        plan(device_memory="4096TiB")
    assert plan(gpu_memory_utilization=0.01).budget_bytes <= host_memory()[1] * 0.01


def test_two_budgets_are_refused():
    with pytest.raises(ConfigError, match="both set the memory budget"):
        plan(device_memory="1GiB", gpu_memory_utilization=0.5)
