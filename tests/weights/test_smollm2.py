"""The real model: against an independent conversion, and how much memory loading takes."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import torch

from seesaw.config import EngineConfig
from seesaw.ops.native import native
from seesaw.weights.checkpoint import open_checkpoint
from tests.weights.unfused import assert_same

pytestmark = pytest.mark.model
CPU = torch.device("cpu")
MIB = 2**20

MEASURE = """
import sys
import torch
from seesaw.config import EngineConfig
from seesaw.layout import PlainFormat
from seesaw.weights.checkpoint import open_checkpoint
from seesaw.weights.image import WeightImage
from tests.process_memory import status_bytes

torch.set_num_threads(1)
torch.empty(1 << 20).copy_(torch.zeros(1 << 20))
checkpoint = open_checkpoint(EngineConfig(model=sys.argv[1]))
checkpoint.tokenizer()
before = status_bytes("VmRSS")
dtype = getattr(torch, sys.argv[2])
if sys.argv[3] == "image":
    image = WeightImage.create(PlainFormat(checkpoint.spec, dtype.itemsize))
    checkpoint.load_image(image, dtype)
    params = {p.name: image.view(p, dtype) for p in image.fmt.params}
else:
    name = "plain" if sys.argv[3] == "params" else "panels"
    params = checkpoint.load_params(dtype, torch.device("cpu"), None, name)
print(before, status_bytes("VmHWM"), sum(p.nbytes for p in set(params.values())))
"""


@pytest.fixture(scope="module")
def converted(smollm2_gguf, tmp_path_factory):
    """The model as transformers de-quantises it, in bfloat16, and its directory."""
    from transformers import AutoModelForCausalLM
    from transformers.utils.quantization_config import GgufConfig

    folder = tmp_path_factory.mktemp("smollm2")
    source, name = smollm2_gguf.parent, smollm2_gguf.name
    model = AutoModelForCausalLM.from_pretrained(
        source,
        gguf_file=name,
        dtype=torch.float32,
        quantization_config=GgufConfig(dequantize=True),
    )
    model.to(torch.bfloat16).save_pretrained(folder)
    # The tokenizer has its own tests; transformers takes long to make one.
    tokenizer = open_checkpoint(EngineConfig(model=str(smollm2_gguf))).tokenizer()
    tokenizer.backend.save(str(folder / "tokenizer.json"))
    return folder, model


def test_gguf_equals_an_independent_conversion(smollm2_gguf, converted):
    folder, model = converted
    ours = open_checkpoint(EngineConfig(model=str(smollm2_gguf)))
    assert_same(ours.spec, ours.load_params(torch.bfloat16, CPU), model)
    theirs = open_checkpoint(EngineConfig(model=str(folder)))
    assert theirs.spec.params == ours.spec.params
    assert theirs.spec.layers == ours.spec.layers
    assert theirs.spec.rms_norm_eps == pytest.approx(ours.spec.rms_norm_eps)
    assert theirs.eos_token_ids == ours.eos_token_ids
    assert_same(theirs.spec, theirs.load_params(torch.bfloat16, CPU), model)


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
@pytest.mark.parametrize(
    ("kind", "dtype", "into"),
    [
        ("gguf", "bfloat16", "params"),
        ("gguf", "float32", "params"),
        ("safetensors", "bfloat16", "params"),
        ("safetensors", "float32", "params"),
        ("gguf", "bfloat16", "image"),
        ("safetensors", "float32", "image"),
        ("gguf", "float32", "panels"),
        ("safetensors", "bfloat16", "panels"),
    ],
)
def test_memory_while_loading(request, smollm2_gguf, kind, dtype, into):
    if into == "panels" and native() is None:
        pytest.skip("panels are for the C++ kernels")
    model: Path = smollm2_gguf
    if kind == "safetensors":
        model = request.getfixturevalue("converted")[0]
    done = subprocess.run(
        [sys.executable, "-c", MEASURE, str(model), dtype, into],
        cwd=Path(__file__).parents[2],
        capture_output=True,
        text=True,
        check=True,
    )
    before, peak, param_bytes = map(int, done.stdout.split())
    assert param_bytes == 134_515_008 * (2 if dtype == "bfloat16" else 4)
    assert peak - before > 0.9 * param_bytes, "the measure itself is broken"
    assert peak - before <= 1.3 * param_bytes + 64 * MIB
    print(f"{kind} {dtype} {into}: {(peak - before) / MIB:.0f} MiB for {param_bytes / MIB:.0f} MiB")
