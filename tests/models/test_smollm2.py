"""Logits of the real model over real text, against transformers with its own conversion."""

from __future__ import annotations

import random
from pathlib import Path

import pytest
import torch

from seesaw.config import EngineConfig
from seesaw.models.decoder import Decoder
from seesaw.weights.checkpoint import open_checkpoint
from tests.models.harness import Rows

pytestmark = pytest.mark.model
CPU = torch.device("cpu")
TEXTS = [doc for obj in vars(random.Random).values() if len(doc := obj.__doc__ or "") > 150]


def rms(values: torch.Tensor) -> float:
    return float(values.square().mean().sqrt())


def test_logits_over_real_text(smollm2_gguf: Path) -> None:
    """float32: every logit within 2e-3 (they span about 40). bfloat16 (same file, rounded weights):
    root mean square of the error at most 1.5 times that of transformers in bfloat16, and at most
    3% of that of the logits."""
    from transformers import AutoModelForCausalLM

    checkpoint = open_checkpoint(EngineConfig(model=str(smollm2_gguf)))
    tokenizer = checkpoint.tokenizer()
    tokens = [torch.tensor(tokenizer.encode(text)[:120]) for text in TEXTS[:6]]
    assert sum(map(len, tokens)) > 300
    lengths = [len(ids) for ids in tokens]

    def ours(dtype: torch.dtype) -> torch.Tensor:
        params = checkpoint.load_params(dtype, CPU)
        rows = Rows(Decoder(checkpoint.spec, params), tokens, block_size=32)
        first = rows.step([length // 2 for length in lengths])
        second = rows.step([length - length // 2 for length in lengths])
        return torch.cat([part for pair in zip(first, second, strict=True) for part in pair])

    model = AutoModelForCausalLM.from_pretrained(
        smollm2_gguf.parent, gguf_file=smollm2_gguf.name, dtype=torch.float32
    ).eval()

    def theirs() -> torch.Tensor:
        with torch.inference_mode():
            return torch.cat([model(input_ids=ids[None]).logits[0].float() for ids in tokens])

    exact = theirs()
    torch.testing.assert_close(ours(torch.float32), exact, atol=2e-3, rtol=0)
    rounded = ours(torch.bfloat16)
    model.to(torch.bfloat16)
    limit = min(1.5 * rms(theirs() - exact), 0.03 * rms(exact))
    assert rms(rounded - exact) < limit
