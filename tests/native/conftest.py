"""For the tests of the CPU kernels through torch; those of the core ask for none of this."""

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
    """Their number may be set, and is set back."""
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)
