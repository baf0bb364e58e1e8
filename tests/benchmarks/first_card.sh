#!/bin/bash
# The first minutes on a card, unattended, at most nine: the most valuable part first, each with a time limit of its own,
# every line written as it comes. A part that fails or runs out of time does not stop the next.
#
#   bash tests/benchmarks/first_card.sh [FOLDER]          results in FOLDER/first_card.txt
#
# Where there is no card, or with DRY=1, it tries itself on a CPU, on tiny sizes.
set -u
cd "$(dirname "$0")/../.."
folder=${1:-.}
mkdir -p "$folder"
out=$folder/first_card.txt
export PYTHONPATH=. TRANSMAMBA_CHECK=0
: > "$out"
failed=0

part() {  # seconds, title, command
  local limit=$1 title=$2 start=$SECONDS
  shift 2
  echo "=== $title (at most $limit s)" | tee -a "$out"
  timeout "$limit" "$@" 2>&1 | tee -a "$out"
  local code=${PIPESTATUS[0]}
  [ "$code" -eq 0 ] || failed=$((failed + 1))
  echo "--- ended with $code after $((SECONDS - start)) s" | tee -a "$out"
}

if [ -z "${DRY:-}" ] && ! python -c "import sys, torch; sys.exit(not torch.cuda.is_available())"; then
  echo "no CUDA device here: a dry run on a CPU" | tee -a "$out"
  DRY=1
fi
if [ -n "${DRY:-}" ]; then
  bench="--device cpu --tiny --repeat 1 --shapes vim vmamba" step="--device cpu --repeat 1 --batch 2" scope="-k token" wide="--dim 16 --batch 1"
  tests="tests/ops/scan/nvrtc/test_emulated.py"
else
  bench="--repeat 10" step="--device cuda --repeat 50" scope="-m gpu" wide="--dim 384 --batch 64"
  tests="tests/ops/scan/nvrtc/test_gpu.py tests/ops/scan/triton/test_triton.py"
fi

part 60 "doctor" python -m transmamba.doctor
part 140 "tests" python -m pytest -q -p no:cacheprovider $scope $tests
part 110 "scans, with peak memory" python tests/benchmarks/bench_gpu.py $bench
part 40 "distillation step of notebook 02" python -m tests.benchmarks.bench_step $step
part 40 "distillation step, wider" python -m tests.benchmarks.bench_step $step $wide
for tool in racecheck memcheck; do
  if command -v compute-sanitizer > /dev/null && [ -z "${DRY:-}" ]; then
    part 50 "compute-sanitizer, $tool" compute-sanitizer --tool $tool python -m pytest -q -p no:cacheprovider -m gpu \
      tests/ops/scan/nvrtc/test_gpu.py -k "token or one_state"
  else
    echo "=== compute-sanitizer, $tool: not here" | tee -a "$out"
  fi
done
if command -v ncu > /dev/null && [ -z "${DRY:-}" ]; then
  part 50 "ncu" ncu --set basic --kernel-name regex:scan_ --launch-count 8 \
    python tests/benchmarks/bench_gpu.py --repeat 1 --shapes vim
else
  echo "=== ncu: not here" | tee -a "$out"
fi
echo "$failed parts failed" | tee -a "$out"
[ "$failed" -eq 0 ]
