"""The report of which backend serves each op here, and why."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import torch

from . import chooser, cpu, cuda, table
from .forcing import forced_backend


class ServedOp(NamedTuple):
    """One line of :func:`backend_report`."""

    op: str
    device: str
    backend: str | None
    reason: str


@dataclass(frozen=True)
class BackendReport:
    """Which backend serves each op here, and why. Printing it gives a table."""

    forced: str
    """"auto", or the backend forced in this context."""
    native: cpu.CpuStatus
    cuda: cuda.CudaStatus
    ops: tuple[ServedOp, ...]

    def __str__(self) -> str:
        lines = [
            f"torch {torch.__version__}, backend: {self.forced}",
            f"C++ extension: {'loaded' if self.native.loaded else 'not loaded'}, "
            f"{self.native.reason}",
            f"instruction set: {self.native.capability or 'none'}",
            f"CUDA extension: {'loaded' if self.cuda.loaded else 'not loaded'}, {self.cuda.reason}",
        ]
        cells = [(row.op, row.device, row.backend or "none") for row in self.ops]
        widths = [max(len(cell[column]) for cell in cells) for column in range(3)]
        for cell, row in zip(cells, self.ops, strict=True):
            padded = "  ".join(text.ljust(width) for text, width in zip(cell, widths, strict=True))
            lines.append(f"{padded}  {row.reason}")
        return "\n".join(lines)


def backend_report() -> BackendReport:
    """Reports which backend serves each op on the devices of this machine, and why.

    Raises:
        RuntimeError: ``CLASP_KERNELS_CPU_CAPABILITY`` names an unavailable instruction set.

    >>> from clasp_kernels import backend_report, use_backend
    >>> with use_backend("reference"):
    ...     report = backend_report()
    >>> {row.backend for row in report.ops}
    {'reference'}
    """
    devices = ("cpu", "cuda") if torch.cuda.is_available() else ("cpu",)
    forced = forced_backend()
    native = cpu.load()
    native.check()
    rows = [
        ServedOp(op, device, *chooser.choose(op, device, forced))
        for op in sorted(table.OPS)
        for device in devices
    ]
    return BackendReport(forced, native, cuda.load(), tuple(rows))
