"""The records of a pruned prefill that ``handle.last`` returns."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch

from clasp_kernels.models.stopwatch import Stopwatch


@dataclass(frozen=True)
class StageRecord:
    """One pruning stage: a point at which visual tokens were dropped."""

    layer: int | None
    """Decoder layers that had run when the tokens were dropped; None before the first."""
    indices: torch.Tensor
    """[images, R] int64: kept tokens by their index in the image, ascending, padded with -1."""
    is_pivot: torch.Tensor
    """[images, R] bool, aligned with ``indices``: True for pivots (chosen by salience), False for
    completion tokens."""
    tokens_before: int
    """Visual tokens per image before the stage."""
    tokens_after: int
    """Visual tokens per image after the stage: the maximum over images, see ``counts``."""
    counts: tuple[int, ...]
    """Visual tokens kept of each image. They differ if categories scale the budget."""
    columns: torch.Tensor
    """[prompts, columns] int64: the prompt column of each remaining column, -1 for padding. Hidden
    states after the stage have these columns."""
    stopwatch: Stopwatch = field(repr=False)

    @property
    def seconds(self) -> float:
        """Seconds to score and select; for the stage before the decoder, fusing and gathering are
        included. On CUDA, reading this waits for that work."""
        return self.stopwatch.seconds


@dataclass(frozen=True)
class PrefillRecord:
    """The last prefill with images, a row per prompt: beams share the row of their prompt."""

    categories: tuple[str, ...]
    """The category of each prompt of the batch."""
    images_per_prompt: tuple[int, ...]
    """Number of images of each prompt. Images are numbered through the batch in this order."""
    stages: tuple[StageRecord, ...]
    """The pruning stages, in the order in which they ran."""
    columns: torch.Tensor
    """[prompts, pruned length] int64: the prompt column of each remaining column, -1 for padding.
    Equal to the last stage's ``columns``."""
    prompt_length: int
    """Columns of the prompt as given, padding included."""
    pruned_length: int
    """Columns after the language model's last layer, and in the logits of a plain forward."""
    kv_cache_bytes_per_layer: tuple[int, ...]
    """Bytes of the keys and values in each layer of the cache after this prefill. Padding counts;
    unused columns that a static cache allocates do not. Empty without a cache."""
    kv_cache_bytes_unpruned: int
    """The total over all layers if nothing had been dropped."""
    vision_stopwatch: Stopwatch = field(repr=False)
    prefill_stopwatch: Stopwatch = field(repr=False)

    @property
    def kv_cache_bytes(self) -> int:
        """The sum of ``kv_cache_bytes_per_layer``."""
        return sum(self.kv_cache_bytes_per_layer)

    @property
    def vision_seconds(self) -> float:
        """Seconds in the vision tower. On CUDA, reading this waits for that work."""
        return self.vision_stopwatch.seconds

    @property
    def selection_seconds(self) -> float:
        """Seconds spent choosing tokens, summed over the stages."""
        return sum(stage.seconds for stage in self.stages)

    @property
    def prefill_seconds(self) -> float:
        """Seconds in the language model for the pruned prompt, including the stages inside the
        decoder. On CUDA, reading this waits for that work."""
        return self.prefill_stopwatch.seconds
