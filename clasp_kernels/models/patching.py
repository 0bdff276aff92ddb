"""Replacing methods of one object, and putting it back exactly as it was."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable, Mapping
from typing import Any


class PatchedMethod:
    """Stands where a method was, with a signature for those who inspect it.

    An object rather than a closure: ``copy.deepcopy(model)`` copies what it refers to, so that a
    copied model runs on its own weights, where a closure would still reach the first model's.
    """

    def __init__(self, replacement: Callable[..., Any], signature: inspect.Signature) -> None:
        self.replacement = replacement
        self.patches: InstancePatches | None = None
        """Those it is one of: copied with it, they know the copy's own methods."""
        # Without annotations, which may hold what cannot be pickled: a model can be saved whole.
        self.__signature__ = signature.replace(
            parameters=[
                parameter.replace(annotation=inspect.Parameter.empty)
                for parameter in signature.parameters.values()
            ],
            return_annotation=inspect.Signature.empty,
        )

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return self.replacement(*args, **kwargs)


class InstancePatches:
    """Attributes set on one object, over its class or over what it had of its own.

    >>> class Cat:
    ...     def speak(self): return "miaow"
    >>> tom = Cat()
    >>> patches = InstancePatches(tom, {"speak": lambda: "purr"})
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

    def __init__(self, target: object, attributes: Mapping[str, Any]) -> None:
        self._target = target
        self._installed = dict(attributes)
        # Frameworks patch instances too (device hooks replace forward); theirs come back.
        self._replaced = {name: vars(target)[name] for name in attributes if name in vars(target)}
        for done, (name, value) in enumerate(attributes.items(), start=1):
            setattr(target, name, value)
            if isinstance(value, PatchedMethod):
                value.patches = self
            if vars(target).get(name) is not value:
                self._restore(list(attributes)[:done])
                raise TypeError(
                    f"{type(target).__name__} cannot be patched: it does not keep what "
                    f"{name!r} is set to, as wrappers around a model do not; give the model inside"
                )

    @property
    def removed(self) -> bool:
        return not self._installed

    def remove(self) -> None:
        """Undo, or raise RuntimeError and change nothing if someone has patched on top.

        Doing so again changes nothing.
        """
        for name, value in self._installed.items():
            if vars(self._target).get(name) is not value:
                raise RuntimeError(
                    f"{type(self._target).__name__}.{name} was replaced after apply_clasp; undo "
                    f"that first, so that what it wraps stays in place"
                )
        self._restore(self._installed)
        self._installed = {}

    def _restore(self, names: Iterable[str]) -> None:
        for name in names:
            if name in self._replaced:
                setattr(self._target, name, self._replaced[name])
            else:
                delattr(self._target, name)
