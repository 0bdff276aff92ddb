"""Puts the tiny models of tests/models in reach, and the inputs of tests/batch."""

import sys
from pathlib import Path

for folder in ("models", "batch"):
    sys.path.insert(0, str(Path(__file__).parents[1] / folder))
