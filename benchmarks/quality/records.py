"""Files that say which answers were right. Intervals can be computed from them without a model.

`questions.csv` has a line for each question. `correct_<model>.csv` has a line for each row and
budget, with a bit for each question, most significant first, in hexadecimal.
"""

from __future__ import annotations

import csv
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from quality.questions import Label
from quality.resampling import Floats, Key, merged
from quality.rows import RANDOM_SEEDS, random_name

QUESTIONS = "questions.csv"


def correct_path(folder: Path, model: str) -> Path:
    return folder / f"correct_{model}.csv"


def write_labels(path: Path, labels: Sequence[Label]) -> None:
    with path.open("w", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(("kind", "category", "needs"))
        writer.writerows((label.kind, label.category, label.needs) for label in labels)


def read_labels(path: Path) -> list[Label]:
    with path.open(newline="") as file:
        return [Label(**row) for row in csv.DictReader(file)]


def write_correct(path: Path, correct: Mapping[Key, Sequence[bool]]) -> None:
    with path.open("w", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(("row", "tokens", "correct"))
        for (name, budget), bits in correct.items():
            writer.writerow((name, budget, np.packbits(np.array(bits, dtype=bool)).tobytes().hex()))


def read_correct(path: Path, count: int) -> dict[Key, Floats]:
    """Return which of the ``count`` questions each row answers right, [questions] of 0 and 1."""
    with path.open(newline="") as file:
        return {
            (row["row"], int(row["tokens"])): np.unpackbits(
                np.frombuffer(bytes.fromhex(row["correct"]), dtype=np.uint8), count=count
            ).astype(np.float64)
            for row in csv.DictReader(file)
        }


def with_random(correct: Mapping[Key, Floats]) -> dict[Key, Floats]:
    """Replace the seeds of random tokens by one row "random", their mean."""
    seeds = [random_name(seed) for seed in RANDOM_SEEDS]
    found: dict[Key, Floats] = {}
    for (name, budget), bits in correct.items():
        if name == seeds[0]:
            found["random", budget] = merged([correct[seed, budget] for seed in seeds])
        elif name not in seeds:
            found[name, budget] = bits
    return found


def mean_of(models: Sequence[Mapping[Key, Floats]]) -> dict[Key, Floats]:
    """Return the share of models that are right, for the rows that all have."""
    shared = [key for key in models[0] if all(key in each for each in models)]
    return {key: merged([each[key] for each in models]) for key in shared}
