"""What a model family has to provide; everything else is shared."""

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
    """The images of a batch of prompts, or its videos: what has placeholders of one kind.

    A video is one item, as is an image that the model sees in tiles.
    """

    kind: str
    """What an error calls an item: "image" or "video"."""
    argument: str
    """The argument of forward that holds them."""
    token_id: int
    """The placeholder in ``input_ids``."""
    counts: tuple[int, ...]
    """Visual tokens of each item, in the order in which prompts have them."""
    separators: tuple[tuple[int, ...], ...] = ()
    """For each item, which of its placeholders stand for no visual token but for what the model
    puts between them, as at the end of a row of patches: these stay. Empty if none do."""

    @property
    def placeholders(self) -> tuple[int, ...]:
        """How many of them each item has."""
        if not self.separators:
            return self.counts
        return tuple(
            count + len(between)
            for count, between in zip(self.counts, self.separators, strict=True)
        )


@dataclass(frozen=True)
class VisionOutput:
    """A batch of images after the vision tower: up to N visual tokens each, nothing dropped yet.

    A visual token is what the language model sees one of: several of the tower's, if they are
    merged. Items are in the order of the groups. Shorter ones are padded at the end.
    """

    fused_layers: Sequence[torch.Tensor]
    """The adapter's ``layers.states``, each [items, N, D]."""
    features: torch.Tensor
    """[items, N, D']: what the unpruned model would hand to its projector, or, where tokens are
    projected together, what the language model would see."""
    salience: Callable[[], torch.Tensor]
    """[items, N] float32: how much attention each token gets. Computed when it is asked for."""
    counts: tuple[int, ...]
    """Tokens of each item."""
    separator: torch.Tensor | None = None
    """[text width]: what the model puts at separators, None where no group has any."""
    deeper: Sequence[torch.Tensor] = ()
    """[items, N, text width] each: what the model adds to the tokens' hidden states once each of
    the decoder's first layers has run."""


#: left, top, right, bottom.
Box = tuple[int, int, int, int]


@dataclass(frozen=True)
class View:
    """One picture that the vision tower saw, and where in it visual tokens are.

    An image may be seen in several: as a whole, and in tiles, which are arranged to one picture.
    Pixels that no token comes from are left out.
    """

    pixels: torch.Tensor
    """[channels, height, width], normalised as the model's input is."""
    tokens: tuple[int, ...]
    """The visual tokens that have a place in it, numbered through all items of all groups. A CLS
    token has none."""
    boxes: tuple[Box, ...]
    """Where each of ``tokens`` is, in pixels of the view."""


class Adapter(Protocol):
    """One model family. Constructing one checks the model and the profile against each other.

    Methods are told the model anew, as a copy of the one that was checked may call: no adapter
    keeps it.
    """

    pixel_arguments: tuple[str, ...]
    """Forward's arguments that hold the pixels of images and videos."""
    visual_arguments: tuple[str, ...]
    """The same, and what else belongs to images and not to columns, such as their sizes."""
    position_axes: tuple[int, ...]
    """How many kinds of positions a column may have: the first dimension of position ids that have
    three. Empty where they have two."""
    token_ids: tuple[int, ...]
    """The placeholders, of every kind."""
    text_config: Any
    deeper_layers: int
    """How many layers ``VisionOutput.deeper`` is for; 0 in most families."""
    layers: TowerLayers
    """The profile's layers in this model's vision tower."""

    def __init__(self, model: Any, profile: Profile, fuse_into: str) -> None:
        """Raise a ValueError or TypeError that says what does not fit; change nothing."""

    def patches(self) -> list[Patch]:
        """The patches that ``encode`` needs to be in place."""

    def inner_model(self, model: Any) -> Any:
        """The module inside whose forward would encode images by itself."""

    def untrained(self, model: Any) -> dict[str, torch.nn.Module]:
        """The modules that ``encode`` runs, which no gradient reaches, by what a warning calls
        them."""

    def check_call(self, model: Any, inputs: Mapping[str, Any]) -> None:
        """Raise a ValueError for what pruning cannot honour: forward arguments of this family, or
        settings of the model that have changed since."""

    def groups(self, inputs: Mapping[str, Any]) -> list[VisualGroup]:
        """What forward is given of images and videos.

        Raises:
            ValueError, TypeError: it cannot be that of any prompt.
        """

    def tokens_per_image(self) -> int | None:
        """Tokens of every image, if all have as many; None if they differ."""

    def views(self, inputs: Mapping[str, Any]) -> list[View]:
        """The images and videos that forward is given, as pictures: what ``groups`` counts, with
        each visual token's place. The same errors."""

    def encode(self, model: Any, inputs: Mapping[str, Any]) -> VisionOutput:
        """Run the vision tower."""

    def project(self, model: Any, tokens: torch.Tensor) -> torch.Tensor:
        """[items, R, D or D'] to [items, R, text width]."""

    def positions(self, model: Any, inputs: Mapping[str, Any], past: int) -> torch.Tensor:
        """[..., 1 or rows, columns]: the positions that the model would count for a prompt with
        images, after ``past`` columns."""

    def later_positions(self, model: Any, past: int, columns: int, rows: int) -> torch.Tensor:
        """[..., 1 or rows, columns]: the same for columns of text after a pruned prompt."""
