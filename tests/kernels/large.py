"""Arguments for every op at the sizes of real models, made on the device they are for."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from inputs import DYADIC_ROWS, EXACT_ROWS, calls
from torch import Tensor

from clasp_kernels.backends import table

#: Ops with kernels for GPUs. ``arguments`` makes their arguments.
OPS = sorted(table.ops_of("triton"))


class Size(NamedTuple):
    batch: int
    tokens: int
    dim: int

    def __str__(self) -> str:
        return "x".join(map(str, self))


class Maker:
    """Random tensors of one seed and device."""

    def __init__(self, seed: int, device: torch.device | str) -> None:
        self.device = torch.device(device)
        self.random = torch.Generator(self.device).manual_seed(seed)

    def randn(self, *shape: int) -> Tensor:
        return torch.randn(shape, device=self.device, generator=self.random)

    def rand(self, *shape: int) -> Tensor:
        return torch.rand(shape, device=self.device, generator=self.random)

    def integers(self, least: int, end: int, *shape: int) -> Tensor:
        return torch.randint(least, end, shape, device=self.device, generator=self.random)

    def tensor(self, values: list) -> Tensor:
        return torch.tensor(values, device=self.device)

    def distinct(self, batch: int, tokens: int, width: int) -> Tensor:
        """[batch, width] distinct indices, those past ``tokens`` as -1."""
        order = self.rand(batch, max(tokens, width)).argsort(-1)[:, :width]
        return order.masked_fill(order >= tokens, -1)

    def exact_features(
        self, batch: int, tokens: int, dim: int, rows_of: list[list[int]] = EXACT_ROWS
    ) -> Tensor:
        """float32 whose cosines are exact, full of ties: as inputs.exact_features, but wide. The
        columns that are not 0 are spread over the whole of ``dim``. With DYADIC_ROWS, sums of
        cosines are exact too."""
        rows = self.tensor(rows_of).float()
        rows = rows[self.integers(0, len(rows), batch, tokens)]
        order = self.rand(*rows.shape).argsort(-1)
        signs = 1.0 - 2.0 * self.integers(0, 2, *rows.shape)
        rows = rows.gather(-1, order) * signs * self.integers(1, 4, batch, tokens, 1)
        if dim < rows.shape[-1]:
            # One column, whose norms are integers too; with two or three they would not be.
            return rows.abs().amax(-1, keepdim=True) * signs[..., :1] * self._unit(dim)
        features = torch.zeros(batch, tokens, dim, device=self.device)
        columns = torch.linspace(0, dim - 1, rows.shape[-1], device=self.device).long()
        features[..., columns] = rows
        return features

    def _unit(self, dim: int) -> Tensor:
        return torch.eye(dim, device=self.device)[0]


def counts_for(tokens: int, batch: int) -> tuple[int, list[int], list[int]]:
    """A budget of at most 64, and different budgets and shares of it for the images."""
    budget = max(1, min(64, tokens // 2))
    return budget, [max(1, budget - i % 3) for i in range(batch)], [1 + i for i in range(batch)]


def arguments(
    op: str,
    size: Size,
    dtype: torch.dtype,
    device: torch.device | str,
    *,
    seed: int = 0,
    ragged: bool = True,
    exact: bool = False,
    weighted: bool = False,
) -> dict[str, Any]:
    """Those of a call with every option in use; all are passed by name.

    ``ragged``: counts are lists, one int per image; else ints, and a tensor on the device where one
    is allowed. ``exact``: the features are those of :meth:`Maker.exact_features`. ``weighted``: the
    ops of greedy completion have weights.
    """
    batch, tokens, dim = size
    make = Maker(seed, device)
    budget, budgets, shares = counts_for(tokens, batch)

    def features(rows_of: list[list[int]] = EXACT_ROWS) -> Tensor:
        made = make.exact_features(*size, rows_of) if exact else make.randn(*size)
        return made.to(dtype)

    def valid() -> Tensor:
        return make.rand(batch, tokens) < 0.9

    def weights_of_tokens() -> Tensor:
        """Some are 0. In the last of several images all are equal, as if it had none."""
        whole = make.integers(0, 4, batch, tokens).float()
        weights = whole if exact else whole * make.rand(batch, tokens)
        weights[1:][-1:] = 0.5
        return weights

    if op == "fuse_layers":
        # The class token is dropped by a view, as apply_clasp does.
        layers = [make.randn(batch, tokens + 1, dim).to(dtype)[:, 1:] for _ in range(4)]
        weights = make.randn(3, 4)
        weights[0, 1] = weights[2, 3] = 0
        ids = make.integers(0, 3, batch)
        given = {"hidden_states": layers, "weights": weights, "category_ids": ids}
        return {**given, "normalize": "rms"}
    if op == "attention_salience":
        width, rows = min(dim, 128), min(5, tokens)
        query = make.randn(batch, rows, 8, width).to(dtype).transpose(1, 2)
        key = make.randn(batch, tokens, 2, width).to(dtype).transpose(1, 2)
        weights = make.rand(batch, rows)
        weights[:, 1:2] = 0
        given = {"query": query, "key": key, "key_valid": valid(), "query_weights": weights}
        return {**given, "causal": True, "key_range": (tokens // 9, tokens)}
    if op == "select_pivots":
        salience = make.integers(-40, 40, batch, tokens).to(dtype) / 8  # ties
        return {"salience": salience, "k": budgets if ragged else budget, "valid": valid()}
    if op == "complete_tokens":
        selected = make.distinct(batch, tokens, 7)
        given = {"features": features(), "selected": selected, "num_tokens": budget}
        given["valid"] = valid()
        return {**given, "weights": weights_of_tokens()} if weighted else given
    if op == "cover_tokens":
        given = {"features": features(DYADIC_ROWS), "selected": make.distinct(batch, tokens, 7)}
        given |= {"num_tokens": budgets if ragged else budget, "weights": weights_of_tokens()}
        return {**given, "preference": weights_of_tokens(), "valid": valid()}
    if op == "select_tokens":
        given = {"features": features(), "salience": make.rand(batch, tokens)}
        if ragged:
            given |= {"budget": budgets, "pivot_counts": shares}
        else:
            given |= {"budget": budget, "pivot_counts": make.integers(1, 9, batch)}
        given["valid"] = valid()
        return {**given, "weights": weights_of_tokens()} if weighted else given
    if op == "gather_tokens":
        return {"tokens": features(), "indices": make.integers(-1, tokens, batch, budget)}
    if op == "merge_tokens":
        indices = make.distinct(batch, tokens, budget)
        source = make.randn(*size).to(dtype)
        return {"tokens": source, "features": features(), "indices": indices, "valid": valid()}
    raise KeyError(op)


PER_IMAGE = {op: {*call.per_image, "pivot_counts", "budget", "k"} for op, call in calls().items()}


def take(op: str, given: dict[str, Any], images: list[int]) -> dict[str, Any]:
    """The arguments for some of the images, in fresh memory."""
    taken = dict(given)
    for name in PER_IMAGE[op] & given.keys():
        value = given[name]
        if isinstance(value, Tensor):
            taken[name] = value[images]
        elif isinstance(value, list) and isinstance(value[0], Tensor):
            taken[name] = [item[images] for item in value]
        elif isinstance(value, list):
            taken[name] = [value[image] for image in images]
    return taken
