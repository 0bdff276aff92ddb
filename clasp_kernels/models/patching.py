"""Replace methods of one model instance and attributes of its parts, reversibly.

The class of a patched model becomes a subclass of its own class that defines the new methods.
Unlike methods set on an instance, methods of a class are bound to the copy, the unpickled model or
the DataParallel replica that they are called on. accelerate and FSDP wrap, re-bind and unwrap
``forward``, and find an ordinary method. A reference to a patched method that someone kept calls
the original once the patches are removed.
"""

from __future__ import annotations

import inspect
import uuid
import weakref
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from types import MethodType
from typing import Any, NamedTuple

# The attribute of a patched object that holds its MethodPatches.
_RECORD = "_clasp_patches"
# The attribute in which accelerate keeps the forward that a device hook wraps.
_HOOKED = "_old_forward"

Replacement = Callable[..., Any]
"""Called with the model, the original method bound to it, and the caller's arguments."""


class Patch(NamedTuple):
    """One attribute to set on one object."""

    target: object
    name: str
    value: Any


class AttributePatches:
    """Set attributes on instances, and restore what was there.

    >>> class Cat:
    ...     sound = "miaow"
    >>> tom = Cat()
    >>> patches = AttributePatches([Patch(tom, "sound", "purr")])
    >>> tom.sound, patches.restore(), tom.sound, vars(tom)
    ('purr', None, 'miaow', {})
    """

    def __init__(self, patches: Sequence[Patch]) -> None:
        """Set every attribute. If one cannot be set, undo the others and raise a TypeError."""
        self._patches = list(patches)
        self._replaced = [vars(patch.target).get(patch.name, _ABSENT) for patch in patches]
        self.set()

    def set(self) -> None:
        """Set every attribute. If one cannot be set, undo the others and raise a TypeError."""
        for done, patch in enumerate(self._patches, start=1):
            setattr(patch.target, patch.name, patch.value)
            if not _is_in_place(patch):
                for earlier, replaced in zip(self._patches[:done], self._replaced, strict=False):
                    _put_back(earlier, replaced)
                raise TypeError(
                    f"{type(patch.target).__name__} cannot be patched: it does not keep what "
                    f"{patch.name!r} is set to"
                )

    def restore(self) -> None:
        """Restore the previous values. An attribute that someone else has set since stays."""
        for patch, replaced in zip(self._patches, self._replaced, strict=True):
            if _is_in_place(patch):
                _put_back(patch, replaced)


