#!/usr/bin/env bash
# Tests and measures the GPU kernels on a machine with an NVIDIA GPU. No network is needed.
#
#   benchmarks/gpu_suite.sh RESULTS ours    versions, build, tests, compute-sanitizer, our benchmarks
#   benchmarks/gpu_suite.sh RESULTS peers   the peers' benchmarks, after "ours"
#   benchmarks/gpu_suite.sh RESULTS queries   lam with queries and its peers, after "ours"
#
# RESULTS is a folder (default: benchmarks/results). Each part ends within 9 minutes: that is the sum
# of its steps' limits. Estimates on an H100 with 16 cores: 6 min each.
# A failed step does not stop the later ones, but for the build; the exit status is 1 if any failed.
# All output goes to RESULTS/log-PART.txt too. BUILD=0 uses the libraries that are there already.
set -uo pipefail
cd "$(dirname "$0")/.." || exit
python=${PYTHON:-python3}
results=${1:-benchmarks/results}
part=${2:-ours}
case $part in ours | peers | queries) ;; *) echo "usage: $0 [RESULTS] [ours|peers|queries]" >&2; exit 2 ;; esac
mkdir -p "$results"
log=$results/log-$part.txt
: >"$log"
summary=()
failed=0

# say LINE...: prints and logs lines.
say() { printf '%s\n' "$@" | tee -a "$log"; }

# step SECONDS NAME COMMAND...: runs a command for at most that long, and logs what it prints.
# SIGINT first, on which pytest still prints its failures; SIGKILL 10 s later.
step() {
  local limit=$1 name=$2 start=$SECONDS status
  shift 2
  say "" "=== $name (at most $limit s)"
  # Not a pipe: it would wait for processes that outlive the command and hold its output open.
  timeout --signal=INT --kill-after=10 "$limit" "$@" > >(tee -a "$log") 2>&1
  status=$?
  sleep 0.2 # tee prints the rest
  case $status in 124 | 137) outcome="out of time" ;; 0) outcome=ok ;; *) outcome="failed ($status)" ;; esac
  summary+=("$(printf '%-28s %-12s %4d s of %d' "$name" "$outcome" "$((SECONDS - start))" "$limit")")
  if ((status)); then failed=1; fi
  return "$status"
}

# finish: prints the failed tests and one line per step last, where a short reply still shows them.
finish() {
  say "" "=== summary"
  grep -hE '^(FAILED|ERROR) ' "$log" | sort -u | head -n 60
  say "${summary[@]}" "$part: $SECONDS s, log: $log"
  exit "$failed"
}

# The functions below run in a shell of their own, so that `timeout` can end them.
# shellcheck disable=SC2329
versions() {
  "$python" - <<'END'
import importlib.metadata as metadata, subprocess, sys, torch
print("python", sys.version.split()[0], "| torch", torch.__version__, "| CUDA", torch.version.cuda)
for name, needs in (
    ("triton", "3.6 or newer"),
    ("setuptools", "77 or newer; below 82 for torch 2.11"),
    ("cmake", "3.25 or newer, unless cmake is on the PATH"),
    ("ninja", "any, unless ninja is on the PATH"),
    ("pybind11", "2.13 or newer"),
    ("numpy", "any"),
    ("pytest", "8 or newer"),
    ("pytest-benchmark", "4 or newer"),
    ("pytest-xdist", "optional"),
):
    try:
        found = metadata.version(name)
    except metadata.PackageNotFoundError:
        found = "missing"
    print(f"{name} {found} (needs: {needs})")
try:
    print(subprocess.run(["nvcc", "--version"], capture_output=True, text=True).stdout.split("\n")[-3])
except (OSError, IndexError):
    print("nvcc: not on the PATH")
print("GPU:", torch.cuda.get_device_name(), torch.cuda.get_device_properties(0))
END
}

