"""Choice of the backend that serves an op: one module per backend and one chooser."""

from .chooser import Choice, choose, overload
from .forcing import ENVIRONMENT, NAMES, forced_backend, use_backend
from .report import BackendReport, ServedOp, backend_report

__all__ = [
    "ENVIRONMENT",
    "NAMES",
    "BackendReport",
    "Choice",
    "ServedOp",
    "backend_report",
    "choose",
    "forced_backend",
    "overload",
    "use_backend",
]
