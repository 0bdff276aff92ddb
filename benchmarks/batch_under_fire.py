"""``clasp batch`` while its processes are killed: every row exactly once, as without the kills.

    python benchmarks/batch_under_fire.py --engine local
    python benchmarks/batch_under_fire.py --engine ray      # after make test-engines: its folder

Pictures, of which 1 % are broken, are answered twice: undisturbed, and with ``kill -9`` at random
moments, spread over the run. What is killed is, in random order and about equally often,

- a worker: the run must go on by itself;
- the driver: its workers must end by themselves, and the same command must go on;
- everything: with Ray the whole cluster, after which the driver must end by itself.

After every kill, each Parquet file must be whole. At the end every id must be there once, each row
must be that of the undisturbed run except for its seconds, and no draft may be left. Prints what it
did as JSON, and exits with 1 if something of this does not hold.
"""

from __future__ import annotations

import argparse
import json
import random
import sys
import tempfile
import time
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import psutil
import pyarrow.parquet as pq
from batch_inputs import QUESTION, Command, write_pictures

TARGETS = ("worker", "driver", "everything")
# Ray's driver waits for a lost cluster; its own default is a minute.
_ENV = {"RAY_gcs_rpc_server_reconnect_timeout_s": "5"}
_POLL = 0.1
_SECONDS_TO_END = 120.0
_SECONDS_WITHOUT_PROGRESS = 600.0


@dataclass(frozen=True)
class Fire:
    """The settings of the run that is killed."""

    engine: str
    images: int = 2000
    broken: float = 0.01
    shard_size: int = 20
    workers: int = 2
    kills: int = 10
    seed: int = 0


@dataclass
class Kill:
    """One kill."""

    target: str
    rows_done: int
    """Rows in whole Parquet files just after it."""
    ended: float = 0.0
    """Seconds until all processes that had to end had ended."""


@dataclass
class Report:
    """The kills, and the results of both runs."""

    fire: Fire
    kills: list[Kill] = field(default_factory=list)
    starts: int = 0
    """How often the command was started in the disturbed run."""
    rows: int = 0
    errors: int = 0
    undisturbed_seconds: float = 0.0
    disturbed_seconds: float = 0.0


def under_fire(fire: Fire, work: Path) -> Report:
    """Run with and without kills, in a folder.

    Raises:
        AssertionError: something is lost, repeated, half-written or different.
    """
    report = Report(fire)
    broken = write_pictures(work / "pictures", fire.images, fire.broken, fire.seed)
    started = time.monotonic()
    calm = _start(fire, work, "calm")
    assert calm.driver.wait() == 0, _said(work, "calm")
    report.undisturbed_seconds = time.monotonic() - started
    started = time.monotonic()
    _disturbed(fire, work, report)
    report.disturbed_seconds = time.monotonic() - started

    expected, found = _rows(work / "calm"), _rows(work / "hot")
    assert len(found) == len({row["id"] for row in found}) == fire.images
    assert found == expected
    assert [row["image"] for row in found if row["error"]] == broken
    left = {path.name for path in (work / "hot").iterdir() if not path.name.startswith("part-")}
    assert left == {"_manifest.json", ".lock"}, left
    report.rows, report.errors = len(found), len(broken)
    return report


def _start(fire: Fire, work: Path, out: str) -> Command:
    return Command.batch(
        [
            *(str(work / "pictures"), str(work / out), "--question", QUESTION),
            *("--engine", fire.engine, "--workers", str(fire.workers), "--device", "cpu"),
            *("--shard-size", str(fire.shard_size), "--max-new-tokens", "4"),
        ],
        work / f"{out}.log",
        _ENV,
    )


def _disturbed(fire: Fire, work: Path, report: Report) -> None:
    draw = random.Random(fire.seed)
    targets = [TARGETS[number % len(TARGETS)] for number in range(fire.kills)]
    draw.shuffle(targets)
    # The moments: numbers of shards, after which a random time passes.
    shards = -(-fire.images // fire.shard_size)
    moments = sorted(draw.sample(range(1, shards - 1), fire.kills))
    run = _start(fire, work, "hot")
    report.starts = 1
    try:
        for target, moment in zip(targets, moments, strict=True):
            _wait_for(run, work / "hot", moment)
            time.sleep(draw.uniform(0.0, 1.0))
            if run.driver.poll() is not None:
                break  # it was done before: there is nothing left to kill
            report.kills.append(_kill(run, target, work, draw))
            if target != "worker":
                run = _start(fire, work, "hot")
                report.starts += 1
        assert run.driver.wait() == 0, _said(work, "hot")
    finally:
        for process in run.processes():
            _end(process)


def _kill(run: Command, target: str, work: Path, draw: random.Random) -> Kill:
    started = time.monotonic()
    if target == "worker":
        deadline = started + _SECONDS_WITHOUT_PROGRESS
        while not (workers := run.workers()):  # one is being started
            assert time.monotonic() < deadline, _said(work, "hot")
            time.sleep(_POLL)
        _end(draw.choice(workers))
        return Kill(target, _whole_rows(work / "hot"), time.monotonic() - started)
    others = [process for process in run.processes() if process.pid != run.driver.pid]
    if target == "everything":
        for process in others:
            _end(process)
        if not any("raylet" in process for process in map(_name, others)):
            _end(run.driver)  # there is no cluster that it could lose
        code = run.driver.wait(timeout=_SECONDS_TO_END)
        assert code != 0, "the driver says that it has finished"
    else:
        _end(run.driver)
        run.driver.wait()
    _, alive = psutil.wait_procs(others, timeout=_SECONDS_TO_END)
    assert not [process for process in alive if process.is_running()], alive
    return Kill(target, _whole_rows(work / "hot"), time.monotonic() - started)


def _name(process: psutil.Process) -> str:
    try:
        return process.name()
    except psutil.NoSuchProcess:
        return "raylet"  # it has ended with the others of its cluster


def _end(process: psutil.Process) -> None:
    with suppress(psutil.NoSuchProcess):
        process.kill()


def _wait_for(run: Command, out: Path, shards: int) -> None:
    seen, since = -1, time.monotonic()
    while run.driver.poll() is None:
        done = len(list(out.glob("part-*.parquet")))
        if done >= shards:
            return
        if done != seen:
            seen, since = done, time.monotonic()
        assert time.monotonic() - since < _SECONDS_WITHOUT_PROGRESS, _said(out.parent, out.name)
        time.sleep(_POLL)


def _whole_rows(out: Path) -> int:
    """Read every Parquet file to its end, and return the number of their rows."""
    return sum(pq.read_table(path).num_rows for path in out.glob("*.parquet"))


def _rows(out: Path) -> list[dict[str, Any]]:
    return [{**row, "seconds": None} for row in pq.read_table(out).to_pylist()]


def _said(work: Path, out: str) -> str:
    return (work / f"{out}.log").read_text()[-2000:]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--engine", choices=("local", "ray"), default="local")
    parser.add_argument("--images", type=int, default=Fire.images)
    parser.add_argument("--kills", type=int, default=Fire.kills)
    parser.add_argument("--shard-size", type=int, default=Fire.shard_size)
    parser.add_argument("--seed", type=int, default=Fire.seed)
    given = parser.parse_args()
    fire = Fire(
        given.engine,
        given.images,
        shard_size=given.shard_size,
        kills=given.kills,
        seed=given.seed,
    )
    with tempfile.TemporaryDirectory() as work:
        try:
            report = under_fire(fire, Path(work))
        except AssertionError as error:
            sys.exit(f"Failed: {error}")
    print(json.dumps(asdict(report), indent=2))


if __name__ == "__main__":
    main()
