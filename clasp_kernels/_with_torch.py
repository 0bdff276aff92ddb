"""Registers the ops as soon as torch is imported, without importing torch itself.

A saved program looks for ``torch.ops.clasp_kernels`` after ``import clasp_kernels``, as after
importing any package of ops. Importing torch for that would make ``clasp --help`` ten times as
slow, so registration waits until something else imports torch.
"""

from __future__ import annotations

import importlib
import importlib.util
import sys
from types import ModuleType
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from importlib.abc import Loader
    from importlib.machinery import ModuleSpec

_PACKAGE = __name__.rpartition(".")[0]


def register_ops() -> None:
    """Registers the ops now if torch is imported, else when it is."""
    if "torch" in sys.modules:
        importlib.import_module(f"{_PACKAGE}.ops")
    else:
        sys.meta_path.insert(0, Waiting())


class Waiting:
    """A finder that delegates to the other finders and observes the import of torch.

    The ops may need a module of this package that is itself importing torch. They are therefore
    registered when the outermost import of torch or of this package ends.
    """

    def __init__(self) -> None:
        self._depth = 0

    def find_spec(self, name: str, path: object = None, target: object = None) -> ModuleSpec | None:
        if name != "torch" and not name.startswith(f"{_PACKAGE}."):
            return None
        for finder in sys.meta_path:
            find = None if finder is self else getattr(finder, "find_spec", None)
            spec: ModuleSpec | None = find(name, path, target) if find else None
            if spec is not None:
                if spec.loader is not None:
                    spec.loader = _Observed(spec.loader, self)  # type: ignore[assignment]
                return spec
        return None

    def execute(self, loader: Loader, module: ModuleType) -> None:
        self._depth += 1
        try:
            loader.exec_module(module)
        finally:
            self._depth -= 1
        if self._depth == 0 and "torch" in sys.modules and self in sys.meta_path:
            sys.meta_path.remove(self)
            importlib.import_module(f"{_PACKAGE}.ops")


class _Observed:
    """A loader that notifies ``waiting`` when a module is executed."""

    def __init__(self, loader: Loader, waiting: Waiting) -> None:
        self._loader = loader
        self._waiting = waiting

    def exec_module(self, module: ModuleType) -> None:
        if module.__spec__ is not None:
            module.__spec__.loader = self._loader
        module.__loader__ = self._loader
        self._waiting.execute(self._loader, module)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._loader, name)
