"""Capture the query and key of one attention module from its own forward.

Attention modules in transformers compute query and key, and pass them to the function that their
config names (``_attn_implementation``): SDPA, FlashAttention or eager. While a listener is active,
the module's config names ``_capture`` instead, which stores query and key and calls the model's own
function. So nothing is computed twice, no attention matrix is materialised, and the layer's norms,
projections and rotary embeddings are not reimplemented here.
"""

from __future__ import annotations

import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import Any

import torch

from clasp_kernels.models.patching import Patch

_IMPLEMENTATION = "clasp_kernels_capture"


@dataclass
class CapturedAttention:
    """Query and key of one attention module, None until its forward has run."""

    query: torch.Tensor | None = None
    """[batch, heads, T, head_dim]."""
    key: torch.Tensor | None = None
    """[batch, key heads, S, head_dim]."""
    scale: float | None = None
    """The factor of the query-key products."""
    calls: list[tuple[torch.Tensor, torch.Tensor]] = field(default_factory=list)
    """Query and key of every call. Some modules call attention once per sequence."""
    bounds: torch.Tensor | None = None
    """Cumulative lengths of the sequences packed into one call (FlashAttention's cu_seq_lens)."""

    def sequences(self) -> list[tuple[torch.Tensor, torch.Tensor]]:
        """Return query and key of every sequence, [1, heads, length, head_dim] each."""
        if len(self.calls) > 1 or self.bounds is None:
            return self.calls
        lengths = self.bounds.diff().tolist()
        [(query, key)] = self.calls
        return list(zip(query.split(lengths, dim=2), key.split(lengths, dim=2), strict=True))

    def every(self, repeats: int) -> CapturedAttention:
        """Return one row per prompt, for prompts with ``repeats`` rows each."""
        assert self.query is not None and self.key is not None
        return CapturedAttention(self.query[::repeats], self.key[::repeats], self.scale)


class AttentionListener:
    """Captures query and key of one attention module. Needs its ``patch()`` to be applied."""

    def __init__(self, attention: torch.nn.Module) -> None:
        """
        Raises:
            TypeError: the module has no config that names its attention function.
        """
        config: Any = getattr(attention, "config", None)
        if not hasattr(config, "_attn_implementation"):
            raise TypeError(
                f"{type(attention).__name__} has no config that names its attention function, so "
                f"its query and key cannot be captured"
            )
        _register()
        self._name = type(attention).__name__
        self._config = _ListeningConfig(config)

    def patch(self, attention: torch.nn.Module) -> Patch:
        """Return the patch of the module that ``listen`` needs. It only acts during ``listen``."""
        return Patch(attention, "config", self._config)

    @contextmanager
    def listen(self) -> Iterator[CapturedAttention]:
        """Capture the module's next forward in this thread; at the end, check that it ran.

        Raises:
            RuntimeError: the module's forward did not run, or did not use its config.
        """
        global _listeners
        captured = CapturedAttention()
        before = _listening.set((self._config, captured))
        with _counting:
            _listeners += 1
        try:
            yield captured
        finally:
            with _counting:
                _listeners -= 1
            _listening.reset(before)
        if captured.query is None:
            raise RuntimeError(
                f"{self._name} ran without the attention function that its "
                f"config names, so its query and key were not captured: if it was replaced after "
                f"apply_clasp, apply again; `clasp doctor --verify` tells what works with the "
                f"installed transformers"
            )


class _ListeningConfig:
    """Proxy of a config that names ``_capture`` as attention function during ``listen``."""

    def __init__(self, config: Any) -> None:
        vars(self)["_config"] = config

    def __getattr__(self, name: str) -> Any:
        # Reading a context variable breaks the graph of compiled code; reading a number does not.
        if name == "_attn_implementation" and _listeners > 0:
            listening = _listening.get()
            if listening is not None and listening[0] is self:
                return _IMPLEMENTATION
        return getattr(self._config, name)

    def __setattr__(self, name: str, value: Any) -> None:
        setattr(self._config, name, value)

    def __reduce__(self) -> tuple[Any, ...]:  # __getattr__ would fail on a half-built copy
        return _ListeningConfig, (self._config,)


# Number of active listeners in all threads. At 0, the context variable is not read.
_listeners = 0
_counting = threading.Lock()

# A context variable, so that forwards in other threads and tasks are not captured.
_listening: ContextVar[tuple[_ListeningConfig, CapturedAttention] | None] = ContextVar(
    "clasp_kernels_listening", default=None
)


def _capture(
    module: Any,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: Any,
    **kwargs: Any,
) -> Any:
    """Store query and key, then call the model's own attention function."""
    from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

    listening = _listening.get()
    assert listening is not None, "the config names this function only while someone listens"
    captured = listening[1]
    captured.query, captured.key = query, key
    captured.calls.append((query, key))
    captured.bounds = kwargs.get("cu_seq_lens_q")
    scaling = kwargs.get("scaling")
    captured.scale = query.shape[-1] ** -0.5 if scaling is None else float(scaling)
    before = _listening.set(None)  # from here the config names the model's own function
    try:
        eager: Any = getattr(sys.modules[type(module).__module__], "eager_attention_forward", None)
        own = module.config._attn_implementation
        function = ALL_ATTENTION_FUNCTIONS.get_interface(own, eager)
        return function(module, query, key, value, attention_mask, **kwargs)
    finally:
        _listening.reset(before)


def _register() -> None:
    from transformers import AttentionInterface

    AttentionInterface.register(_IMPLEMENTATION, _capture)
