#!/usr/bin/env bash
# Tests and benchmarks on a GPU, in one command and within LIMIT seconds, without a network.
#
#   benchmarks/gpu.sh short              # first: do the kernels work, and how fast are the targets?
#   benchmarks/gpu.sh                    # every step: build tests models sanitize bench
#   benchmarks/gpu.sh tests              # some of them, with all of the time
#   OUT=folder WHEELS=folder benchmarks/gpu.sh
#
# build     the extensions, in place, for the GPU at hand
# tests     the tests of all kernels, in all dtypes
# models    prefill of models of the shapes of LLaVA-1.5-7B and Qwen2.5-VL-7B, with random weights
# sanitize  compute-sanitizer's memcheck, racecheck and synccheck
# bench     the benchmarks of the ops
# short     build, the contract tests of every op in bfloat16 alone, and the targets' benchmarks
#
# OUT     where everything is written, flat (default: benchmarks/results/gpu-run): gpu-run.log, which
#         holds the output of every step, ops.json, tables, and a JSON file of each model
# WHEELS  a folder of wheels to use on top of what is installed, flash_colreduce-*.whl say; of
#         torch_cluster-*.tar.gz in it the baseline is built that bench has of it, if bench has 4 minutes
# PYTHON  the Python that has torch (default: python3)
# LIMIT   seconds for all steps together (default: 520, and 285 for short alone)
# COMMIT  what was measured, where there is no git repository to ask
#
# A step that fails does not stop the others. Each step gets a share of the time that is left, so
# that it cannot take the time of later steps. The exit status is 1 if any step failed, 2 if none could run.
set -uo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.." || exit 2

PYTHON=${PYTHON:-python3}
OUT=${OUT:-benchmarks/results/gpu-run}
WHEELS=${WHEELS:-}
FOR_THE_SUMMARY=15 # seconds kept
BUILD_SECONDS=120

stop() {
    echo "gpu.sh: $1" >&2
    exit 2
}

steps=("$@")
[ ${#steps[@]} -gt 0 ] || steps=(build tests models sanitize bench)
# The parts of these steps, in the order in which they run.
parts=()
for name in "${steps[@]}"; do
    case $name in
        build | tests | bench) parts+=("$name") ;;
        models) parts+=(llava qwen) ;;
        sanitize) parts+=(memcheck racecheck synccheck) ;;
        short) parts+=(build contract targets) ;;
        *) stop "there is no step $name; the steps are build, tests, models, sanitize, bench and short" ;;
    esac
done
# The share of a part, of the time that is left to it and all parts after it.
declare -A shares=([tests]=9 [llava]=4 [qwen]=4 [memcheck]=2 [racecheck]=2 [synccheck]=1 [bench]=5
    [contract]=5 [targets]=4 [build]=0)
if [ "${steps[*]}" = short ]; then LIMIT=${LIMIT:-285}; else LIMIT=${LIMIT:-520}; fi
[[ $LIMIT =~ ^[0-9]+$ ]] || stop "LIMIT must be a number of seconds, got $LIMIT"
command -v "$PYTHON" >/dev/null || stop "there is no $PYTHON; PYTHON= names the one that has torch"
"$PYTHON" -c 'import torch' 2>/dev/null || stop "$PYTHON has no torch; PYTHON= names the one that has"
"$PYTHON" -c 'import sys, torch; sys.exit(not torch.cuda.is_available())' ||
    stop "torch sees no GPU here, so there is nothing to run"

mkdir -p "$OUT" || exit 2
OUT=$(cd "$OUT" && pwd)
log=$OUT/gpu-run.log
: >"$log" || exit 2
site=$(mktemp -d) || exit 2
trap 'rm -rf "$site"' EXIT
export PYTHONPATH=$site:$PWD${PYTHONPATH:+:$PYTHONPATH}
export PYTHONUNBUFFERED=1
export HF_HUB_OFFLINE=1 # the models have random weights
COMMIT=${COMMIT:-$(git rev-parse HEAD 2>/dev/null || echo unknown)}
export COMMIT

