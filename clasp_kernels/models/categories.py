"""From a batch of prompts to one category each."""

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
    """The tokenizer that belongs to a model's weights, if it is on disk; the network is not asked.

    That is the folder the weights were loaded from, or the cache of the hub.
    """
    from transformers import AutoTokenizer

    source = getattr(model, "name_or_path", "")
    if not source:
        return None
    revision = getattr(model.config, "_commit_hash", None) or "main"
    try:
        return AutoTokenizer.from_pretrained(source, revision=revision, local_files_only=True)
    # A tokenizer that is missing, damaged or needs a library that is not installed raises errors of
    # many kinds. Each means that prompts cannot be read; the first prompt brings the warning.
    except Exception:
        return None


@dataclass
class PromptCategories:
    """Decides the category of prompts: the caller's word, else the router's."""

    profile: Profile
    router: RouterLike
    tokenizer: Any | None
    token_ids: tuple[int, ...]
    """Of the placeholders, which are no words."""
    warned: bool = False
    """Whether it was said that prompts cannot be read."""

    def resolve(
        self,
        categories: str | Sequence[str] | None,
        num_prompts: int,
        input_ids: torch.Tensor | None,
        attention_mask: torch.Tensor | None,
    ) -> tuple[str, ...]:
        """One category for each of ``num_prompts`` prompts, all of them in the profile."""
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
            self.profile.category_id(name)  # raises for an unknown one, listing the known
        return tuple(categories)

    def _texts(self, input_ids: torch.Tensor, attention_mask: torch.Tensor | None) -> list[str]:
        wanted = torch.ones_like(input_ids, dtype=torch.bool)
        for token_id in self.token_ids:
            wanted &= input_ids != token_id
        if attention_mask is not None:
            wanted &= attention_mask[:, -input_ids.shape[1] :].to(wanted.device).bool()
        # Special tokens stay: routers tell turns apart by them.
        return [
            self.tokenizer.decode(row[keep].tolist())  # type: ignore[union-attr]
            for row, keep in zip(input_ids.cpu(), wanted.cpu(), strict=True)
        ]

    def _route(self, texts: list[str]) -> tuple[str, ...]:
        known = dict.fromkeys((*self.profile.category_names, *CATEGORIES))
        answers = route_prompts(self.router, texts, known=tuple(known))
        # A profile need not tell apart all that a router can.
        return tuple(
            name if name in self.profile.categories else FALLBACK_CATEGORY for name in answers
        )
