#!/usr/bin/env bash
# All there is to run on a machine with an NVIDIA GPU, offline, in under 9 minutes: build, tests, memcheck
# and racecheck where compute-sanitizer is there, benchmarks. Results go to benchmarks/results/.
# Everything runs though a step fails; the exit status tells whether one did.
set -uo pipefail
cd "$(dirname "$0")/.."
python=${PYTHON:-python3}
results=${1:-benchmarks/results}
mkdir -p "$results"
failed=0

# step SECONDS NAME COMMAND...: runs a command for so long at most, and goes on.
step() {
  local limit=$1 name=$2 start=$SECONDS
  shift 2
  printf '\n=== %s\n' "$name"
  timeout "$limit" "$@" || { echo "failed: $name (status $?)"; failed=1; }
  echo "$name: $((SECONDS - start)) s"
}

device=$("$python" -c 'import torch; print(torch.cuda.get_device_name().lower().replace(" ", "-"))') ||
  { echo "no CUDA device" >&2; exit 1; }

step 120 "build" "$python" -m pip install --quiet --no-build-isolation --no-deps -e .
step 10 "what is there" "$python" -m blpseg_ops
tests="tests/ops/test_cuda.py tests/ops/test_losses_cuda.py"
step 120 "tests" "$python" -m pytest --quiet $tests tests/ops/test_modules.py
if command -v compute-sanitizer; then
  for tool in memcheck racecheck; do
    # Triton's own launches and torch's allocator are told apart from our errors by the exit status.
    step 60 "$tool" env PYTORCH_NO_CUDA_MEMORY_CACHING=1 compute-sanitizer --tool "$tool" \
      --error-exitcode 1 --target-processes all \
      "$python" -m pytest --quiet $tests -k "sanitizer or (kinds and float32)"
  done
fi
# In files of their own, so that running out of time costs one only.
measure() { # SECONDS NAME BENCHMARK...
  local limit=$1 json="$results/$device-$2.json"
  step "$limit" "benchmarks: $2" "$python" -m pytest --quiet "${@:3}" \
    --benchmark-only --benchmark-disable-gc --benchmark-json="$json"
  step 10 "tables: $2" bash -c "'$python' -m benchmarks.report_cuda '$json' | tee '${json%.json}.md'"
}
measure 150 lam benchmarks/bench_lam_cuda.py benchmarks/bench_upsample_argmax.py
measure 120 losses benchmarks/bench_losses.py -k "cuda and not (150 and compiled)"
echo "all: $SECONDS s"
exit "$failed"
