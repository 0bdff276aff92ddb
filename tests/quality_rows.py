"""The rows of `benchmarks/quality` on the bundled model, with choices that no test depends on."""

from __future__ import annotations

from pathlib import Path

from quality.rows import Choices, inside_name, rows

from clasp_kernels.bundled import tiny_vlm_path
from clasp_kernels.policy import Profile

MODEL = Path(tiny_vlm_path())
PROFILE = Profile.load(MODEL / "clasp_profile.json")
CHOICES = Choices(
    -1,
    {
        inside_name(stages): {"salience_rows": "last", "completion_on": "hidden"}
        for stages in ((0, 2, 4), (1, 3))
    },
)
EVERY = rows(PROFILE, CHOICES)
