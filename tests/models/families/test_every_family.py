"""Check every family of the registry against the masking oracle.

`make compat` uses the names of these tests to record which families pass before the decoder and
inside it.
"""

from __future__ import annotations

from functools import cache

import pytest

from clasp_kernels.models import Verification, apply_clasp, verify
from clasp_kernels.models.decoder import refusal
from clasp_kernels.models.families import ADAPTERS
from clasp_kernels.models.specimens import SPECIMENS
from clasp_kernels.policy import Schedule


@cache
def report(family: str) -> Verification:
    return verify(families=[family])


@pytest.mark.parametrize("where", ["before", "inside"])
@pytest.mark.parametrize("family", ADAPTERS)
def test_pruning_is_masking(family: str, where: str) -> None:
    if where == "inside":
        model = SPECIMENS[family].build()
        if refusal(model.config.get_text_config()):
            with pytest.raises(ValueError, match="cannot be pruned inside the decoder"):
                apply_clasp(model, schedule=Schedule({2: 0.5}))
            return
    checks = [
        check
        for check in report(family).checks
        if check.name.startswith("stages") == (where == "inside")
    ]
    assert {check.attention for check in checks} == {"sdpa", "eager"}
    assert not [check for check in checks if not check.passed]