class MethodPatches:
    """Replace methods of one object, together with attributes of other objects.

    >>> class Cat:
    ...     def speak(self): return "miaow"
    >>> tom = Cat()
    >>> loudly = {"speak": lambda cat, original: original().upper()}
    >>> patches = MethodPatches(tom, loudly, {"speak": inspect.signature(tom.speak)})
    >>> tom.speak(), patches.remove(tom), tom.speak(), vars(tom)
    ('MIAOW', None, 'miaow', {})
    """

    @staticmethod
    def of(target: object) -> MethodPatches | None:
        """Return the installed patches of an object, or None. A copy of a patched object has them
        too."""
        patches: MethodPatches | None = vars(target).get(_RECORD)
        if patches is None or not patches.installed:
            return None
        patches._claim(target)
        return patches

    def __init__(
        self,
        target: Any,
        methods: Mapping[str, Replacement],
        signatures: Mapping[str, inspect.Signature],
        attributes: Sequence[Patch] = (),
        parts: Iterable[tuple[Any, MethodPatches]] = (),
        check: Callable[[], None] | None = None,
        token: str | None = None,
    ) -> None:
        """Replace every method and set every attribute, or change nothing and raise a TypeError.

        ``signatures`` are the signatures that the new methods show, without ``self``. ``parts``
        yields other objects with their patches, which are removed together with these; if one of
        them raises, those already made are removed. ``check`` is called before removal and raises
        if the patches must stay for now. Objects of one class with the same ``token`` and methods
        share one patched class, so code that is compiled for it is shared too.
        """
        self.installed = False
        # A strong reference would make a cycle and keep the target alive.
        self._owner: weakref.ref[Any] | None = weakref.ref(target)
        self._token = token or uuid.uuid4().hex
        self._methods = dict(methods)
        self._signatures = dict(signatures)
        self._set_aside: dict[str, Any] = {}
        self._earlier: MethodPatches | None = None
        self._parts: list[tuple[Any, MethodPatches]] = []
        self._check = check
        try:
            self._parts.extend(parts)
            self._attributes = AttributePatches(attributes)
            try:
                self._install(target)
            except TypeError:
                self._attributes.restore()
                raise
        except TypeError:
            for part, patches in self._parts:
                patches.remove(part)
            raise

    def remove(self, target: Any) -> None:
        """Restore the original methods and attributes of an object that carries these patches.

        ``target`` is the owner or a shallow copy of it; deep copies have patches of their own. A
        wrapper that was put around a method since stays, and then wraps the original. A second
        call does nothing.
        """
        if self._claim(target):
            if self.installed and self._check is not None:
                self._check()
            self._attributes.restore()
            self.installed = False
            for part, patches in self._parts:
                patches.remove(part)
        self._take_out(target)

    @contextmanager
    def lifted(self) -> Iterator[None]:
        """Disable the patches within a ``with`` block: the methods call the originals."""
        if self._check is not None:
            self._check()
        self._attributes.restore()
        everyone = [self, *(patches for _, patches in self._parts)]
        for patches in everyone:
            patches.installed = False
        try:
            yield
        finally:
            self._attributes.set()
            for patches in everyone:
                patches.installed = True

    def _claim(self, target: Any) -> bool:
        """Return whether an object owns these patches. Copied patches have no owner yet: the first
        object that asks becomes it."""
        if self._owner is None or self._owner() is None:
            self._owner = weakref.ref(target)
        return self._owner() is target

    def __getstate__(self) -> dict[str, Any]:
        return {**vars(self), "_owner": None}  # the copy of these patches gets another owner

    def _install(self, target: Any) -> None:
        own, of_its_own = type(target), vars(target)
        # Methods on the instance are wrappers that others have set, such as device hooks.
        set_aside = {name: of_its_own[name] for name in self._methods if name in of_its_own}
        hooked = "forward" in set_aside and _is_bound(of_its_own.get(_HOOKED), target, own.forward)
        if hooked:
            # The hook must wrap the new forward too, which needs the weights that it loads.
            del set_aside["forward"]
        try:
            target.__class__ = _patched_class(own, self._token, self._signatures)
        except TypeError as error:
            raise TypeError(f"{own.__name__} cannot be patched: {error}") from None
        for name in set_aside:
            del of_its_own[name]
        if hooked:
            _rehook(target, type(target).forward)
        self._set_aside, self._earlier = set_aside, of_its_own.get(_RECORD)
        of_its_own[_RECORD] = self
        self.installed = True

    def _take_out(self, target: Any) -> None:
        of_its_own = vars(target)
        if of_its_own.get(_RECORD) is not self:
            return
        patched = self._class_of(target)
        if _is_bound(of_its_own.get(_HOOKED), target, getattr(patched, "forward", None)):
            _rehook(target, getattr(patched.__base__, "forward", None))
        # If FSDP has subclassed the patched class, it stays in the MRO and calls the original.
        if patched is type(target):
            target.__class__ = patched.__base__
        wrapped = any(name in of_its_own for name in self._set_aside)
        for name, value in self._set_aside.items():
            of_its_own.setdefault(name, value)
        if wrapped:  # the wrapper calls the patched method, which looks up _set_aside in the record
            return
        if self._earlier is None:
            del of_its_own[_RECORD]
        else:
            of_its_own[_RECORD] = self._earlier

    def _class_of(self, target: Any) -> type | None:
        """Return the patched class from the object's MRO, or None."""
        classes = type(target).__mro__
        return next((known for known in classes if vars(known).get(_RECORD) == self._token), None)

    def _is_put_back(self, target: Any, name: str, value: Any) -> bool:
        """Return whether ``value`` undoes a wrapper: it is the patched method or the original."""
        patched = self._class_of(target)
        assert patched is not None, "asked by a method of that class"
        original, set_aside = getattr(patched.__base__, name), self._set_aside.get(name, _ABSENT)
        if isinstance(value, MethodType) and isinstance(value.__func__, MethodType):
            # accelerate unwraps a method as far as it can, and binds the result to the model again.
            value, wrapped = value.__func__, set_aside
            while hasattr(wrapped, "__wrapped__") and wrapped is not original:
                wrapped = wrapped.__wrapped__
            if wrapped is original:
                self._set_aside.pop(name)
        if _is_bound(value, target, original):
            self._set_aside.pop(name, None)  # a removed device hook sets the original again
            return True
        return value is set_aside or _is_bound(value, target, vars(patched)[name])


