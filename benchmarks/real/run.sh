#!/usr/bin/env bash
# The paper's tables, for CLASP and every rule: real models on public benchmarks, in lmms-eval.
#
#   benchmarks/real/run.sh                         # the paper's three models; takes long
#   benchmarks/real/run.sh llava-1.5-7b            # one of them
#   benchmarks/real/run.sh --dry-run               # only print the commands
#   benchmarks/real/run.sh bundled --device cpu    # a rehearsal in minutes, without downloads
#   benchmarks/real/run.sh --help                  # every option
#
# A finished row and task is not run again: the same command goes on where it was interrupted.
#
# PYTHON  the Python that has clasp_kernels and lmms-eval (default: .venv's if it is there)
set -euo pipefail

root=$(cd "$(dirname "${BASH_SOURCE[0]}")/../.." && pwd)
if [ -z "${PYTHON:-}" ]; then
    PYTHON=$root/.venv/bin/python
    [ -x "$PYTHON" ] || PYTHON=python3
fi
exec "$PYTHON" "$root/benchmarks/real" "$@"
