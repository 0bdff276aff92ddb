"""What ``handle.last`` tells about a pruned prefill."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch

from clasp_kernels.models.stopwatch import Stopwatch


@dataclass(frozen=True)
class StageRecord:
    """One point at which visual tokens were dropped."""

    layer: int | None
    """Decoder layers that had run when the tokens were dropped; None before the first."""
    indices: torch.Tensor
    """[images, R] int64: the kept tokens among each image's visual tokens, ascending, then -1."""
    is_pivot: torch.Tensor
    """[images, R] bool, aligned with ``indices``: kept for salience rather than for coverage."""
    tokens_before: int
    """Visual tokens per image before the stage."""
    tokens_after: int
    """Visual tokens per image after it: the most any image kept; see ``counts``."""
    counts: tuple[int, ...]
    """Visual tokens kept of each image: they differ where categories scale the budget."""
    columns: torch.Tensor
    """[prompts, columns] int64: what is left of each prompt after the stage; the prompt's own
    columns, -1 for padding. Later hidden states have these columns."""
    stopwatch: Stopwatch = field(repr=False)

    @property
    def seconds(self) -> float:
        """Time to score and select, before the decoder also to fuse and gather. On CUDA, reading it
        waits for that work."""
        return self.stopwatch.seconds


@dataclass(frozen=True)
class PrefillRecord:
    """The last prefill that had images. Beams and returned sequences share their prompt's row."""

    categories: tuple[str, ...]
    """The category of each prompt of the batch."""
    images_per_prompt: tuple[int, ...]
    """How many images each prompt has; images are numbered through the batch in this order."""
    stages: tuple[StageRecord, ...]
    """Where tokens were dropped, the first first."""
    columns: torch.Tensor
    """[prompts, pruned length] int64: the prompt column each remaining column came from, -1 for
    padding. The same as the last stage's ``columns``."""
    prompt_length: int
    """Columns of the prompt as given, padding included."""
    pruned_length: int
    """Columns that left the language model's last layer, and the logits of a plain forward have."""
    kv_cache_bytes_per_layer: tuple[int, ...]
    """Keys and values of every column in each layer of the cache after this prefill, padding
    included: of the columns used, not of what a static cache allocates. Empty without a cache."""
    kv_cache_bytes_unpruned: int
    """The sum of the same, had nothing been dropped."""
    vision_stopwatch: Stopwatch = field(repr=False)
    prefill_stopwatch: Stopwatch = field(repr=False)

    @property
    def kv_cache_bytes(self) -> int:
        """The sum of ``kv_cache_bytes_per_layer``."""
        return sum(self.kv_cache_bytes_per_layer)

    @property
    def vision_seconds(self) -> float:
        """Time in the vision tower. On CUDA, reading it waits for that work."""
        return self.vision_stopwatch.seconds

    @property
    def selection_seconds(self) -> float:
        """Time spent choosing tokens, over all stages."""
        return sum(stage.seconds for stage in self.stages)

    @property
    def prefill_seconds(self) -> float:
        """Time in the language model over the pruned prompt, with the stages inside it. On CUDA,
        reading it waits."""
        return self.prefill_stopwatch.seconds
