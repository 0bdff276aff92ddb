"""From pixels to the R tokens per image that the language model will see."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch

from clasp_kernels import attention_salience, fuse_layers, prune_tokens
from clasp_kernels.models.adapter import Adapter
from clasp_kernels.models.records import StageRecord
from clasp_kernels.models.stopwatch import Stopwatch
from clasp_kernels.policy import Profile
from clasp_kernels.upload import upload


@dataclass(frozen=True)
class KeptTokens:
    """The visual tokens of a batch of images after pruning."""

    features: torch.Tensor
    """[images, R, text width]; rows past an image's count are meaningless."""
    stage: StageRecord
    vision_stopwatch: Stopwatch

    def flat_features(self) -> torch.Tensor:
        """[sum of counts, text width]: every kept token, image after image."""
        images, width, _ = self.features.shape
        flat = self.features.reshape(images * width, -1)
        if all(count == width for count in self.stage.counts):
            return flat
        rows = [
            image * width + token
            for image, count in enumerate(self.stage.counts)
            for token in range(count)
        ]
        return flat[upload(rows, flat.device)]


@dataclass(frozen=True)
class TokenSelector:
    """How visual tokens are chosen: the settings of one ``apply_clasp`` call."""

    adapter: Adapter
    profile: Profile
    budget: int | float
    """Visual tokens kept per image, or, a float, the fraction of them."""
    fuse_into: str
    merge: bool

    def keep_counts(self, categories: Sequence[str]) -> list[int]:
        """Tokens kept of an image of each category."""
        limit = self.adapter.tokens_per_image
        wanted = self.budget * limit if isinstance(self.budget, float) else self.budget
        return [min(self.profile.budget(name, wanted), limit) for name in categories]

    def select(
        self, model: Any, pixel_values: torch.Tensor, categories: Sequence[str]
    ) -> KeptTokens:
        """Encode the images and keep the tokens that each image's category asks for."""
        counts = self.keep_counts(categories)
        device = pixel_values.device
        with Stopwatch(device) as vision_stopwatch:
            vision = self.adapter.encode(model, pixel_values)

        device = vision.key.device
        with Stopwatch(device) as stage_stopwatch:
            fused = fuse_layers(
                vision.fused_layers,
                upload(self.adapter.layers.weights, device, torch.float32),
                upload([self.profile.category_id(name) for name in categories], device),
                normalize=self.profile.normalize,
            )
            salience = attention_salience(
                vision.query, vision.key, scale=vision.scale, key_range=vision.key_range
            )
            pivots = [
                self.profile.pivot_count(name, count)
                for name, count in zip(categories, counts, strict=True)
            ]
            tokens, selection = prune_tokens(
                fused if self.fuse_into == "projector" else vision.features,
                fused,
                salience,
                counts,
                pivots,
                merge=self.merge,
            )
        stage = StageRecord(
            layer=None,
            indices=selection.indices,
            is_pivot=selection.is_pivot,
            tokens_before=self.adapter.tokens_per_image,
            tokens_after=selection.indices.shape[1],
            counts=tuple(counts),
            stopwatch=stage_stopwatch,
        )
        return KeptTokens(self.adapter.project(model, tokens), stage, vision_stopwatch)
