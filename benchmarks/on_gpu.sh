#!/usr/bin/env bash
# What needs a GPU, in the order of its worth, in nine minutes: tests of kernels and captured steps,
# the kernels' times, the methods' costs, and what is left of the clock for the launch table, the
# sanitizer and a capture that fails.
#
#   benchmarks/on_gpu.sh OUT [MINUTES] [--only STEP,STEP] [--rehearse]
#
# Every step is a process of its own with a limit, and writes its result as it goes; what a step does
# not need is left to the next, and what there is no time for is named. OUT gets eight files at most;
# a summary is printed last. --rehearse runs all of it on a CPU, with tiny sizes and stand-ins for
# graphs and events (benchmarks/rehearsal.py): its times mean nothing, and what breaks there would
# have cost minutes of a GPU.
#
# Seconds, for an H100 and nothing compiled before:
#   start     15  the first import of torch, and what machine this is
#   tests     75  16 processes that start in 15, then 390 tests, 900 Triton variants x 0.5 / 16 = 30
#   compiled  55  a start of 6; six operations at B 64, V 128256, 1 to 2 each and 4 for torch.compile
#   kernels  110  16 operations x 6 sizes, 84 rows x 0.8 = 70, and 92 Triton variants x 0.4 = 35
#   methods  220  a start and an 8 B model, 20; for each of 7 methods x 2 batches 2 rounds of 64
#                 tokens and one to warm up, host-launched at 25 ms a step 1.6 each for plain generate
#                 and ours, captured at 9 ms 0.8, and 1.5 for the watched runs: 12, with separate
#                 experts 18; 180 in all, and half of it where the host launches a step in 12 ms
#   static    60  a start and a model, 15; transformers compiles 32 layers, 40
#   the rest   5  up to 60 for --tune, 45 for the sanitizer, 40 for the last tests, where steps before
#                 were quicker than this
# GiB: the 8 B base 15.0; two LoRA experts, held as A and B, 2 x 0.1; two 1 B experts 2 x 2.3; caches of 128 KiB a token and row, 56 rows x 100 tokens, 0.7;
# the copies that measure the memory's speed 2, before anything else. One method's parts are there at
# a time, so the most is 15 + 5 + 3 = 23 of an H100's 78.
set -uo pipefail

usage() {
  echo "usage: benchmarks/on_gpu.sh OUT [MINUTES] [--only STEP,STEP] [--rehearse]" >&2
  exit 2
}

steps=(tests compiled kernels methods static tuning sanitizer failures)
minutes=9 only="" rehearse="" out=""
while [ $# -gt 0 ]; do
  case $1 in
    --rehearse) rehearse=yes ;;
    --only) only=${2:?--only needs the names of steps}; shift ;;
    -*) usage ;;
    *) if [ -z "$out" ]; then out=$1
       elif [[ $1 =~ ^[1-9][0-9]*$ ]]; then minutes=$1
       else echo "MINUTES must be a whole number above 0, got $1" >&2; usage; fi ;;
  esac
  shift
