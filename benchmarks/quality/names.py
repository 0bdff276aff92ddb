"""Names and numbers that the tables share with what is run. It imports nothing."""

from __future__ import annotations

NUM_TOKENS = 144
NUM_LAYERS = 6  # of the decoder
BUDGETS = (48, 32, 16, 7)
TIMED_BATCH = 32  # images whose selection is timed at once

ALL, BLIND, SMALLER, FULL = "all tokens", "no picture", "smaller image", "full"
CONTROLS = ("random", "uniform", "pool")
TIMES = "times.json"
WITHIN = 1.0  # points that the best other rule may be ahead
FREQUENT = "most frequent answer"
"""The guess that is not the model's: the most frequent training answer to the question."""
