"""Select the visual tokens that stay, before the language model and at stages inside it."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache, partial
from typing import Any

import torch

from clasp_kernels import (
    Selection,
    fuse_layers,
    gather_tokens,
    merge_tokens,
    select_tokens,
)
from clasp_kernels.models.adapter import Adapter, VisionOutput
from clasp_kernels.models.layout import PromptImages, PrunedLayout
from clasp_kernels.models.places import token_places
from clasp_kernels.models.records import StageRecord
from clasp_kernels.models.selection_checks import check_selection
from clasp_kernels.models.stopwatch import Stopwatch
from clasp_kernels.policy import Profile, Schedule
from clasp_kernels.rules import PooledSelection, Rule, find_rule, pool_tokens
from clasp_kernels.rules.relevance import similarity_to
from clasp_kernels.upload import upload


@dataclass(frozen=True)
class KeptTokens:
    """The visual tokens of a batch of images that enter the language model."""

    features: torch.Tensor
    """[images, R, text width]; rows past an image's count are undefined."""
    indices: torch.Tensor
    """[images, R] int64: index of each token in its image, ascending, padded with -1."""
    counts: tuple[int, ...]
    """Number of kept tokens of each image."""
    is_pivot: torch.Tensor | None
    """[images, R] bool, aligned with ``indices``; None if nothing was pruned before the decoder."""
    deeper: tuple[torch.Tensor, ...]
    """[images, R, text width] for each of the first decoder layers: added to the hidden states of
    the tokens after that layer."""
    separator: torch.Tensor | None
    """[text width]: the embedding at separator placeholders, if there are any."""
    fused: torch.Tensor | None
    """[images, N, D]: the fused vision features, if a later stage uses them for completion."""
    vision_stopwatch: Stopwatch
    selection_stopwatch: Stopwatch

    def record(self, images: PromptImages, layout: PrunedLayout) -> StageRecord:
        """Return the record of the stage before the decoder. Tokens must have been pruned there."""
        assert self.is_pivot is not None
        return StageRecord(
            layer=None,
            indices=self.indices,
            is_pivot=self.is_pivot,
            tokens_before=max(images.counts),
            tokens_after=self.indices.shape[1],
            counts=self.counts,
            columns=layout.columns,
            stopwatch=self.selection_stopwatch,
        )

    def flat(self, features: torch.Tensor) -> torch.Tensor:
        """Concatenate the rows of kept tokens, image after image: [sum of counts, text width]."""
        images, width, _ = features.shape
        flat = features.reshape(images * width, -1)
        if all(count == width for count in self.counts):
            return flat
        rows = [
            image * width + token
            for image, count in enumerate(self.counts)
            for token in range(count)
        ]
        return flat[upload(rows, flat.device)]


@dataclass(frozen=True)
class Choice:
    """One selection, with what it was made from. N tokens of each image were left."""

    features: torch.Tensor
    """[images, N, D]."""
    salience: Callable[[], torch.Tensor]
    """Computes the scores, [images, N] float32."""
    relevance: Callable[[], torch.Tensor]
    """Computes the similarity to the prompt, [images, N] float32."""
    selection: Selection | PooledSelection
    """The chosen tokens, by their place among the N."""


def rules_of(profile: Profile, name: str | None) -> dict[str, Rule | None]:
    """Return the ``TokenSelector.rules``: the rule ``name``, or each category's own if it is None.

    Raises:
        ValueError: there is no rule of this name, or of a name in the profile.
    """
    names = {
        category: policy.rule if name is None else name
        for category, policy in profile.categories.items()
    }
    try:
        return {
            category: None if rule in (None, "clasp") else find_rule(rule)
            for category, rule in names.items()
        }
    except ValueError as error:
        where = "" if name is not None else f"profile {profile.name!r}: "
        raise ValueError(f"{where}{error}") from None


