"""What the core must do, against float64 and plain Python; numpy is all it needs.

Each ``check_*`` takes the built module and the name of an instruction set, or the module alone
where the plan of the CUDA kernels is checked. ``test_core.py`` runs them one by one on the plain
build; as a script, this file runs all of them on the module it is given, which is how they run
under the sanitizers:

    python checks.py MODULE.so
"""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import check_arithmetic
import check_completion
import check_cuda_plan
import check_fusion
import check_merging
import check_pivots
import check_salience

SUBJECTS = (
    check_arithmetic,
    check_completion,
    check_fusion,
    check_merging,
    check_pivots,
    check_salience,
)


def checks_of(subject: ModuleType) -> dict[str, Callable[..., None]]:
    return {
        name.removeprefix("check_"): function
        for name, function in vars(subject).items()
        if name.startswith("check_")
    }


CHECKS = {name: check for subject in SUBJECTS for name, check in checks_of(subject).items()}
CUDA_CHECKS = checks_of(check_cuda_plan)


def load(path: Path) -> ModuleType:
    spec = importlib.util.spec_from_file_location(path.name.partition(".")[0], path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def main(path: str) -> None:
    core = load(Path(path))
    for isa in core.instruction_sets():
        for name, check in CHECKS.items():
            check(core, isa)
            print(f"ok {isa} {name}", flush=True)
    for name, check in CUDA_CHECKS.items():
        check(core)
        print(f"ok {name}", flush=True)


if __name__ == "__main__":
    main(sys.argv[1])
