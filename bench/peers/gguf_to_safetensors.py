"""Turn a GGUF model into plain bf16 safetensors (needs accelerate and gguf).

usage: gguf_to_safetensors.py MODEL.gguf OUT_DIR
"""

import os
import sys

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer
from transformers.utils.quantization_config import GgufConfig

if len(sys.argv) != 3:
    sys.exit(__doc__)
source, out = sys.argv[1:]
folder, name = os.path.split(os.path.abspath(source))
model = AutoModelForCausalLM.from_pretrained(
    folder, gguf_file=name, dtype=torch.float32, quantization_config=GgufConfig(dequantize=True)
)
model.to(torch.bfloat16).save_pretrained(out)
AutoTokenizer.from_pretrained(folder, gguf_file=name).save_pretrained(out)
