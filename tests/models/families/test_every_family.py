"""Check every family of the registry against the masking oracle.

`make compat` uses the names of these tests to record which families pass before the decoder and
inside it.
"""

from __future__ import annotations

from functools import cache

import pytest
from every_family import TELLING

from clasp_kernels.models import Verification, apply_clasp, verification, verify
from clasp_kernels.models.decoder import refusal
from clasp_kernels.models.families import ADAPTERS
from clasp_kernels.models.specimens import SPECIMENS
from clasp_kernels.policy import Schedule

# These tasks run a family's own code: its masks, and its positions in prompts and answers.
FEW = (
    "prefill, padded batch",
    "generate, padded batch",
    "stages, prefill",
    "stages, generate, padded batch",
)


@cache
def report(family: str, every: bool) -> Verification:
    with pytest.MonkeyPatch.context() as patch:
        if not every:
            few = [task for task in verification.TASKS if task.name in FEW]
            assert len(few) == len(FEW)
            patch.setattr(verification, "TASKS", few)
            patch.setattr(verification, "_ATTENTIONS", ("sdpa",))
        return verify(families=[family])


@pytest.mark.parametrize("where", ["before", "inside"])
@pytest.mark.parametrize("family", ADAPTERS)
def test_pruning_is_masking(request: pytest.FixtureRequest, family: str, where: str) -> None:
    """Families that differ little are checked with few tasks and SDPA, unless --all-combinations is
    given, as `make compat` does."""
    if where == "inside":
        model = SPECIMENS[family].build()
        if refusal(model.config.get_text_config()):
            with pytest.raises(ValueError, match="cannot be pruned inside the decoder"):
                apply_clasp(model, schedule=Schedule({2: 0.5}))
            return
    every = family in TELLING or request.config.getoption("--all-combinations")
    checks = [
        check
        for check in report(family, every).checks
        if check.name.startswith("stages") == (where == "inside")
    ]
    attentions = {"sdpa", "eager"} if every else {"sdpa"}
    assert {check.attention for check in checks} == attentions
    assert not [check for check in checks if not check.passed]