@dataclass(frozen=True)
class TokenSelector:
    """Select visual tokens with the settings of one ``apply_clasp`` call."""

    adapter: Adapter
    profile: Profile
    schedule: Schedule
    fuse_into: str
    merge: bool
    salience_rows: str
    """The queries whose attention scores tokens inside the decoder: "last" or "instruction"."""
    completion_on: str
    """The features for completion inside the decoder: "hidden" or "fused"."""
    rules: Mapping[str, Rule | None]
    """The selection rule of each category. None for CLASP with the profile's pivots."""
    encoded: VisionOutput | None = None
    """The output of the vision tower for the images of the next prompts; None to run it."""
    watch: Callable[[Choice], None] | None = None
    """Called after every selection."""

    @property
    def stages(self) -> tuple[int, ...]:
        """The numbers of decoder layers after which tokens are dropped."""
        return tuple(layer for layer in self.schedule.layers if layer > 0)

    def counts(
        self, layer: int, categories: Sequence[str], tokens: Sequence[int]
    ) -> tuple[int, ...]:
        """Return the number of kept tokens of each image after ``layer`` decoder layers.

        ``categories`` and ``tokens`` have each image's category and number of visual tokens.
        """
        counts = []
        for name, count in zip(categories, tokens, strict=True):
            left = count
            for stage, wanted in self.schedule.stages:
                if stage <= layer:
                    share = wanted * count if isinstance(wanted, float) else wanted
                    left = min(left, self.profile.budget(name, share))
            counts.append(left)
        return tuple(counts)

    def dropped(
        self, images: PromptImages, categories: Sequence[str], keep_right: bool
    ) -> list[int]:
        """Return how many columns each decoder layer holds less than the prompt, in the widest row.

        ``categories`` has one for each image. With ``keep_right``, padding on the right counts.
        """
        widths = (
            images.pruned_width(
                self.counts(layer, categories, images.counts), keep_right=keep_right
            )
            for layer in range(self.adapter.text_config.num_hidden_layers)
        )
        return [images.columns - width for width in widths]

    def select(
        self,
        model: Any,
        inputs: Mapping[str, Any],
        categories: Sequence[str],
        text: Callable[[], torch.Tensor],
    ) -> KeptTokens:
        """Encode the images and select the tokens that enter the decoder.

        ``text`` returns the direction of the text of each image's prompt [images, text width].
        """
        prunes = 0 in self.schedule.layers
        given = (inputs.get(name) for name in self.adapter.pixel_arguments)
        device = next(pixels for pixels in given if pixels is not None).device
        with Stopwatch(device) as vision_stopwatch:
            places = self.places(inputs, categories)  # first, because it may refuse
            vision = self.encoded or self.adapter.encode(model, inputs)
        device = vision.features.device
        counts = self.counts(0, categories, vision.counts)
        most = max(vision.counts)
        valid = valid_tokens(vision)
        with Stopwatch(device) as selection_stopwatch:
            fused = None
            if prunes or self.fuse_into == "projector" or self.completion_on == "fused":
                fused = self.fuse(vision, categories)
            tokens, deeper = vision.features, tuple(vision.deeper)
            if self.fuse_into == "projector":
                assert fused is not None
                tokens = fused
            if prunes:
                assert fused is not None

                def relevance() -> torch.Tensor:
                    projected = self.adapter.project(model, vision.features)
                    return similarity_to(projected, text().to(projected.device)).to(device)

                selection = self.choose(
                    fused, vision.salience, categories, counts, valid, relevance, places
                )
                indices, is_pivot = selection.indices, selection.is_pivot
                if isinstance(selection, PooledSelection):
                    keep = partial(
                        pool_tokens, groups=selection.groups, num_groups=indices.shape[1]
                    )
                elif self.merge:
                    keep = partial(merge_tokens, features=fused, indices=indices, valid=valid)
                else:
                    keep = partial(gather_tokens, indices=indices)
                tokens, *rest = map(keep, (tokens, *deeper))
                deeper = tuple(rest)
            else:
                indices = torch.arange(most, device=device).expand(len(categories), -1)
                indices, is_pivot = indices if valid is None else indices.where(valid, -1), None
        return KeptTokens(
            features=self.adapter.project(model, tokens),
            indices=indices,
            counts=counts,
            is_pivot=is_pivot,
            deeper=deeper,
            separator=vision.separator,
            fused=fused if self.stages and self.completion_on == "fused" else None,
            vision_stopwatch=vision_stopwatch,
            selection_stopwatch=selection_stopwatch,
        )

    def fuse(self, vision: VisionOutput, categories: Sequence[str]) -> torch.Tensor:
        """Fuse the vision layers [images, N, D] as each image's category says."""
        device = vision.features.device
        return fuse_layers(
            vision.fused_layers,
            upload(self.adapter.layers.weights, device, torch.float32),
            upload([self.profile.category_id(name) for name in categories], device),
            normalize=self.profile.normalize,
        )

    def places(self, inputs: Mapping[str, Any], categories: Sequence[str]) -> torch.Tensor | None:
        """Return where each token lies in its image, [images, N, 3] float32 on the CPU; None if no
        rule of the ``categories`` uses it.

        Raises:
            ValueError: a token has no place.
        """
        users = [
            rule
            for rule in (self.rules[name] for name in categories)
            if rule is not None and rule.uses_places
        ]
        if not users:
            return None
        places = token_places(self.adapter.groups(inputs), self.adapter.views(inputs))
        unplaced = int(places.isnan().any(-1).sum())
        if unplaced:
            raise ValueError(
                f"rule {users[0].name!r} uses where tokens lie in the picture, but {unplaced} of "
                f"the tokens that {self.profile.model_type} makes of these inputs have no place in "
                f"it, such as CLS tokens: choose another rule"
            )
        return places

    def choose(
        self,
        features: torch.Tensor,
        salience: Callable[[], torch.Tensor],
        categories: Sequence[str],
        counts: Sequence[int],
        valid: torch.Tensor | None,
        relevance: Callable[[], torch.Tensor],
        places: torch.Tensor | None = None,
    ) -> Selection | PooledSelection:
        """Select ``counts`` tokens by the rule, or split into pivots and completion by each image's
        category. ``salience`` and ``relevance`` compute scores; they are only called for a rule
        that uses them. ``places`` is what :meth:`places` returned.

        Raises:
            TypeError, ValueError: the rule returned no selection of so many tokens.
        """
        rows: dict[Rule | None, list[int]] = {}
        for row, name in enumerate(categories):
            rows.setdefault(self.rules[name], []).append(row)
        if len(rows) == 1:
            [rule] = rows
            selection = self._by_rule(
                rule, features, salience, categories, counts, valid, relevance, places
            )
        else:
            salience, relevance = cache(salience), cache(relevance)
            parts = []
            for rule, mine in rows.items():
                at = upload(mine, features.device)
                part = self._by_rule(
                    rule,
                    features[at],
                    partial(_rows_of, salience, at),
                    [categories[row] for row in mine],
                    [counts[row] for row in mine],
                    None if valid is None else valid[at],
                    partial(_rows_of, relevance, at),
                    None if places is None else places[mine],
                )
                parts.append((at, part))
            selection = _merged(parts, counts, features.shape[1])
        if self.watch is not None:
            self.watch(Choice(features, salience, relevance, selection))
        return selection

    def _by_rule(
        self,
        rule: Rule | None,
        features: torch.Tensor,
        salience: Callable[[], torch.Tensor],
        categories: Sequence[str],
        counts: Sequence[int],
        valid: torch.Tensor | None,
        relevance: Callable[[], torch.Tensor],
        places: torch.Tensor | None,
    ) -> Selection | PooledSelection:
        if rule is not None:
            if rule.uses_salience:
                scores = salience()
            else:
                scores = torch.zeros(features.shape[:2], device=features.device)
            similar = relevance() if rule.uses_relevance else None
            if places is not None:
                places = places.to(features.device)
            selection = rule(
                features, scores, list(counts), relevance=similar, places=places, valid=valid
            )
            check_selection(rule, selection, counts, features.shape[1], valid)
            return selection
        pivots = [
            self.profile.pivot_count(name, count)
            for name, count in zip(categories, counts, strict=True)
        ]
        return select_tokens(features, salience(), list(counts), pivots, valid=valid)


