"""Shared by the Qwen-VL families: patches of all images in one row, neighbours merged."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from clasp_kernels import attention_salience
from clasp_kernels.models.adapter import View, VisionOutput, VisualGroup
from clasp_kernels.models.capture import AttentionListener, CapturedAttention
from clasp_kernels.models.compat import attention_modules, image_tower, is_overridden
from clasp_kernels.models.families._items import padded
from clasp_kernels.models.families._modules import module_inside, require_class
from clasp_kernels.models.families._positions import counted_positions
from clasp_kernels.models.families._views import grid_view
from clasp_kernels.models.patching import Patch
from clasp_kernels.policy import Profile

# (kind, pixel argument, argument with the grid sizes).
_KINDS = (
    ("image", "pixel_values", "image_grid_thw"),
    ("video", "pixel_values_videos", "video_grid_thw"),
)


@dataclass(frozen=True)
class TowerOutput:
    """The output of the vision tower for the images, or the videos, of a batch."""

    states: list[torch.Tensor]
    """The adapter's ``layers.states``, each [all tokens, D], in the tower's order."""
    features: torch.Tensor
    """[all tokens, text width], in image order."""
    deeper: Sequence[torch.Tensor]
    """The ``VisionOutput.deeper`` features, each [all tokens, text width], in image order."""
    attention: CapturedAttention
    """The query and key of the block whose attention scores the tokens, in the tower's order."""


