"""Compiled decoding with a static cache, which ``generate`` does by default on a GPU."""

from __future__ import annotations

import torch
from tiny_llava import images, prompts, tiny_llava, tiny_profile
from transformers import CompileConfig

from clasp_kernels.models import apply_clasp


def test_decode_steps_trace_into_one_graph() -> None:
    model = tiny_llava(decoder_layers=1)
    graphs: list[torch.fx.GraphModule] = []

    def count(graph: torch.fx.GraphModule, example: list[torch.Tensor]) -> object:
        graphs.append(graph)
        return graph.forward

    compile_config = CompileConfig(backend=count, fullgraph=True, mode=None, dynamic=False)
    compile_config._compile_all_devices = True
    batch = prompts([1, 5, "image", 7, 8], [1, "image", 3, "image", 9])
    inputs = {**batch, "pixel_values": images(3), "max_new_tokens": 5}
    static = {"cache_implementation": "static", "compile_config": compile_config}
    unpruned = model.generate(**inputs, **static)
    before = len(graphs)
    assert before > 0

    with apply_clasp(model, budget=8, profile=tiny_profile(), positions="compact"):
        expected = model.generate(**inputs, categories="ocr")
        for category in ("ocr", "ocr", "counting"):
            ids = model.generate(**inputs, **static, categories=category)
            if category == "ocr":
                assert torch.equal(ids, expected)
        assert len(graphs) == before + 1  # another category does not recompile

    assert torch.equal(model.generate(**inputs, **static), unpruned)