def _rows_of(scores: Callable[[], torch.Tensor], rows: torch.Tensor) -> torch.Tensor:
    return scores()[rows]


def _merged(
    parts: Sequence[tuple[torch.Tensor, Selection | PooledSelection]],
    counts: Sequence[int],
    num_tokens: int,
) -> Selection | PooledSelection:
    """Put selections of some images each into one; the first of a part is the rows it is for.

    If one of them pools tokens, the kept tokens of the others are groups of one token.
    """
    device = parts[0][1].indices.device
    indices = torch.full((len(counts), max(counts)), -1, dtype=torch.int64, device=device)
    is_pivot = torch.zeros_like(indices, dtype=torch.bool)
    for rows, part in parts:
        width = part.indices.shape[1]
        indices[rows, :width] = part.indices
        is_pivot[rows, :width] = part.is_pivot
    merged = Selection(indices, is_pivot, upload(list(counts), device))
    if not any(isinstance(part, PooledSelection) for _, part in parts):
        return merged
    kept = indices.where(indices >= 0, num_tokens)
    groups = torch.full((len(counts), num_tokens + 1), -1, dtype=torch.int64, device=device)
    groups.scatter_(1, kept, torch.arange(max(counts), device=device).expand_as(kept))
    groups = groups[:, :num_tokens]
    for rows, part in parts:
        if isinstance(part, PooledSelection):
            groups[rows] = part.groups
    return PooledSelection(*merged, groups)


def valid_tokens(vision: VisionOutput) -> torch.Tensor | None:
    """Return which of the padded tokens [images, N] are tokens of an image; None if all are."""
    most = max(vision.counts)
    if all(count == most for count in vision.counts):
        return None
    device = vision.features.device
    token = torch.arange(most, device=device)
    return token < upload(vision.counts, device)[:, None]
