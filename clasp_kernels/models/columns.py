"""Prune forward's arguments that have one entry per column.

Unknown arguments of that shape are refused by name, because their entries for dropped columns would
be misread.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import torch

from clasp_kernels._integers import as_int
from clasp_kernels.models.adapter import Adapter
from clasp_kernels.models.layout import PrunedLayout

_NO_LOSS = -100  # the label that loss functions ignore
# Arguments that ``prefill.py`` and ``masking.py`` prune.
_FOLLOW = ("input_ids", "inputs_embeds", "attention_mask", "position_ids")
#: Label arguments, from which the loss is computed.
LABELS = ("labels", "shift_labels")
#: Token types that some processors return; 0 is used for padding.
TOKEN_TYPES = ("token_type_ids", "mm_token_type_ids")
#: The token types from which models build masks. Entry c belongs to column c, counted from the
#: first cached column.
MASKING_TYPES = "token_type_ids"
_OTHER = ("cache", "logits_to_keep", "cache_position")


def check_columns(
    inputs: Mapping[str, Any], adapter: Adapter, rows: int, length: int, total: int
) -> None:
    """Check the arguments of a prompt of ``length`` columns; ``total`` includes cached columns.

    Raises:
        TypeError: an argument with an entry per column is not a tensor.
        ValueError: an argument has the wrong shape, or is unknown and has an entry per column.
    """
    for name in (*LABELS, *TOKEN_TYPES):
        value = _tensor(inputs, name)
        if value is not None and value.shape != (rows, length):
            raise ValueError(
                f"{name} must have the prompt's shape {[rows, length]}, got {list(value.shape)}"
            )
    positions = _tensor(inputs, "position_ids")
    shapes = [[rows, length], [1, length]]
    shapes += [[axes, *shape] for axes in adapter.position_axes for shape in shapes]
    if positions is not None and list(positions.shape) not in shapes:
        allowed = " or ".join(map(str, shapes))
        raise ValueError(f"position_ids must be {allowed}, got {list(positions.shape)}")
    wanted = inputs.get("logits_to_keep")
    if wanted is not None and as_int(wanted) is None:
        raise ValueError(
            f"logits_to_keep must be an integer when images are pruned (a tensor of column "
            f"indices could include dropped columns), got {wanted!r}"
        )
    by_column = {length, total, rows * length}
    for name, value in inputs.items():
        if name in (*_FOLLOW, *LABELS, *TOKEN_TYPES, *_OTHER, *adapter.visual_arguments):
            continue
        for shape in _shapes(value):
            if not by_column.isdisjoint(shape):
                raise ValueError(
                    f"{name} has shape {list(shape)}, with an entry for each of the prompt's "
                    f"{length} columns, and it is not known how to prune it: leave it out, or "
                    f"remove() the handle"
                )


def with_types_of_columns(
    inputs: dict[str, Any], length: int, appended: int, seen: int, generated: int
) -> dict[str, Any]:
    """Fit ``mm_token_type_ids`` to the ``length`` columns of the prompt.

    Some releases pass the token types of the whole conversation: the first ``seen`` columns are cut
    off. The last ``appended`` columns were generated or drafted, and some releases pass no types
    for them: these are text, for which ``token_type_ids`` is ``generated``.
    """
    masking = inputs.get(MASKING_TYPES)
    if appended and isinstance(masking, torch.Tensor) and masking.ndim == 2:
        given = masking[:, : length - appended]
        text = masking.new_full((len(masking), appended), generated)
        inputs = {**inputs, MASKING_TYPES: torch.cat([given, text], dim=1)}
    kinds = inputs.get("mm_token_type_ids")
    if not isinstance(kinds, torch.Tensor) or kinds.ndim != 2:
        return inputs
    if length < kinds.shape[1] <= seen + length:
        kinds = kinds[:, seen:]
    if 0 < length - kinds.shape[1] <= appended:
        text = kinds.new_zeros(len(kinds), length - kinds.shape[1])
        kinds = torch.cat([kinds, text], dim=1)
    return {**inputs, "mm_token_type_ids": kinds}


def prune_labels(inputs: Mapping[str, Any], layout: PrunedLayout) -> dict[str, torch.Tensor]:
    """Return ``labels`` and ``shift_labels`` of the remaining columns, if they were given."""
    pruned = {}
    if inputs.get("labels") is not None:
        pruned["labels"] = _prune_labels(inputs["labels"], layout)
    if inputs.get("shift_labels") is not None:
        # In shift_labels each column has the label of the next column. The last entry belongs to no
        # column of the prompt: with sequence parallelism it is the next process's first label.
        last = inputs["shift_labels"][:, -1:]
        labels = inputs["shift_labels"].roll(1, dims=1)  # the first entry is cut off below
        following = _prune_labels(labels, layout)[:, 1:]
        pruned["shift_labels"] = torch.cat([following, last], dim=1)
    return pruned


def with_loss(
    model: Any,
    outputs: Any,
    inputs: Mapping[str, Any],
    layout: PrunedLayout,
    others: Mapping[str, Any],
) -> Any:
    """Add the loss over the remaining labels to the outputs, with the model's own loss function.

    ``others`` are forward's extra keyword arguments, which models pass to the loss function.
    """
    if inputs.get("labels") is None:
        return outputs
    vocabulary = model.config.get_text_config().vocab_size
    arguments = {**others, **prune_labels(inputs, layout), "vocab_size": vocabulary}
    loss = model.loss_function(logits=outputs.logits, **arguments)
    return type(outputs)(**{**outputs, "loss": loss})


def given_token_types(inputs: Mapping[str, Any]) -> dict[str, torch.Tensor]:
    """Return the token types of a prompt by argument, if they were given."""
    return {name: inputs[name] for name in TOKEN_TYPES if inputs.get(name) is not None}


def prune_token_types(inputs: Mapping[str, Any], layout: PrunedLayout) -> dict[str, torch.Tensor]:
    """Return the token types of the remaining columns by argument, if they were given."""
    return {
        name: layout.take(kinds.to(layout.source.device))
        for name, kinds in given_token_types(inputs).items()
    }


def _tensor(inputs: Mapping[str, Any], name: str) -> torch.Tensor | None:
    value = inputs.get(name)
    if value is not None and not isinstance(value, torch.Tensor):
        raise TypeError(f"{name} must be a tensor, got {type(value).__name__}")
    return value


def _prune_labels(labels: torch.Tensor, layout: PrunedLayout) -> torch.Tensor:
    pruned = layout.take(labels.to(layout.source.device), padding=_NO_LOSS)
    # Added padding must not be trained to predict a row's first token.
    pruned[:, 1:].masked_fill_(layout.is_added[:, :-1], _NO_LOSS)
    return pruned.to(labels.device)


def _shapes(value: Any) -> Iterator[tuple[int, ...]]:
    """Yield the shapes of the tensors, arrays and lists of numbers in an argument."""
    if hasattr(value, "shape"):
        yield tuple(value.shape)
    elif isinstance(value, Mapping):
        for item in value.values():
            yield from _shapes(item)
    elif isinstance(value, (list, tuple)) and value:
        if all(isinstance(item, (int, float)) for item in value):
            yield (len(value),)
        elif all(isinstance(item, (list, tuple)) for item in value):
            yield from ((len(value), *shape) for shape in _shapes(value[0]))
        else:
            for item in value:
                yield from _shapes(item)
