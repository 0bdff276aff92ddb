"""Tells whether vLLM still calls what the plugin overrides."""

from __future__ import annotations

import inspect
from collections.abc import Iterable


def check_overrides(overriding: type, base: type, methods: Iterable[str]) -> None:
    """Check that every overridden method is there, with the parameters that the plugin expects.

    A method that vLLM has renamed would never be called, and nothing would be pruned.

    Raises:
        ImportError: a method is missing or has other parameters.
    """
    for name in methods:
        expected = list(inspect.signature(getattr(overriding, name)).parameters)
        found = getattr(base, name, None)
        given = None if found is None else list(inspect.signature(found).parameters)
        if given != expected:
            there = "is not there" if given is None else f"takes {', '.join(given)}"
            raise ImportError(
                f"the plugin of clasp_kernels does not fit the vLLM that is installed: "
                f"{base.__name__}.{name} must take {', '.join(expected)}, but {there}. "
                f"docs/vllm.md names the releases that were tested."
            )
