"""The real model over real text: logits against transformers with its own conversion, and how
surprised it is in bfloat16 and in float32.
"""

from __future__ import annotations

import importlib
import random
from pathlib import Path

import pytest
import torch

from seesaw.config import EngineConfig
from seesaw.models.cpu_decoder import CpuDecoder
from seesaw.models.decoder import Decoder
from seesaw.ops.native import native
from seesaw.weights.checkpoint import Checkpoint, open_checkpoint
from tests.models.harness import Rows

pytestmark = pytest.mark.model
CPU = torch.device("cpu")
TEXTS = [doc for obj in vars(random.Random).values() if len(doc := obj.__doc__ or "") > 150]
# Prose rather than code, in all versions of Python.
MODULES = ("argparse", "bdb", "difflib", "email.message", "fractions", "heapq", "json", "locale",
           "logging", "optparse", "pickletools", "random", "shelve", "socket", "statistics",
           "string", "tarfile", "textwrap", "threading", "turtle", "zipfile")  # fmt: skip
needs_kernels = pytest.mark.skipif(native() is None, reason="seesaw._cpu is not built")
DECODERS = ["plain", pytest.param("kernels", marks=needs_kernels)]


def rms(values: torch.Tensor) -> float:
    return float(values.square().mean().sqrt())


def load(checkpoint: Checkpoint, kind: str, dtype: torch.dtype) -> Decoder | CpuDecoder:
    if kind == "plain":
        return Decoder(checkpoint.spec, checkpoint.load_params(dtype, CPU))
    return CpuDecoder(checkpoint.spec, checkpoint.load_params(dtype, CPU, format_name="panels"))


@pytest.mark.parametrize("kind", DECODERS)
def test_logits_over_real_text(smollm2_gguf: Path, kind: str) -> None:
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
        rows = Rows(load(checkpoint, kind, dtype), tokens, 32, panels=kind == "kernels")
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


@needs_kernels
def test_perplexity_in_bfloat16_is_that_of_float32(smollm2_gguf: Path) -> None:
    """Teacher-forced, within 0.5%: exp of the mean negative log-likelihood of each next token."""
    checkpoint = open_checkpoint(EngineConfig(model=str(smollm2_gguf)))
    tokenizer = checkpoint.tokenizer()
    docs = [importlib.import_module(name).__doc__ or "" for name in MODULES]
    tokens = [torch.tensor(tokenizer.encode(doc)[:300]) for doc in docs]
    tokens = [ids for ids in tokens if len(ids) > 30]
    assert sum(map(len, tokens)) > 2000

    def perplexity(dtype: torch.dtype) -> float:
        losses, decoder = [], load(checkpoint, "kernels", dtype)
        for start in range(0, len(tokens), 4):  # logits of all at once would be large
            some = tokens[start : start + 4]
            rows = Rows(decoder, some, 32, panels=True)
            for ids, logits in zip(some, rows.step([len(ids) for ids in some]), strict=True):
                loss = torch.nn.functional.cross_entropy(logits[:-1], ids[1:], reduction="none")
                losses.append(loss.double())
        return float(torch.cat(losses).mean().exp())

    exact, rounded = perplexity(torch.float32), perplexity(torch.bfloat16)
    print(f"perplexity {exact:.4f} in float32, {rounded:.4f} in bfloat16")
    assert 1 < exact < 100
    assert rounded == pytest.approx(exact, rel=0.005)
