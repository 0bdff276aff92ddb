"""Collects the tests as on a machine with a GPU and the CUDA extension, and runs none of them.

python -m pytest -p pretended_gpu --collect-only -q tests/ops     (with this folder on PYTHONPATH)
"""

from __future__ import annotations

from unittest import mock

import pytest

from clasp_kernels import backends
from clasp_kernels.backends import table

choose = backends.choose


def choose_as_there(op: str, device: str, forced: str) -> backends.Choice:
    if device == "cuda" and forced in ("cuda", "triton"):
        return backends.Choice(forced if table.has_kernel(op, forced) else None, "pretended")
    return choose(op, device, forced)


# As conftest.py asks for a GPU when it is imported. Not by the import of this file, which whatever
# looks for doctests imports too.
@pytest.hookimpl(tryfirst=True)
def pytest_load_initial_conftests() -> None:
    for name, value in {
        "torch.cuda.is_available": lambda: True,
        "torch.cuda.device_count": lambda: 1,
        "torch.cuda.get_device_capability": lambda device=None: (9, 0),
        "clasp_kernels.backends.choose": choose_as_there,
    }.items():
        mock.patch(name, value).start()


def pytest_configure(config: pytest.Config) -> None:
    if not config.getoption("--collect-only"):
        raise pytest.UsageError("the GPU is pretended, so pass --collect-only")
