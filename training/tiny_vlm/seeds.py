"""The first seeds of the pictures, by what the pictures are for.

What judges must not have been looked at while something was chosen, so each use draws from seeds of
its own: a use starts at its seed and takes the following ones. Training draws random seeds below
2**62. That no held-out picture is trained on does not depend on seeds: a picture's split is a hash
of its content.
"""

from __future__ import annotations

RECIPE = 0
"""Held-out pictures by which the model's recipe was judged: `evaluate.py`, `stages.py`,
`positions.py`, `harness_task.py` and tests. Training pictures for the vocabulary, the most frequent
answers and tests."""
DEMO = 500_000
"""Held-out pictures of ``clasp demo``."""
PROFILE = 10_000_000
"""Training pictures by which `choose_profile.py` chooses."""
CHOICES = 20_000_000
"""Training pictures by which `benchmarks/quality` chooses settings of its rows."""
FINAL = 30_000_000
"""Held-out pictures on which `benchmarks/quality` judges. Nothing else draws from here."""
