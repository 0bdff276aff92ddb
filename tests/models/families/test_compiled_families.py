"""Compiled pruned models: their forwards, and decoding with a static cache."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from every_family import (
    CATEGORIES,
    assert_as_it_was,
    batch,
    build,
    every_schedule,
    expected,
    greedy,
    patched,
    telling_families,
)
from transformers import CompileConfig

pytestmark = pytest.mark.deep


def compiled_forward(model: Any) -> Any:
    model.forward = torch.compile(model.forward, backend="eager")
    return model


def compiled_model(model: Any) -> Any:
    return torch.compile(model, backend="eager")


@telling_families
@pytest.mark.parametrize(
    ("where", "compiles"), [("input", compiled_forward), ("inside", compiled_model)]
)
def test_compiled(family: str, where: str, compiles: Callable[[Any], Any]) -> None:
    check_compiled(family, where, compiles)


@pytest.mark.parametrize("family", ["qwen3_vl"])
def test_compiled_for_speed(family: str) -> None:
    """This takes minutes, so only the family with DeepStack features is compiled."""
    check_compiled(family, "inside", torch.compile)


def check_compiled(family: str, where: str, compiles: Callable[[Any], Any]) -> None:
    torch._dynamo.reset()
    model, prompts = build(family), batch(family)
    handle = patched(model, where)
    found = compiles(model)(**prompts, **CATEGORIES).logits
    torch.testing.assert_close(found, expected(family, where)[0], atol=1e-4, rtol=0.0)
    vars(model).pop("forward", None)
    handle.remove()
    assert_as_it_was(model, family)


@telling_families
@every_schedule
def test_compiled_decoding_with_a_static_cache(family: str, where: str) -> None:
    """Compiled decoding needs as many graphs as the unpatched model, and gives the same answer."""
    model, prompts = build(family), batch(family)
    graphs: list[torch.fx.GraphModule] = []

    def count(graph: torch.fx.GraphModule, example: list[torch.Tensor]) -> object:
        graphs.append(graph)
        return graph.forward

    settings = CompileConfig(backend=count, fullgraph=True, mode=None, dynamic=False)
    settings._compile_all_devices = True
    static = {"cache_implementation": "static", "compile_config": settings}
    torch._dynamo.reset()
    try:
        ids = model.generate(**prompts, **greedy(model), **static)
    except torch._dynamo.exc.TorchDynamoException:
        pytest.skip("the unpatched model, too, cannot decode in one graph")
    assert torch.equal(ids, expected(family, None)[1])
    before = len(graphs)
    assert before > 0
    with patched(model, where):
        for _ in range(2):
            ids = model.generate(**prompts, **CATEGORIES, **greedy(model), **static)
            assert torch.equal(ids, expected(family, where)[1])
    assert len(graphs) == 2 * before