# shellcheck disable=SC2329
build() {
  BLPSEG_NATIVE=1 "$python" -m pip install --quiet --no-build-isolation --no-deps -e .
}

# has_kernels: whether both native libraries and Triton's kernels are in use.
# shellcheck disable=SC2329
has_kernels() {
  "$python" -m blpseg_ops
  if [[ ! -s blpseg_ops/libblpseg_cuda.so ]]; then
    echo "error: blpseg_ops/libblpseg_cuda.so is missing; without it the tests would test the reference"
    return 1
  fi
  "$python" -c '
from blpseg_ops import _native
problems = {"CUDA": _native.CUDA_PROBLEM, "Triton": _native.TRITON_PROBLEM}
for name, problem in problems.items():
    if problem:
        print(f"error: {name} kernels are not in use: {problem}")
raise SystemExit(any(problems.values()))'
}
export -f versions build has_kernels
export python

# measure SECONDS NAME PYTEST-ARGUMENTS...: benchmarks into $results/$device-NAME.json, and tables.
# BENCH_SECONDS ends the run in time for the file: pytest-benchmark writes it last.
measure() {
  local limit=$1 json=$results/$device-$2.json
  step "$limit" "benchmarks: $2" env BENCH_SECONDS=$((limit - 20)) "$python" -m pytest -q "${@:3}" \
    --benchmark-only --benchmark-disable-gc --benchmark-columns=median --benchmark-json="$json"
  if [[ -s $json ]]; then
    "$python" -m benchmarks.report_cuda "$json" >"${json%.json}.md" && say "tables: ${json%.json}.md"
  fi
}

device=$("$python" -c 'import torch; print(torch.cuda.get_device_name().lower().replace(" ", "-"))') ||
  { say "error: torch finds no CUDA device"; exit 1; }

if [[ $part == peers ]]; then
  step 20 "kernels in use" bash -c has_kernels || finish
  measure 360 lam-peers benchmarks/bench_lam_cuda_peers.py benchmarks/bench_upsample_argmax.py
  measure 150 losses-peers benchmarks/bench_losses.py -k "cuda and not blpseg_ops and not (150 and compiled)"
  finish
fi

if [[ $part == queries ]]; then
  step 20 "kernels in use" bash -c has_kernels || finish
  measure 120 two-grids benchmarks/bench_two_grids_cuda.py -k blpseg_ops
  measure 390 two-grids-peers benchmarks/bench_two_grids_cuda.py -k "not blpseg_ops"
  finish
fi

step 20 "versions" bash -c versions
if [[ ${BUILD:-1} != 0 ]]; then step 100 "build" bash -c build || finish; fi
step 15 "kernels in use" bash -c has_kernels || finish
workers=()
if "$python" -c 'import xdist' 2>/dev/null; then workers=(-n 4); fi
tests=(tests/ops/test_cuda.py tests/ops/test_losses_cuda.py)
step 170 "tests" "$python" -m pytest -q "${workers[@]}" "${tests[@]}" tests/ops/test_modules.py
measure 75 lam benchmarks/bench_lam_cuda.py
measure 60 losses benchmarks/bench_losses.py -k "cuda and blpseg_ops"
if command -v compute-sanitizer >/dev/null; then
  # Drivers report errors for calls that torch and Triton only try: --report-api-errors no.
  # racecheck sees shared memory: the loss kernels' is written by hand.
  for run in "memcheck ${tests[*]}" "racecheck tests/ops/test_losses_cuda.py"; do
    read -r tool files <<<"$run"
    # shellcheck disable=SC2086  # several files
    step 40 "$tool" env PYTORCH_NO_CUDA_MEMORY_CACHING=1 compute-sanitizer --tool "$tool" \
      --report-api-errors no --error-exitcode 1 --target-processes all \
      "$python" -m pytest -q $files -k "sanitizer or (kinds and float32)"
  done
else
  say "compute-sanitizer is not installed: memcheck and racecheck are left out"
fi
finish
