"""Every test here gets a model of its own, and leaves it to be patched as it likes."""

from __future__ import annotations

import gc
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

sys.path.insert(0, str(Path(__file__).parent))

from tiny_llava import tiny_llava
from transformers import LlavaForConditionalGeneration


@pytest.fixture(autouse=True)
def no_grad() -> Iterator[None]:
    with torch.no_grad():
        yield


@pytest.fixture
def no_collector() -> Iterator[None]:
    """Only what reference counts free is freed."""
    gc.collect()
    gc.disable()
    yield
    gc.enable()


@pytest.fixture
def model() -> LlavaForConditionalGeneration:
    return tiny_llava()
