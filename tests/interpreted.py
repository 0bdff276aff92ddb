"""Make Triton's interpreter take half the time, with the same results."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable
from typing import Any


def make_interpreter_faster() -> None:
    """Save the interpreter work that it repeats for each call of a function and for each value.

    Whenever a kernel calls another function, the interpreter replaces the functions of
    triton.language again, although it has done so at the launch and undoes it only when that ends.
    For each value, it makes a table of all data types. Where a release of Triton has other
    internals, nothing is changed.
    """
    try:
        from triton.runtime import interpreter

        replace, np_dtype = interpreter._patch_lang, interpreter._get_np_dtype
        scope_type = interpreter._LangPatchScope
    except (ImportError, AttributeError):
        return
    languages = (interpreter.tl, interpreter.tl.core)

    @functools.cache
    def imported(function: Callable[..., Any]) -> frozenset[str]:
        modules = filter(inspect.ismodule, list(function.__globals__.values()))
        return frozenset(module.__name__ for module in modules if module in languages)

    launch = scope_type()  # that of the launch in progress; has no changes once that is over
    replaced: set[str] = set()  # since the launch began

    def replace_once(function: Callable[..., Any]) -> Any:
        nonlocal launch
        if not launch._changes:
            replaced.clear()
        elif imported(function) <= replaced:
            return scope_type()
        scope = replace(function)
        if not launch._changes:
            launch = scope
        replaced.update(imported(function))
        return scope

    dtypes: dict[str, Any] = {}

    def known_np_dtype(dtype: Any) -> Any:
        if dtype.name not in dtypes:
            dtypes[dtype.name] = np_dtype(dtype)
        return dtypes[dtype.name]

    interpreter._patch_lang, interpreter._get_np_dtype = replace_once, known_np_dtype