# Patched classes by token. Copies of an object share its class.
_classes: weakref.WeakValueDictionary[str, type] = weakref.WeakValueDictionary()


def _patched_class(own: Any, token: str, signatures: Mapping[str, inspect.Signature]) -> type:
    """Return a subclass of ``own`` that overrides each method in ``signatures``."""
    if token in _classes:
        return _classes[token]

    def set_attribute(self: Any, name: str, value: Any) -> None:
        patches = _carried(self, token) if name in signatures else None
        if patches is not None and patches.installed and patches._is_put_back(self, name, value):
            vars(self).pop(name, None)
        else:
            own.__setattr__(self, name, value)

    def reduce(self: Any, protocol: Any) -> Any:
        reduced = own.__reduce_ex__(self, max(2, protocol))
        if type(self) is not patched or not isinstance(reduced, tuple):
            return reduced
        return (_new_instance, (own, token, dict(signatures)), *reduced[2:])

    patched: type = type(own)(
        own.__name__,
        (own,),
        {
            "__module__": own.__module__,
            "__qualname__": own.__qualname__,
            "__doc__": own.__doc__,
            "__setattr__": set_attribute,
            "__reduce_ex__": reduce,
            _RECORD: token,
            **{name: _method(own, token, name, shown) for name, shown in signatures.items()},
        },
    )
    return _classes.setdefault(token, patched)


def _new_instance(own: Any, token: str, signatures: Mapping[str, inspect.Signature]) -> Any:
    patched: Any = _patched_class(own, token, signatures)
    return patched.__new__(patched)


def _method(own: Any, token: str, name: str, shown: inspect.Signature) -> Callable[..., Any]:
    def method(self: Any, *args: Any, **kwargs: Any) -> Any:
        original: Callable[..., Any] = partial(getattr(own, name), self)
        patches = _carried(self, token)
        if patches is not None:
            original = patches._set_aside.get(name, original)
            if patches.installed:
                return patches._methods[name](self, original, *args, **kwargs)
        return original(*args, **kwargs)

    # No __wrapped__: code that unwraps a wrapper around this method must stop at this method.
    method.__name__ = name
    method.__qualname__ = f"{own.__qualname__}.{name}"
    method.__doc__ = getattr(own, name).__doc__
    itself = inspect.Parameter("self", inspect.Parameter.POSITIONAL_ONLY)
    signature = shown.replace(parameters=[itself, *shown.parameters.values()])
    method.__signature__ = signature  # type: ignore[attr-defined]
    return method


def _is_bound(method: Any, target: Any, function: Any) -> bool:
    return (
        isinstance(method, MethodType) and method.__self__ is target and method.__func__ is function
    )


def _rehook(target: Any, function: Any) -> None:
    """Make a device hook call another forward and show its signature."""
    method = MethodType(function, target)
    vars(target)[_HOOKED] = method
    if hasattr(vars(target).get("forward"), "__wrapped__"):
        vars(target)["forward"].__wrapped__ = method


def _carried(target: Any, token: str) -> MethodPatches | None:
    """Return the patches with this ``token``, installed or removed, or None."""
    patches: MethodPatches | None = target.__dict__.get(_RECORD)
    while patches is not None and patches._token != token:
        patches = patches._earlier
    return patches


class _Absent:
    """Marks an attribute that an instance did not have. A copy of the marker is the marker."""

    def __deepcopy__(self, memo: dict[int, Any]) -> _Absent:
        return self

    def __reduce__(self) -> str:
        return "_ABSENT"


_ABSENT = _Absent()


def _is_in_place(patch: Patch) -> bool:
    return vars(patch.target).get(patch.name, _ABSENT) is patch.value


def _put_back(patch: Patch, replaced: Any) -> None:
    if replaced is _ABSENT:
        delattr(patch.target, patch.name)
    else:
        setattr(patch.target, patch.name, replaced)
