"""Time the phases of one answer."""

from __future__ import annotations

import time
from contextlib import ExitStack
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch

    from clasp_kernels.models import PrefillRecord


@dataclass(frozen=True)
class Phases:
    """Seconds of one answer by phase. ``total`` includes the time between the phases."""

    vision: float
    selection: float
    prefill: float
    decode: float
    total: float
    first_token: float = 0.0
    """From the call of ``generate`` to the first new token: vision, selection, prefill, and what is
    between them."""


class PhaseClock:
    """Times the vision tower, the prefill, the decode steps and the whole answer.

    Forward hooks time the vision tower and the decoder, so the unpruned and the pruned model are
    timed at the same places. The clock is also the ``streamer`` of ``generate``, which is called
    for each new token.
    """

    def __init__(self, model: Any) -> None:
        self._model = model
        self._hooks = ExitStack()
        self._spent: dict[str, float] = {}
        self._entered: dict[str, float] = {}
        self._tokens_at: list[float] = []
        self._started = 0.0
        self._ended = 0.0

    def __enter__(self) -> PhaseClock:
        self._hook("vision", self._model.get_encoder(modality="image"))
        self._hook("decoder", self._model.get_decoder())
        self._started = self._now()
        return self

    def __exit__(self, *_: object) -> None:
        self._ended = self._now()
        self._hooks.close()

    def put(self, value: torch.Tensor) -> None:
        """Streamer interface: called with the prompt, then with each new token."""
        self._tokens_at.append(self._now())

    def end(self) -> None:
        """Streamer interface: called at the end of generation."""

    def phases(self, record: PrefillRecord | None) -> Phases:
        first_token, last_token = self._tokens_at[1], self._tokens_at[-1]
        vision, prefill = self._spent["vision"], self._spent["decoder"]
        selection = 0.0
        if record is not None:
            # encode() takes longer than the tower alone: the difference counts as selection.
            selection = max(0.0, record.vision_seconds - vision) + record.selection_seconds
            # The decoder's time includes the stages inside it.
            inside = sum(stage.seconds for stage in record.stages if stage.layer is not None)
            prefill = max(0.0, prefill - inside)
        return Phases(
            vision=vision,
            selection=selection,
            prefill=prefill,
            decode=last_token - first_token,
            total=self._ended - self._started,
            first_token=first_token - self._started,
        )

    def _hook(self, name: str, module: torch.nn.Module) -> None:
        def enter(*_: object) -> None:
            if name not in self._spent:
                self._entered[name] = self._now()

        def leave(*_: object) -> None:
            if name not in self._spent:  # the decoder's later calls are decode steps
                self._spent[name] = self._now() - self._entered[name]

        self._hooks.callback(module.register_forward_pre_hook(enter).remove)
        self._hooks.callback(module.register_forward_hook(leave).remove)

    def _now(self) -> float:
        import torch

        if self._model.device.type == "cuda":
            torch.cuda.synchronize(self._model.device)
        return time.perf_counter()