class PackedAdapter:
    """Base adapter of the Qwen-VL families.

    There is no CLS token. A visual token's salience is the attention that its patches get from all
    patches of its image or frame in one block. Its fused feature is the mean over its patches. All
    frames of a video compete in one pool of tokens, even with timestamps between them.
    """

    model_class: str
    """The name of the family's class in transformers."""
    inner_class: str
    """The name of the class of its inner model."""
    pixel_arguments: tuple[str, ...] = ("pixel_values", "pixel_values_videos")
    visual_arguments: tuple[str, ...] = (*pixel_arguments, "image_grid_thw", "video_grid_thw")
    position_axes: tuple[int, ...] = (3, 4)
    deeper_layers: int = 0
    sees_prompts_whole: bool = False

    def __init__(self, model: Any, profile: Profile, fuse_into: str) -> None:
        import transformers

        require_class(model, self.model_class)
        self.configure(model.config, profile, fuse_into)
        attentions = attention_modules(image_tower(model), model.config.vision_config.depth)
        self._attention = attentions[self.salience_block]
        self._listener = AttentionListener(self._attention)
        inner, original = self.inner_model(model), getattr(transformers, self.inner_class)
        for name in ("get_image_features", "get_video_features"):
            if is_overridden(inner, name, original):
                raise TypeError(
                    f"{type(inner).__name__}.{name} is overridden, but pruning does not call it: "
                    f"images are encoded by the vision tower directly"
                )

    def configure(self, config: Any, profile: Profile, fuse_into: str) -> None:
        """Set what follows from the model's config alone.

        Raises:
            ValueError: config and profile do not fit.
        """
        if fuse_into == "projector":
            raise ValueError(
                "fuse_into='projector' needs a projector that takes tokens one by one, but this "
                "model merges 2 x 2 patches into one; use fuse_into='selection'"
            )
        vision = config.vision_config
        self.layers = profile.for_tower(vision.depth)
        wanted = vision.depth - 1
        if self.layers.salience_layer is not None:
            wanted = self.layers.salience_layer
        self.salience_block = self.salience_layer(vision, wanted)
        self._side = int(vision.spatial_merge_size)
        self._merged = self._side**2
        patch = int(vision.patch_size)
        self._patch_shape = (
            int(vision.in_channels),
            int(vision.temporal_patch_size),
            patch,
            patch,
        )
        self._tokens = (int(config.image_token_id), int(config.video_token_id))
        self.token_ids: tuple[int, ...] = self._tokens
        self.text_config = config.get_text_config()

    def salience_layer(self, vision_config: Any, wanted: int) -> int:
        """Return the block whose attention scores the tokens; ``wanted`` is the profile's choice.

        Raises:
            ValueError: no block up to ``wanted`` is suitable.
        """
        return wanted

    def order(self, grid: torch.Tensor, vision_config: Any) -> torch.Tensor | None:
        """Return the tower's order of the merged tokens, or None for the image order."""
        return None

    def deeper(self, outputs: Any) -> Sequence[torch.Tensor]:
        """Return the ``VisionOutput.deeper`` features in the tower's outputs, each [all tokens,
        text width]."""
        return ()

    def inner_model(self, model: Any) -> Any:
        import transformers

        return module_inside(model, getattr(transformers, self.inner_class))

    def patches(self) -> list[Patch]:
        return [self._listener.patch(self._attention)]

    def untrained(self, model: Any) -> dict[str, torch.nn.Module]:
        return {"the vision tower": image_tower(model)}

    def tokens_per_image(self) -> int | None:
        return None

    def check_call(self, model: Any, inputs: Mapping[str, Any]) -> None:
        for name, before in zip(("image_token_id", "video_token_id"), self._tokens, strict=True):
            if getattr(model.config, name) != before:
                raise ValueError(
                    f"config.{name} is {getattr(model.config, name)}, but was {before} when "
                    f"apply_clasp was called: remove() the handle and apply again"
                )

    def groups(self, inputs: Mapping[str, Any]) -> list[VisualGroup]:
        groups = []
        for (kind, pixels, grid), token_id in zip(_KINDS, self._tokens, strict=True):
            if inputs.get(pixels) is None:
                continue
            sizes = _grid_sizes(inputs, pixels, grid, self._side)
            counts = tuple(t * h * w // self._merged for t, h, w in sizes)
            groups.append(VisualGroup(kind, grid, token_id, counts))
        return groups

    def views(self, inputs: Mapping[str, Any]) -> list[View]:
        """Show the first of the frames that the tower merges in time."""
        views: list[View] = []
        first_token, side = 0, self._side
        for _, pixels, grid in self._given(inputs):
            sizes = _grid_sizes(inputs, pixels, grid, side)
            items = inputs[pixels].split([t * h * w for t, h, w in sizes])
            for item, (frames, height, width) in zip(items, sizes, strict=True):
                rows, columns = height // side, width // side
                # The patches of one visual token are adjacent in the row.
                patches = item.unflatten(1, self._patch_shape)[:, :, 0]
                patches = patches.unflatten(0, (frames, rows, columns, side, side))
                for frame in patches.permute(0, 5, 1, 3, 6, 2, 4, 7):
                    picture = frame.flatten(4, 6).flatten(1, 3)
                    views.append(grid_view(picture, rows, columns, first_token))
                    first_token += rows * columns
        return views

    @torch.no_grad()  # the ops after the tower record no autograd graph either
    def encode(self, model: Any, inputs: Mapping[str, Any]) -> VisionOutput:
        # Per item: its features, its states in each fused layer, its ``deeper`` features.
        features: list[torch.Tensor] = []
        states: list[list[torch.Tensor]] = []
        deeper: list[list[torch.Tensor]] = []
        attended: list[tuple[CapturedAttention, torch.Tensor | None, tuple[int, ...]]] = []
        for group, (_, pixels, grid) in zip(self.groups(inputs), self._given(inputs), strict=True):
            outputs = self.run_tower(model, inputs[pixels], inputs[grid])
            # A tower with window attention has hidden states in window order, but its output in
            # image order.
            order = self.order(inputs[grid], model.config.vision_config)
            back = None if order is None else order.argsort().to(outputs.features.device)
            merged = [_in_order(state, back) for state in outputs.states]
            features += outputs.features.split(group.counts)
            states += _by_item(merged, group.counts)
            deeper += _by_item(outputs.deeper, group.counts)
            attended.append((outputs.attention, back, group.counts))

        def salience() -> torch.Tensor:
            scores: list[torch.Tensor] = []
            for captured, back, counts in attended:
                of_patches = [
                    attention_salience(query, key, scale=captured.scale)[0]
                    for query, key in captured.sequences()
                ]
                of_tokens = self.by_token(torch.cat(of_patches)).sum(1)
                scores += _in_order(of_tokens, back).split(counts)
            return padded(scores)

        return VisionOutput(
            fused_layers=[padded(layer) for layer in zip(*states, strict=True)],
            features=padded(features),
            salience=salience,
            counts=tuple(len(item) for item in features),
            deeper=[padded(layer) for layer in zip(*deeper, strict=True)],
        )

    def run_tower(self, model: Any, pixels: torch.Tensor, grid: torch.Tensor) -> TowerOutput:
        """Run the vision tower on ``pixels`` [patches, values of a patch] of images or videos of
        the sizes ``grid`` [items, 3]."""
        tower = image_tower(model)
        with self._listener.listen() as captured:
            outputs = tower(
                pixels.to(_dtype(tower)), grid_thw=grid, output_hidden_states=True, return_dict=True
            )
        return TowerOutput(
            states=[
                self.by_token(outputs.hidden_states[state]).mean(1) for state in self.layers.states
            ],
            features=outputs.pooler_output,
            deeper=self.deeper(outputs),
            attention=captured,
        )

    def project(self, model: Any, tokens: torch.Tensor) -> torch.Tensor:
        return tokens

    def positions(self, model: Any, inputs: Mapping[str, Any], past: int) -> torch.Tensor:
        inner = self.inner_model(model)
        kinds = inputs.get("mm_token_type_ids")
        if inputs.get("input_ids") is None or kinds is None:
            return counted_positions(inputs, past)  # the model falls back to plain counting too
        if past:
            raise ValueError(
                "position_ids must be given if a later turn has images, because their positions "
                "depend on all earlier images"
            )
        names = [name for name in self.visual_arguments if name not in self.pixel_arguments]
        positions, deltas = inner.get_rope_index(
            inputs["input_ids"],
            **{name: inputs.get(name) for name in names},
            attention_mask=inputs.get("attention_mask"),
            mm_token_type_ids=kinds,
        )
        inner.rope_deltas = deltas
        return positions

    def later_positions(self, model: Any, past: int, columns: int, rows: int) -> torch.Tensor:
        positions = torch.arange(past, past + columns)[None]
        deltas = self.inner_model(model).rope_deltas
        if deltas is None:
            return positions
        deltas = deltas.repeat_interleave(rows // len(deltas), dim=0).cpu()
        return (positions + deltas).expand(3, rows, columns)

    def by_token(self, patches: torch.Tensor) -> torch.Tensor:
        """Group all patches by visual token: [tokens, patches per token, ...]."""
        return patches.unflatten(0, (-1, self._merged))

    def _given(self, inputs: Mapping[str, Any]) -> list[tuple[str, str, str]]:
        return [kind for kind in _KINDS if inputs.get(kind[1]) is not None]


def _grid_sizes(
    inputs: Mapping[str, Any], pixels: str, grid: str, side: int
) -> list[tuple[int, int, int]]:
    """Return frames, rows and columns of patches of each item. Synchronises.

    Raises:
        ValueError, TypeError: the grid is missing, does not match the pixels, or has sides that
            are not multiples of ``side``.
    """
    given, values = inputs.get(grid), inputs[pixels]
    if not isinstance(given, torch.Tensor) or given.ndim != 2 or given.shape[1] != 3:
        got = list(given.shape) if isinstance(given, torch.Tensor) else type(given).__name__
        raise TypeError(
            f"{grid} must be a tensor [images, 3] that says the size of each in {pixels}, got {got}"
        )
    if not isinstance(values, torch.Tensor) or values.ndim != 2:
        got = list(values.shape) if isinstance(values, torch.Tensor) else type(values).__name__
        raise TypeError(f"{pixels} must be a tensor [patches, values of a patch], got {got}")
    sizes = [(t, h, w) for t, h, w in given.tolist()]
    for t, h, w in sizes:
        if min(t, h, w) < 1 or h % side or w % side:
            raise ValueError(
                f"{grid} must have frames, rows and columns of patches, the latter two multiples "
                f"of {side}, as {side} x {side} patches are merged, got {[t, h, w]}"
            )
    patches = sum(t * h * w for t, h, w in sizes)
    if patches != len(values):
        raise ValueError(f"{pixels} holds {len(values)} patches, but {grid} says {patches}")
    return sizes


def _in_order(tokens: torch.Tensor, back: torch.Tensor | None) -> torch.Tensor:
    """Reorder the tower's tokens to image order; ``back`` is None if they already are."""
    return tokens if back is None else tokens[back]


def _by_item(layers: Sequence[torch.Tensor], counts: Sequence[int]) -> list[list[torch.Tensor]]:
    """Split layers [all tokens, ...] by item: a list of layers for each item."""
    parts = [layer.split(list(counts)) for layer in layers]
    return [[part[number] for part in parts] for number in range(len(counts))]


def _dtype(tower: Any) -> torch.dtype:
    dtype: torch.dtype = next(tower.parameters()).dtype
    return dtype
