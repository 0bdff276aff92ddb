"""The checks of the core against float64 and plain Python; they only need numpy.

Each ``check_*`` takes the built module and the name of an instruction set, or only the module if it
checks the plan of the CUDA kernels. ``test_core.py`` runs each of them on the plain build. As a
script, this file runs them on a given module, which is how they run under the sanitizers:

    python checks.py MODULE.so

Those of ONCE run with the best instruction set only, for time.
"""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import check_arithmetic
import check_completion
import check_covering
import check_cuda_plan
import check_fusion
import check_merging
import check_pivots
import check_salience

SUBJECTS = (
    check_arithmetic,
    check_completion,
    check_covering,
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
# Slow, and of algorithms on top of dot products, which are the same with every instruction set.
ONCE = {
    "exact_similarities_give_the_exact_picks",
    "exact_gains_give_the_exact_weighted_picks",
    "lazy_weighted_picks_are_the_eager_ones",
    "many_picks_among_many_tied_tokens",
    "two_stages",
}


def load(path: Path) -> ModuleType:
    spec = importlib.util.spec_from_file_location(path.name.partition(".")[0], path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def main(path: str) -> None:
    core = load(Path(path))
    for number, isa in enumerate(core.instruction_sets()):  # the best first
        for name, check in CHECKS.items():
            if number > 0 and name in ONCE:
                continue
            check(core, isa)
            print(f"ok {isa} {name}", flush=True)
    for name, check in CUDA_CHECKS.items():
        check(core)
        print(f"ok {name}", flush=True)


if __name__ == "__main__":
    main(sys.argv[1])
