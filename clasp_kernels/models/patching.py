"""Replacing attributes of objects, and putting them back exactly as they were."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple


class Patch(NamedTuple):
    """One attribute to set on one object."""

    target: object
    name: str
    value: Any


class PatchedMethod:
    """Stands where a method was, with a signature for those who inspect it.

    An object rather than a closure: ``copy.deepcopy(model)`` copies what it refers to, so that a
    copied model runs on its own weights, where a closure would still reach the first model's.
    """

    def __init__(self, replacement: Callable[..., Any], signature: inspect.Signature) -> None:
        self.replacement = replacement
        self.patches: InstancePatches | None = None
        """Those it is one of: copied with it, they know the copy's own methods."""
        self.__signature__ = signature

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return self.replacement(*args, **kwargs)


class InstancePatches:
    """Attributes set on objects, over their classes' or over what they had of their own.

    >>> class Cat:
    ...     def speak(self): return "miaow"
    >>> tom = Cat()
    >>> patches = InstancePatches([Patch(tom, "speak", lambda: "purr")])
    >>> tom.speak(), patches.remove(), tom.speak(), vars(tom)
    ('purr', None, 'miaow', {})
    """

    @staticmethod
    def of(target: object) -> InstancePatches | None:
        """The patches that an object carries, be it a copy of the one they were made for."""
        for value in vars(target).values():
            if isinstance(value, PatchedMethod):
                return value.patches
        return None

    def __init__(self, patches: Sequence[Patch]) -> None:
        """Set every attribute, or none and raise a TypeError."""
        self._installed = list(patches)
        # Frameworks patch instances too (device hooks replace forward); theirs come back.
        self._replaced = [vars(patch.target).get(patch.name, _ABSENT) for patch in patches]
        for done, patch in enumerate(patches, start=1):
            setattr(patch.target, patch.name, patch.value)
            if isinstance(patch.value, PatchedMethod):
                patch.value.patches = self
            if not _is_in_place(patch):
                self._restore(done)
                raise TypeError(
                    f"{type(patch.target).__name__} cannot be patched: it does not keep what "
                    f"{patch.name!r} is set to, as wrappers around a model do not; give the model "
                    f"inside"
                )

    @property
    def removed(self) -> bool:
        return not self._installed

    def remove(self) -> None:
        """Undo, or raise RuntimeError and change nothing if someone has patched on top.

        Doing so again changes nothing.
        """
        for patch in self._installed:
            if not _is_in_place(patch):
                raise RuntimeError(
                    f"{type(patch.target).__name__}.{patch.name} was replaced after apply_clasp; "
                    f"undo that first, so that what it wraps stays in place"
                )
        self._restore(len(self._installed))
        self._installed = []

    @contextmanager
    def lifted(self) -> Iterator[None]:
        """The objects as they were, for the length of a ``with`` block."""
        installed = self._installed
        self.remove()
        try:
            yield
        finally:
            for patch in installed:
                setattr(patch.target, patch.name, patch.value)
            self._installed = installed

    def _restore(self, count: int) -> None:
        for patch, replaced in zip(self._installed[:count], self._replaced, strict=False):
            if replaced is _ABSENT:
                delattr(patch.target, patch.name)
            else:
                setattr(patch.target, patch.name, replaced)


class _Absent:
    """Marks an attribute that an object did not have of its own; a copy of it is itself."""

    def __deepcopy__(self, memo: dict[int, Any]) -> _Absent:
        return self

    def __reduce__(self) -> str:
        return "_ABSENT"


_ABSENT = _Absent()


def _is_in_place(patch: Patch) -> bool:
    return vars(patch.target).get(patch.name, _ABSENT) is patch.value
