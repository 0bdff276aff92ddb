"""The base of all pruned models of the harness."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable
from typing import Any

import torch
from transformers import AutoConfig, AutoModelForImageTextToText, AutoTokenizer

from clasp_kernels.integrations.lmms_eval.settings import parse_settings
from clasp_kernels.models import ClaspHandle, apply_clasp


class GenerationError(BaseException):
    """``generate`` failed, so the run has no result.

    Not an ``Exception``: the harness catches those, scores an empty answer in their place, and
    its command line exits with 0.
    """


class Pruned:
    """Mixin for a model of the harness: prune what it has loaded.

    It comes first among the bases. Arguments that are not listed here are those of the harness's
    model.

    Args:
        budget, schedule, rule, profile, positions, merge: as in ``parse_settings``. They are
            checked on a model without weights, before any weights are loaded.
    """

    handle: ClaspHandle
    """The handle of the patched model. ``handle.last`` tells what the last prompt kept."""

    # The harness's models set these.
    model: Any
    tokenizer: Any

    def __init__(
        self,
        *,
        budget: int | float | None = None,
        schedule: str | None = None,
        rule: str | None = None,
        profile: str | None = None,
        positions: str = "original",
        merge: bool = False,
        **harness: Any,
    ) -> None:
        settings = parse_settings(
            budget=budget,
            schedule=schedule,
            rule=rule,
            profile=profile,
            positions=positions,
            merge=merge,
        )
        of_model = inspect.signature(super().__init__).parameters
        _rehearse(harness.get("pretrained", of_model["pretrained"].default), settings)
        super().__init__(**harness)
        self.handle = apply_clasp(self.model, processor=self.tokenizer, **settings)
        self.model.generate = _failing_loudly(self.model.generate)

    def clean(self) -> None:
        """Drop the model, which the handle would keep in memory."""
        self.handle.remove()
        del self.handle
        super().clean()  # type: ignore[misc]


def _rehearse(pretrained: str, settings: dict[str, Any]) -> None:
    """Apply the settings to the model without its weights, so that an error comes first."""
    config = AutoConfig.from_pretrained(pretrained)
    with torch.device("meta"):
        skeleton = AutoModelForImageTextToText.from_config(config)
    tokenizer = AutoTokenizer.from_pretrained(pretrained)
    apply_clasp(skeleton, processor=tokenizer, **settings)


def _failing_loudly(generate: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(generate)
    def generate_or_stop(*args: Any, **kwargs: Any) -> Any:
        try:
            return generate(*args, **kwargs)
        except Exception as error:
            raise GenerationError(f"generate failed: {error}") from error

    return generate_or_stop
