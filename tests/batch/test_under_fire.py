"""``clasp batch`` while its processes are killed, and while its disk is full or read-only."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from batch_inputs import write_pictures
from batch_under_fire import Fire, under_fire

pytestmark = pytest.mark.deep


def test_nothing_is_lost_repeated_or_half_written(tmp_path: Path) -> None:
    """A worker and the driver are killed once each.

    Killing everything at once differs with Ray only: benchmarks/batch_under_fire.py does it.
    """
    report = under_fire(Fire("local", images=30, broken=0.1, shard_size=3, kills=2), tmp_path)
    assert sorted(kill.target for kill in report.kills) == ["driver", "worker"]
    assert report.rows == 30 and report.errors == 3 and report.starts == 2


# A disk of its own, which the system forgets with the process.
IN_A_NAMESPACE = ("unshare", "--map-root-user", "--mount")
SCRIPT = """
out=$1; shift
mount -t tmpfs -o size=20k none "$out" || exit 99
"$@"; echo "full: $?" >&2
mount -o remount,size=4m "$out"
"$@"; echo "larger: $?" >&2
mount -o remount,ro "$out"
"$@"; echo "read-only: $?" >&2
mount -o remount,rw "$out"
cp "$out"/*.parquet "$out/../kept"
"""


def test_a_full_and_a_read_only_disk_are_sentences(tmp_path: Path) -> None:
    write_pictures(tmp_path / "pictures", 12)
    out, kept = tmp_path / "out", tmp_path / "kept"
    out.mkdir()
    kept.mkdir()
    done = subprocess.run(
        [
            *(*IN_A_NAMESPACE, "sh", "-c", SCRIPT, "sh", str(out)),
            *(sys.executable, "-m", "clasp_kernels.cli", "batch"),
            *(str(tmp_path / "pictures"), str(out), "--question", "What is it?"),
            *("--shard-size", "2", "--device", "cpu", "--max-new-tokens", "2", "--workers", "1"),
        ],
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode == 99 or "unshare" in done.stderr:
        pytest.skip(f"no disk of its own can be mounted here: {done.stderr.strip()}")
    said = done.stderr
    full, _, later = said.partition("full: 1")
    assert "cannot be written: No space left on device" in full, said
    assert "of 12 rows are done and kept in" in full
    larger, _, read_only = later.partition("larger: 0")
    assert "Error" not in larger
    assert f"OUT: {out} cannot be written" in read_only and "read-only: 1" in read_only, said
    assert pq.read_table(kept).num_rows == 12