summary=()
failed=0

say() { echo "$*" | tee -a "$log"; }

# step NAME SECONDS COMMAND...: its output goes to the log, its end to the terminal too.
step() {
    local name=$1 allowed=$2 left begin=$SECONDS status line
    left=$(seconds_left)
    shift 2
    [ "$allowed" -le "$left" ] || allowed=$left
    say "=== $name: $*"
    if [ "$allowed" -lt 5 ]; then
        summary+=("$(printf '%-12s not run, as the time was up' "$name")")
        failed=1
        return
    fi
    line=$(wc -l <"$log")
    # An interrupt, as pytest then still says what failed so far.
    timeout --signal=INT --kill-after=10 "$allowed" "$@" >>"$log" 2>&1 </dev/null
    status=$?
    tail -n +$((line + 1)) "$log" | tail -n 20
    case $status in
        0) ;;
        124 | 137) status="$status, out of time" ;;
    esac
    [ "$status" = 0 ] || failed=1
    summary+=("$(printf '%-12s exit status %-18s %4d of %4d s' \
        "$name" "$status" $((SECONDS - begin)) "$allowed")")
}

seconds_left() { echo $((LIMIT - FOR_THE_SUMMARY - SECONDS)); }

say "gpu.sh ${steps[*]}: commit $COMMIT, $("$PYTHON" --version), $(date -u +%FT%TZ)"
{
    nvidia-smi || true
    "$PYTHON" -c 'import torch; print("torch", torch.__version__, torch.cuda.get_device_name())'
} >>"$log" 2>&1

