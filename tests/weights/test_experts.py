"""Models with experts are planned, not run: said before weights or tokenizer are read."""

from __future__ import annotations

import json

import pytest

from seesaw.config import EngineConfig
from seesaw.errors import ModelError
from seesaw.weights.checkpoint import open_checkpoint
from tests.checkpoints import make_checkpoint
from tests.families.sparse import SPARSE


@pytest.mark.parametrize("family", SPARSE)
def test_a_model_with_experts_is_refused_where_it_would_be_loaded(family, tmp_path):
    make_checkpoint(tmp_path, "llama")
    (tmp_path / "config.json").write_text(json.dumps(SPARSE[family]))
    with pytest.raises(ModelError) as caught:
        open_checkpoint(EngineConfig(model=str(tmp_path)))
    for part in (str(tmp_path / "config.json"), SPARSE[family]["architectures"][0], "experts",
                 "seesaw plan"):  # fmt: skip
        assert part in str(caught.value)


def test_a_config_whose_layers_are_all_plain_is_not(tmp_path):
    """It is complete but for its tensors, which are those of another model."""
    make_checkpoint(tmp_path, "llama")
    config = SPARSE["qwen3_moe"] | {"mlp_only_layers": list(range(5))}
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(ModelError, match="missing"):
        open_checkpoint(EngineConfig(model=str(tmp_path)))
