"""``clasp batch`` while its processes are killed."""

from __future__ import annotations

from pathlib import Path

import pytest
from batch_under_fire import Fire, under_fire


@pytest.mark.deep
def test_nothing_is_lost_repeated_or_half_written(tmp_path: Path) -> None:
    report = under_fire(Fire("local", images=120, broken=0.05, shard_size=6, kills=3), tmp_path)
    assert sorted(kill.target for kill in report.kills) == ["driver", "everything", "worker"]
    assert report.rows == 120 and report.errors == 6 and report.starts == 3
