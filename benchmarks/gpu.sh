#!/usr/bin/env bash
# Tests and benchmarks on a GPU, in one command and within LIMIT seconds, without a network.
#
#   benchmarks/gpu.sh                    # every step: build tests sanitize bench
#   benchmarks/gpu.sh tests              # some of them, with all of the time
#   OUT=folder WHEELS=folder benchmarks/gpu.sh
#
# OUT     where everything is written, flat (default: benchmarks/results/gpu-run): gpu-run.log, which
#         holds the output of every step, a JSON file an op and a table of the designs, designs.md
# WHEELS  a folder of wheels to use on top of what is installed, flash_colreduce-*.whl say; of
#         torch_cluster-*.tar.gz in it the baseline is built that bench has of it
# PYTHON  the Python that has torch (default: python3)
# LIMIT   seconds for all steps together (default: 520)
# COMMIT  what was measured, where there is no git repository to ask
#
# Whatever fails, the other steps run. The exit status is 1 if any step failed, 2 if none could run.
set -uo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.." || exit 2

PYTHON=${PYTHON:-python3}
OUT=${OUT:-benchmarks/results/gpu-run}
WHEELS=${WHEELS:-}
LIMIT=${LIMIT:-520}
FOR_THE_SUMMARY=15 # seconds kept

stop() {
    echo "gpu.sh: $1" >&2
    exit 2
}

steps=("$@")
[ ${#steps[@]} -gt 0 ] || steps=(build tests sanitize bench)
for name in "${steps[@]}"; do
    case $name in
        build | tests | sanitize | bench) ;;
        *) stop "there is no step $name; the steps are build, tests, sanitize and bench" ;;
    esac
done
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
COMMIT=${COMMIT:-$(git rev-parse HEAD 2>/dev/null || echo unknown)}
export COMMIT

summary=()
failed=0

say() { echo "$*" | tee -a "$log"; }

# step NAME SECONDS COMMAND...: its output goes to the log, its end to the terminal too.
step() {
    local name=$1 allowed=$2 left=$((LIMIT - FOR_THE_SUMMARY - SECONDS)) begin=$SECONDS status line
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

wanted() { [[ " ${steps[*]} " == *" $1 "* ]]; }

say "gpu.sh ${steps[*]}: commit $COMMIT, $("$PYTHON" --version), $(date -u +%FT%TZ)"
{
    nvidia-smi || true
    "$PYTHON" -c 'import torch; print("torch", torch.__version__, torch.cuda.get_device_name())'
} >>"$log" 2>&1

if [ -n "$WHEELS" ] && compgen -G "$WHEELS/*.whl" >/dev/null; then
    step wheels 60 "$PYTHON" -m pip install --quiet --no-index --no-deps --no-compile \
        --target "$site" "$WHEELS"/*.whl
fi
if wanted build; then
    # In place and found by PYTHONPATH: the environment stays as it is. For the GPU at hand alone,
    # which takes a third of the time.
    TORCH_CUDA_ARCH_LIST=${TORCH_CUDA_ARCH_LIST:-$("$PYTHON" -c \
        'import torch; print("%d.%d" % torch.cuda.get_device_capability())')}
    export TORCH_CUDA_ARCH_LIST
    step build 120 "$PYTHON" setup.py -q build_ext --inplace
    # The Triton kernels can be tested without the CUDA ones.
    compgen -G 'clasp_kernels/_C.*.so' >/dev/null ||
        step build-cpu 60 env CLASP_KERNELS_BUILD_CUDA=0 "$PYTHON" setup.py -q build_ext --inplace
fi
if wanted tests; then
    # A kernel is compiled for every shape: several processes share the work, if they can.
    parallel=()
    if "$PYTHON" -c 'import xdist' 2>/dev/null; then
        workers=$(nproc)
        [ "$workers" -le 10 ] || workers=10
        parallel=(-n "$workers" --dist=worksteal)
    fi
    step tests 230 "$PYTHON" -m pytest -q --tb=short -p no:cacheprovider \
        --hypothesis-profile=few "${parallel[@]}" tests/kernels tests/ops
fi
# sanitize TOOL SECONDS [VARIABLE=VALUE]: what the tool is for, tests/kernels/sanitized.py says.
sanitize() {
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
if wanted sanitize; then
    sanitizer=$(command -v compute-sanitizer || echo /usr/local/cuda/bin/compute-sanitizer)
    refused=
    # Without torch's cache every tensor is an allocation of its own, with its own bounds.
    sanitize memcheck 40 PYTORCH_NO_CUDA_MEMORY_CACHING=1
    sanitize racecheck 40
    sanitize synccheck 20
fi
if wanted bench; then
    archive=$([ -z "$WHEELS" ] || compgen -G "$WHEELS/torch_cluster-*.tar.gz" | tail -n 1)
    if [ -n "$archive" ]; then
        # If it fails, one row is missing, and bench says so.
        third=$(((LIMIT - FOR_THE_SUMMARY - SECONDS) / 3))
        step baseline $((third < 90 ? third : 90)) "$PYTHON" benchmarks/gpu/build_fps.py "$archive" "$site"
        export TORCH_CLUSTER_FPS=$site/torch_cluster_fps.so
    fi
    # It begins nothing in the last seconds, so that it ends by itself, with its table.
    left=$((LIMIT - FOR_THE_SUMMARY - SECONDS))
    begin_until=$((left > 60 ? left - 30 : left / 2))
    step bench "$left" "$PYTHON" benchmarks/gpu --results "$OUT" --seconds "$begin_until"
fi

say "=== summary: $SECONDS of $LIMIT s"
for line in "${summary[@]}"; do
    say "$line"
done
exit $failed
