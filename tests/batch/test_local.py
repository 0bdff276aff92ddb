"""Processes of this machine do the shards of a job, whatever becomes of them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
from echo import Echo, Unloadable, job

from clasp_kernels.batch import StopsJob, local


def test_a_process_that_dies_is_replaced_and_its_shard_begun_again(tmp_path: Path) -> None:
    deadly = f"deadly once: {tmp_path / 'died'}"
    work = job(tmp_path, "a", deadly, "huge", *"bcdefg", shard_size=2)
    finished = list(local.run(work, (2, 2)))
    assert (tmp_path / "died").exists()
    assert sum(each.rows for each in finished) == 9
    found = pq.read_table(work.out).to_pylist()
    assert [row["answer"] for row in found] == ["A", deadly.upper(), None, *"BCDEFG"]
    assert found[2]["error"] == "MemoryError: huge"


class Buggy(Echo):
    def __init__(self, device: str) -> None:
        raise LookupError("a bug")


@pytest.mark.parametrize(
    ("load", "said"),
    [(Unloadable, "there is no such model"), (Buggy, "a process failed:\n.*LookupError: a bug")],
)
def test_a_model_that_cannot_be_loaded_stops_the_job(tmp_path: Path, load: Any, said: str) -> None:
    with pytest.raises(StopsJob, match=f"(?s){said}"):
        list(local.run(job(tmp_path, "a", load=load), (1, 1)))
