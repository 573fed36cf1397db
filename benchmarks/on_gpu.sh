#!/usr/bin/env bash
# What needs a GPU: the kernels' and captured steps' tests, the kernels' times, the methods' costs.
#   benchmarks/on_gpu.sh OUT [tests] [kernels] [methods]    (all three, in this order, by default)
# The methods run on random weights of an 8 B Llama's shape in bfloat16, 130 GB of memory in all:
# METHODS=none,nullspace takes fewer, COMPILE=--compile compiles the models too: minutes for each.
set -euo pipefail
cd "$(dirname "$0")/.."
out=$(realpath -m "${1:?usage: benchmarks/on_gpu.sh OUT [tests] [kernels] [methods]}")
shift
mkdir -p "$out"
export PYTHONPATH=$PWD HF_HUB_OFFLINE=1 TOKENIZERS_PARALLELISM=false
unset TRITON_INTERPRET
nvidia-smi --query-gpu=name,driver_version,clocks.max.sm,clocks.max.mem --format=csv | tee "$out/gpu.csv"

# A Llama 3.1 8 B without weights. Its tokenizer only has to read the prompts of self-debiasing.
shape() {
  python - "$1" <<'PYTHON'
import sys
from transformers import LlamaConfig
from plugalign import pocket

pocket.load()[1].save_pretrained(sys.argv[1])
LlamaConfig(
    vocab_size=128256, hidden_size=4096, intermediate_size=14336, num_hidden_layers=32,
    num_attention_heads=32, num_key_value_heads=8, max_position_embeddings=8192, pad_token_id=0,
    dtype="bfloat16", tie_word_embeddings=False,
).save_pretrained(sys.argv[1])
PYTHON
}

failed=0
[ $# -gt 0 ] || set -- tests kernels methods
for part in "$@"; do
  case $part in tests | kernels | methods) ;;
    *) echo "unknown part $part; known are tests, kernels and methods" >&2; exit 2 ;;
  esac
done
for part in "$@"; do
  case $part in
    tests) python -m pytest -q tests/kernels tests/captured --ignore tests/kernels/test_interpreted.py \
      --ignore tests/kernels/test_compile.py | tee "$out/tests.log" || failed=1 ;;
    kernels) python benchmarks/bench_kernels.py --device cuda --tune --out "$out/tuning.json" || failed=1
      python benchmarks/bench_kernels.py --device cuda --out "$out/kernels.json" || failed=1 ;;
    methods) shape "$out/llama-8b"
      python -c 'from plugalign.cli import main; main()' bench --model "$out/llama-8b" --random-weights --batch 1,8 --new-tokens 64 --rounds 5 \
        --cache static "${COMPILE:---no-compile}" ${METHODS:+--methods "$METHODS"} --out "$out/methods.json" || failed=1 ;;
  esac
done
exit $failed