if [ -n "$WHEELS" ] && compgen -G "$WHEELS/*.whl" >/dev/null; then
    step wheels 60 "$PYTHON" -m pip install --quiet --no-index --no-deps --no-compile \
        --target "$site" "$WHEELS"/*.whl
fi
missing=$("$PYTHON" -c 'import importlib.util, sys
print(*(name for name in sys.argv[1:] if importlib.util.find_spec(name) is None))' \
    setuptools ninja triton numpy pytest hypothesis rich transformers)
[ -z "$missing" ] || summary+=("not installed, so what needs it fails: $missing")

# run_PART SECONDS: a part of the steps, within so many seconds.
run_build() {
    # In place and found by PYTHONPATH: the environment stays as it is. For the GPU at hand alone,
    # which takes a third of the time.
    TORCH_CUDA_ARCH_LIST=${TORCH_CUDA_ARCH_LIST:-$("$PYTHON" -c \
        'import torch; print("%d.%d" % torch.cuda.get_device_capability())')}
    export TORCH_CUDA_ARCH_LIST
    step build "$BUILD_SECONDS" env CLASP_KERNELS_BUILD_CUDA=1 \
        "$PYTHON" setup.py -q build_ext --inplace
    # The Triton kernels can be tested without the CUDA ones.
    compgen -G 'clasp_kernels/_C.*.so' >/dev/null ||
        step build-cpu 60 env CLASP_KERNELS_BUILD_CUDA=0 "$PYTHON" setup.py -q build_ext --inplace
}

# run_pytest NAME SECONDS ARGUMENTS...
run_pytest() {
    local name=$1 seconds=$2 parallel=() workers
    shift 2
    # A kernel is compiled for every shape: several processes share the work, if they can.
    if "$PYTHON" -c 'import xdist' 2>/dev/null; then
        workers=$(nproc)
        [ "$workers" -le 10 ] || workers=10
        parallel=(-n "$workers" --dist=worksteal)
    fi
    step "$name" "$seconds" "$PYTHON" -m pytest -q --tb=short -p no:cacheprovider \
        --hypothesis-profile=few "${parallel[@]}" "$@"
}
run_tests() { run_pytest tests "$1" tests/kernels tests/ops; }
# The contract tests with the tensors on the GPU, by Triton and by each design of the CUDA extension;
# and those at the sizes of real models.
run_contract() {
    run_pytest contract "$1" tests/ops tests/kernels/test_gpu_results.py -k "$CONTRACT"
}
CONTRACT="(cuda-cuda or triton-cuda or x576x1024 or x577x1024) and not torch.float32 and not torch.float16"

# run_model NAME SHAPE SECONDS
run_model() {
    step "$1" "$3" "$PYTHON" benchmarks/models/bench_prefill.py --device cuda --shape "$2" \
        --batches 1 4 --rounds 5 --out "$OUT/$1.json"
}
run_llava() { run_model llava 7b "$1"; }
run_qwen() { run_model qwen qwen2.5-vl-7b "$1"; }

# run_sanitizer TOOL SECONDS [VARIABLE=VALUE]: what the tool is for, tests/kernels/sanitized.py says.
sanitizer=$(command -v compute-sanitizer || echo /usr/local/cuda/bin/compute-sanitizer)
refused=
run_sanitizer() {
    local tool=$1 seconds=$2 line ours=()
    shift 2
    # Those that torch makes the inputs with are not ours to judge, and take time.
    [ "$tool" = memcheck ] || ours=(--kernel-name kernel_substring=clasp)
    if [ ! -x "$sanitizer" ]; then
        summary+=("$(printf '%-12s not run, as there is no compute-sanitizer' "$tool")")
        return
    fi
    if [ -n "$refused" ]; then
        summary+=("$(printf '%-12s not run, as compute-sanitizer refused the GPU' "$tool")")
        return
    fi
    line=$(wc -l <"$log")
    step "$tool" "$seconds" env "$@" PYTHONPATH="tests/ops:tests:$PYTHONPATH" "$sanitizer" \
        --tool "$tool" --target-processes application-only --error-exitcode 99 --print-limit 20 \
        "${ours[@]}" "$PYTHON" tests/kernels/sanitized.py "$tool"
    # As it does in some virtual machines: the other tools would only say so again.
    refused=$(tail -n +$((line + 1)) "$log" | grep -m 1 'Device not supported')
}
# Without torch's cache every tensor is an allocation of its own, with its own bounds.
run_memcheck() { run_sanitizer memcheck "$1" PYTORCH_NO_CUDA_MEMORY_CACHING=1; }
run_racecheck() { run_sanitizer racecheck "$1"; }
run_synccheck() { run_sanitizer synccheck "$1"; }

# run_benchmarks NAME SECONDS OPTIONS...
run_benchmarks() {
    local name=$1 seconds=$2
    shift 2
    # It begins nothing in the last seconds, so that it ends by itself, with its table.
    step "$name" "$seconds" "$PYTHON" benchmarks/gpu --results "$OUT" \
        --seconds $((seconds > 60 ? seconds - 30 : seconds / 2)) "$@"
}
run_bench() {
    local seconds=$1 begin=$SECONDS archive
    archive=$([ -z "$WHEELS" ] || compgen -G "$WHEELS/torch_cluster-*.tar.gz" | tail -n 1)
    # It takes a minute or two. If it fails or is left out, one row is missing, and bench says so.
    if [ -n "$archive" ] && [ "$seconds" -ge 240 ]; then
        step baseline 120 "$PYTHON" benchmarks/gpu/build_fps.py "$archive" "$site"
        export TORCH_CLUSTER_FPS=$site/torch_cluster_fps.so
    fi
    run_benchmarks bench $((seconds - (SECONDS - begin)))
}
# Without the baseline that has to be built.
run_targets() { run_benchmarks targets "$1" --targets; }

for place in "${!parts[@]}"; do
    part=${parts[place]}
    to_come=0
    for later in "${parts[@]:place}"; do
        to_come=$((to_come + shares[$later]))
    done
    "run_$part" $((to_come > 0 ? $(seconds_left) * shares[$part] / to_come : BUILD_SECONDS))
done

say "=== summary: $SECONDS of $LIMIT s"
for line in "${summary[@]}"; do
    say "$line"
done
exit $failed
