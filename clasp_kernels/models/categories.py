"""Assign a category to each prompt of a batch."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch

from clasp_kernels._warn import warn_caller
from clasp_kernels.policy import (
    CATEGORIES,
    FALLBACK_CATEGORY,
    Profile,
    RouterLike,
    route_prompts,
)


def tokenizer_on_disk(model: Any) -> Any | None:
    """Load the tokenizer of a model's weights from disk; return None if there is none.

    It is looked up in the folder the weights were loaded from, or in the hub cache. The network is
    not used.
    """
    from transformers import AutoTokenizer

    source = getattr(model, "name_or_path", "")
    if not source:
        return None
    revision = getattr(model.config, "_commit_hash", None) or "main"
    try:
        return AutoTokenizer.from_pretrained(source, revision=revision, local_files_only=True)
    # A tokenizer that is missing, damaged or needs a missing library raises errors of many types.
    # All mean that prompts cannot be decoded; the first prompt then gives a warning.
    except Exception:
        return None


@dataclass
class PromptCategories:
    """Resolve the category of each prompt: the caller's if given, else the router's."""

    profile: Profile
    router: RouterLike
    tokenizer: Any | None
    token_ids: tuple[int, ...]
    """Placeholder ids, which are removed before decoding."""
    warned: bool = False
    """Whether the warning that prompts cannot be decoded was given."""

    def resolve(
        self,
        categories: str | Sequence[str] | None,
        num_prompts: int,
        input_ids: torch.Tensor | None,
        attention_mask: torch.Tensor | None,
    ) -> tuple[str, ...]:
        """Return one category of the profile for each of ``num_prompts`` prompts."""
        if categories is not None:
            return self._check(categories, num_prompts)
        if input_ids is None:
            raise ValueError(
                "prompts given as inputs_embeds have no text to route; pass categories=, one of "
                f"{', '.join(self.profile.category_names)} per prompt"
            )
        if self.tokenizer is None:
            self._warn_unread()
            return (FALLBACK_CATEGORY,) * num_prompts
        return self._route(self._texts(input_ids, attention_mask))

    def _warn_unread(self) -> None:
        if self.warned:
            return
        self.warned = True
        warn_caller(
            f"the router cannot read the prompts, as no tokenizer was found on disk beside the "
            f"model's weights: every prompt is {FALLBACK_CATEGORY!r}. Pass processor= to "
            f"apply_clasp(), or categories= to generate() or forward(), one of "
            f"{', '.join(self.profile.category_names)} per prompt"
        )

    def _check(self, categories: str | Sequence[str], num_prompts: int) -> tuple[str, ...]:
        if isinstance(categories, str):
            categories = [categories] * num_prompts
        if not isinstance(categories, (list, tuple)):
            raise TypeError(
                f"categories must be a category name or a list of them, one per prompt, got "
                f"{type(categories).__name__}"
            )
        if len(categories) != num_prompts:
            raise ValueError(
                f"categories must name one category per prompt: got {len(categories)} for "
                f"{num_prompts} prompts"
            )
        for index, name in enumerate(categories):
            if not isinstance(name, str):
                raise TypeError(
                    f"categories must hold category names, got {name!r} for prompt {index}"
                )
            self.profile.category_id(name)  # raises for an unknown name
        return tuple(categories)

    def _texts(self, input_ids: torch.Tensor, attention_mask: torch.Tensor | None) -> list[str]:
        wanted = torch.ones_like(input_ids, dtype=torch.bool)
        for token_id in self.token_ids:
            wanted &= input_ids != token_id
        if attention_mask is not None:
            wanted &= attention_mask[:, -input_ids.shape[1] :].to(wanted.device).bool()
        # Special tokens stay: routers split turns at them.
        return [
            self.tokenizer.decode(row[keep].tolist())  # type: ignore[union-attr]
            for row, keep in zip(input_ids.cpu(), wanted.cpu(), strict=True)
        ]

    def _route(self, texts: list[str]) -> tuple[str, ...]:
        known = dict.fromkeys((*self.profile.category_names, *CATEGORIES))
        answers = route_prompts(self.router, texts, known=tuple(known))
        # A router may know categories that the profile does not have.
        return tuple(
            name if name in self.profile.categories else FALLBACK_CATEGORY for name in answers
        )
