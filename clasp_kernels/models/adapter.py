"""The interface of a model family. Everything that is not in it is shared by all families."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch

from clasp_kernels.models.patching import Patch
from clasp_kernels.policy import Profile
from clasp_kernels.policy.layers import TowerLayers


@dataclass(frozen=True)
class VisualGroup:
    """The images, or the videos, of a batch of prompts: the items with one kind of placeholder.

    A video is one item. An image that is split into tiles is also one item.
    """

    kind: str
    """The name of an item in error messages: "image" or "video"."""
    argument: str
    """The argument of forward that holds the items."""
    token_id: int
    """The placeholder in ``input_ids``."""
    counts: tuple[int, ...]
    """Visual tokens of each item, in prompt order."""
    separators: tuple[tuple[int, ...], ...] = ()
    """Indices of each item's placeholders that are separators, not visual tokens, such as the
    newline after a row of patches. Separators are never dropped. Empty if there are none."""

    @property
    def placeholders(self) -> tuple[int, ...]:
        """Number of placeholders of each item: visual tokens and separators."""
        if not self.separators:
            return self.counts
        return tuple(
            count + len(between)
            for count, between in zip(self.counts, self.separators, strict=True)
        )


@dataclass(frozen=True)
class VisionOutput:
    """The output of the vision tower for a batch of items, before anything is dropped.

    A visual token is one token of the language model. If the model merges patches, it comes from
    several patches. Items are in the order of the groups, padded at the end to N tokens.
    """

    fused_layers: Sequence[torch.Tensor]
    """The adapter's ``layers.states``, each [items, N, D]."""
    features: torch.Tensor
    """[items, N, D']: the input of the projector in the unpruned model. If the projector mixes
    tokens: its output."""
    salience: Callable[[], torch.Tensor]
    """Computes the attention that each token gets, [items, N] float32."""
    counts: tuple[int, ...]
    """Visual tokens of each item."""
    separator: torch.Tensor | None = None
    """[text width]: the embedding at separators; None if no group has separators."""
    deeper: Sequence[torch.Tensor] = ()
    """[items, N, text width] for each of the first decoder layers: added to the hidden states of
    the tokens after that layer."""


#: (left, top, right, bottom).
Box = tuple[int, int, int, int]


@dataclass(frozen=True)
class View:
    """One picture that the vision tower encodes, with the places of its visual tokens.

    An image may have several views: the whole image, and its tiles, put together to one picture.
    Pixels that no token comes from are left out.
    """

    pixels: torch.Tensor
    """[channels, height, width], normalised like the model's input."""
    tokens: tuple[int, ...]
    """The visual tokens in the view, numbered through all items of all groups. A CLS token has no
    place and is not listed."""
    boxes: tuple[Box, ...]
    """The box of each of ``tokens``, in pixels of the view."""


class Adapter(Protocol):
    """One model family. The constructor checks the model against the profile.

    An adapter must not store the model: its methods are given the model, which may be a copy of the
    one that was checked.
    """

    pixel_arguments: tuple[str, ...]
    """Forward's arguments that hold the pixels of images and videos."""
    visual_arguments: tuple[str, ...]
    """The pixel arguments, and others that belong to images rather than columns, such as sizes."""
    position_axes: tuple[int, ...]
    """Allowed sizes of the first dimension of 3D position ids. Empty if position ids are 2D."""
    token_ids: tuple[int, ...]
    """The placeholder ids of images and videos."""
    text_config: Any
    deeper_layers: int
    """Number of decoder layers that ``VisionOutput.deeper`` has features for; 0 in most families.
    """
    sees_prompts_whole: bool
    """Whether attention is bidirectional within the whole prompt (prefix LM). ``token_type_ids``
    mark it: 0 in the prompt, 1 for generated tokens. False in most families."""
    layers: TowerLayers
    """The profile's layers in this model's vision tower."""

    def __init__(self, model: Any, profile: Profile, fuse_into: str) -> None:
        """Raise a ValueError or TypeError if model and profile do not fit; change nothing."""

    def patches(self) -> list[Patch]:
        """Return the patches that ``encode`` needs."""

    def inner_model(self, model: Any) -> Any:
        """Return the inner module whose own forward encodes images without pruning."""

    def untrained(self, model: Any) -> dict[str, torch.nn.Module]:
        """Return the modules that get no gradient because ``encode`` runs them, by the name that a
        warning uses."""

    def check_call(self, model: Any, inputs: Mapping[str, Any]) -> None:
        """Raise a ValueError for forward arguments of this family, or changed settings of the
        model, that pruning does not support."""

    def groups(self, inputs: Mapping[str, Any]) -> list[VisualGroup]:
        """Return the images and videos in forward's arguments.

        Raises:
            ValueError, TypeError: the arguments are invalid for any prompt.
        """

    def tokens_per_image(self) -> int | None:
        """Return the number of visual tokens per image, or None if images differ."""

    def views(self, inputs: Mapping[str, Any]) -> list[View]:
        """Return the images and videos in forward's arguments as pictures, with the place of each
        visual token that ``groups`` counts. Raises the same errors."""

    def encode(self, model: Any, inputs: Mapping[str, Any]) -> VisionOutput:
        """Run the vision tower."""

    def project(self, model: Any, tokens: torch.Tensor) -> torch.Tensor:
        """Run the projector: [items, R, D or D'] to [items, R, text width]."""

    def positions(self, model: Any, inputs: Mapping[str, Any], past: int) -> torch.Tensor:
        """Return the unpruned model's position ids [..., 1 or rows, columns] of a prompt with
        images, after ``past`` columns."""

    def later_positions(self, model: Any, past: int, columns: int, rows: int) -> torch.Tensor:
        """Return the position ids [..., 1 or rows, columns] of text after a pruned prompt."""
