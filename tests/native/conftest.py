"""Fixtures for the tests of the CPU kernels through torch. The tests of the core use none."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch

from clasp_kernels import use_backend


@pytest.fixture
def cpu_backend() -> Iterator[None]:
    with use_backend("cpu"):
        yield


@pytest.fixture
def threads() -> Iterator[None]:
    """Lets a test set the number of threads, and restores it afterwards."""
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)
