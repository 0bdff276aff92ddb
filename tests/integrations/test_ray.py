"""``clasp batch --engine ray`` on a cluster of this machine: `make test-engines` installs Ray."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("ray", reason="ray is not installed: make test-engines")

import pyarrow.parquet as pq
import ray
from batch_under_fire import Fire, under_fire
from echo import Unloadable, job

from clasp_kernels.batch import StopsJob
from clasp_kernels.cli.errors import _EXTRAS
from clasp_kernels.integrations import ray as engine

TESTS = Path(__file__).resolve().parents[1]


@pytest.fixture(autouse=True)
def paths_of_the_actors(monkeypatch: Any) -> Iterator[None]:
    """Let actors import this checkout, and what the tests share."""
    path = [str(TESTS.parent), str(TESTS / "batch"), os.environ.get("PYTHONPATH", "")]
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(path))
    yield
    ray.shutdown()


def test_an_actor_that_dies_is_replaced_and_its_shard_begun_again(tmp_path: Path) -> None:
    deadly = f"deadly once: {tmp_path / 'died'}"
    work = job(tmp_path, "a", deadly, "huge", *"bcdefg", shard_size=2)
    finished = list(engine.run(work, (2, 2)))
    assert (tmp_path / "died").exists()
    assert sum(each.rows for each in finished) == 9
    assert sum(each.errors for each in finished) == 1
    found = pq.read_table(work.out).to_pylist()
    assert [row["answer"] for row in found] == ["A", deadly.upper(), None, *"BCDEFG"]
    assert not ray.is_initialized()


def test_a_model_that_cannot_be_loaded_stops_the_job(tmp_path: Path) -> None:
    work = job(tmp_path, "a", "b", load=Unloadable)
    with pytest.raises(StopsJob, match="there is no such model"):
        list(engine.run(work, (1, 1)))


def test_a_folder_that_is_gone_stops_the_job(tmp_path: Path) -> None:
    work = job(tmp_path, "a", "b")
    work.out.rmdir()
    with pytest.raises(StopsJob, match="cannot be written: No such file"):
        list(engine.run(work, (1, 1)))


def test_under_fire_nothing_is_lost_repeated_or_half_written(tmp_path: Path) -> None:
    fire = Fire("ray", images=200, shard_size=10, kills=3, seed=1)
    report = under_fire(fire, tmp_path)
    assert sorted(kill.target for kill in report.kills) == ["driver", "everything", "worker"]
    assert report.rows == 200 and report.errors == 2


def test_without_ray_the_command_says_how_to_get_it(tmp_path: Path) -> None:
    assert _EXTRAS["ray"] == "ray"
    (tmp_path / "ray.py").write_text("raise ModuleNotFoundError('no ray', name='ray')")
    (tmp_path / "0.png").touch()
    result = subprocess.run(
        [
            *(sys.executable, "-m", "clasp_kernels.cli", "batch", ".", "../out"),
            *("--question", "What?", "--engine", "ray"),
        ],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": f"{tmp_path}{os.pathsep}{os.environ['PYTHONPATH']}"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert result.returncode == 1
    assert 'pip install "clasp-kernels[ray]"' in result.stderr
