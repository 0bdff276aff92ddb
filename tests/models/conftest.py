"""Fixtures of the model tests. Every test gets its own model, which it may patch."""

from __future__ import annotations

import gc
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch

sys.path.insert(0, str(Path(__file__).parent))

from processors import save_checkpoint, skip_what_is_not_loaded
from tiny_llava import tiny_llava
from transformers import LlavaForConditionalGeneration


@pytest.fixture(autouse=True)
def no_grad() -> Iterator[None]:
    with torch.no_grad():
        yield


@pytest.fixture
def no_collector() -> Iterator[None]:
    """Disable the garbage collector, so that only reference counting frees objects."""
    gc.collect()
    gc.disable()
    yield
    gc.enable()


@pytest.fixture
def model() -> LlavaForConditionalGeneration:
    return tiny_llava()


@pytest.fixture(scope="session")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """Return a function that saves a family's tiny model once and returns its folder.

    Tests do not change the folder, but a copy of it.
    """
    made: dict[str, Path] = {}

    def folder(family: str) -> Path:
        skip_what_is_not_loaded(family)
        if family not in made:
            made[family] = tmp_path_factory.mktemp(family)
            save_checkpoint(family, made[family])
        return made[family]

    return folder