done
[ -n "$out" ] || usage
for name in ${only//,/ }; do
  [[ " ${steps[*]} " == *" $name "* ]] || {
    echo "unknown step $name; known are ${steps[*]}" >&2
    exit 2
  }
done

SECONDS=0
out=$(realpath -m "$out")
cd "$(dirname "$0")/.." || exit
mkdir -p "$out"
work=$(mktemp -d)
trap 'rm -rf "$work" "$out"/*.part' EXIT
export PYTHONPATH=$PWD HF_HUB_OFFLINE=1 TOKENIZERS_PARALLELISM=false PYTHONUNBUFFERED=1
cores=$(env -u OMP_NUM_THREADS nproc) # which would make it one
export OMP_NUM_THREADS=1 COLUMNS=140
PY=${PYTHON:-python3}
python=("$PY")
total=$((minutes * 60 - 10)) # the summary wants a few seconds
unset TRITON_INTERPRET
# Behind the real sizes stand those of a rehearsal, and the last one given counts.
kernels=(--device cuda) methods=() shapes=() narrow=()
sanitizer=(compute-sanitizer --error-exitcode 9)
if [ -n "$rehearse" ]; then
  export TRITON_INTERPRET=1
  python+=(benchmarks/rehearsal.py)
  kernels=(--device cpu --backend triton --batch 1 --vocab 100 --rounds 1 --tried 1,8 --budget 1000)
  methods=(--batch 2 --new-tokens 8 --rounds 1) shapes=(--tiny)
  narrow=(-k "bf16-B2-V64 or nothing") cores=1
  sanitizer=(env)
fi

# step NAME SECONDS COMMAND...: runs a command within its own limit, what is left of those before it,
# and the clock.
step() {
  local name=$1 from=$SECONDS limit code=skipped begun
  planned=$((planned + $2 * (minutes > 9 ? minutes : 9) / 9))
  limit=$(((planned < total ? planned : total) - from))
  shift 2
  printf '\n== %s, limit %s s: %s\n' "$name" "$limit" "$*" >>"$out/run.log"
  begun=$(stat -c %s "$out/run.log")
  if [ "$limit" -ge 12 ]; then
    timeout -k 5 "$limit" "$@" >>"$out/run.log" 2>&1
    code=$?
  fi
  rm -f "$out"/*.part
  printf '%s\t%s\t%s\t%s\n' "$name" "$code" $((SECONDS - from)) "$limit" >>"$out/steps.tsv"
  echo "$name: $code after $((SECONDS - from)) s"
  case $code in 0 | skipped) ;; *) tail -c +$((begun + 1)) "$out/run.log" | tail -n 8 | cut -c 1-200 ;; esac
}

wanted() { [[ -z $only || ",$only," == *",$1,"* ]]; }

# Plugins that happen to be there, and what they and libraries warn of, are not what is tested.
tested() {
  local name=$1 seconds=$2
  shift 2
  step "$name" "$seconds" env PYTEST_DISABLE_PLUGIN_AUTOLOAD=1 PYTHONPATH="$PWD:$PWD/benchmarks" \
    "$PY" -m pytest -p gpu_tests --results "$out/tests.jsonl" -q -p no:cacheprovider --tb=short \
    -W default -W "error:no CUDA graph of a step:RuntimeWarning" "$@"
}

rm -f "$out"/{run.log,steps.tsv,tests.jsonl,compiled.json,kernels.json,methods.json,static.json,tuning.json}
{
  nvidia-smi --query-gpu=name,driver_version,memory.total,clocks.max.sm --format=csv,noheader
  "$PY" -c 'import sys; sys.path.insert(0, "benchmarks")
import torch
from kernel_report import machine
print(machine(torch.device("cuda" if torch.cuda.is_available() else "cpu")))'
} 2>&1 | tee "$out/run.log"
planned=$SECONDS

if wanted tests; then
  spread=()
  "$PY" -c 'import xdist' 2>>"$out/run.log" &&
    spread=(-p xdist.plugin -n "$cores" --dist worksteal)
  tested tests 75 "${spread[@]}" tests/kernels/test_on_device.py \
    tests/engine/acceleration/captured/test_captured_triton.py "${narrow[@]}"
fi
timing=("${python[@]}" benchmarks/bench_kernels.py)
wanted compiled && step compiled 55 "${timing[@]}" --out "$out/compiled.json" --compile \
  --only dexperts_top_p,dexperts,top_p,plain,self_debias_2,fudge --batch 64 --vocab 128256 \
  --rounds 15 --budget 45 "${kernels[@]}"
wanted kernels && step kernels 110 "${timing[@]}" --out "$out/kernels.json" --no-compile \
  --batch 64,8,1 --vocab 128256,50257 --rounds 15 --budget 95 "${kernels[@]}"

bench=("${python[@]}" -m plugalign bench --model "$work/base" --random-weights
  --expert-config "$work/expert" --new-tokens 64 --rounds 2 --no-compile)
if wanted methods || wanted static; then
  "$PY" benchmarks/gpu_shapes.py "$work" "${shapes[@]}" >>"$out/run.log" 2>&1
fi
wanted methods && step methods 220 "${bench[@]}" --out "$out/methods.json" --capture on,off --batch 1,8 \
  --methods none,dexperts_lora,self_debias_2,nullspace,fudge_head,self_debias,dexperts "${methods[@]}"
wanted static && step static 60 "${bench[@]}" --out "$out/static.json" --capture on --batch 1 \
  --methods plain_static "${methods[@]}"

wanted tuning && step tuning 60 "${timing[@]}" --out "$out/tuning.json" --tune --batch 64 \
  --vocab 128256 --rounds 15 "${kernels[@]}"
if wanted sanitizer; then
  PATH=$PATH:/usr/local/cuda/bin
  if command -v "${sanitizer[0]}" >>"$out/run.log"; then
    # Without torch's own allocator, so that what lies behind a tensor is no tensor's.
    step sanitizer 45 env PYTORCH_NO_CUDA_MEMORY_CACHING=1 "${sanitizer[@]}" "${timing[@]}" --check \
      --out "$work/sanitizer.json" --batch 3 --vocab 1000 "${kernels[@]}"
  else
    printf 'sanitizer\tmissing\t0\t0\n' >>"$out/steps.tsv"
  fi
fi
# Last, since nobody knows in which state a capture that fails leaves a device.
wanted failures && tested failures 40 tests/engine/acceleration/captured/test_failed_capture.py

[ -z "$rehearse" ] || echo "a rehearsal: no time below means anything"
"$PY" benchmarks/gpu_summary.py "$out" | tee -a "$out/run.log"
exit "${PIPESTATUS[0]}"
