import pytest


@pytest.fixture(autouse=True)
def poisoned(poisoned_memory: None) -> None:
    """Every test of an op runs on poisoned memory."""
