"""A selection rule of your own, beside those that come with the package.

    python examples/custom_rule.py

It prunes the tiny model that comes with the package, by every rule in turn. One image says nothing
about which rule is better.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from PIL import Image
from torch import Tensor
from transformers import AutoProcessor, LlavaForConditionalGeneration

from clasp_kernels import Selection, apply_clasp, select_tokens
from clasp_kernels.bundled import bundled_path, tiny_vlm_path
from clasp_kernels.rules import register_rule, rule_names

QUESTION = "What does the sign say?"


@register_rule("centred")
def centred(
    features: Tensor, salience: Tensor, budget: Sequence[int], *, valid: Tensor | None = None
) -> Selection:
    """CLASP on features without their image's mean, which makes all of them look alike."""
    is_token = torch.ones_like(salience) if valid is None else valid.float()
    weights = is_token[..., None]  # images of other sizes are padded
    tokens = features.float()
    mean = (tokens * weights).sum(1, keepdim=True) / weights.sum(1, keepdim=True).clamp_min(1)
    pivots = [max(1, count // 4) for count in budget]
    return select_tokens(tokens - mean, salience, list(budget), pivots, valid=valid)


def main() -> None:
    model = LlavaForConditionalGeneration.from_pretrained(tiny_vlm_path())
    processor: Any = AutoProcessor.from_pretrained(tiny_vlm_path())
    image = Image.open(bundled_path("demo", "scene_5.png"))
    content = [{"type": "image"}, {"type": "text", "text": QUESTION}]
    prompt = processor.apply_chat_template(
        [{"role": "user", "content": content}], add_generation_prompt=True
    )
    inputs = processor(images=image, text=prompt, return_tensors="pt")
    print(QUESTION)
    for rule in rule_names():
        with apply_clasp(model, budget=16, rule=rule) as handle:
            ids = model.generate(**inputs, max_new_tokens=8, do_sample=False)
        answer = processor.decode(ids[0, inputs["input_ids"].shape[1] :], skip_special_tokens=True)
        assert handle.last is not None
        kept = handle.last.stages[0].indices[0].tolist()
        print(f"{rule:10} {answer.strip():8} tokens {kept}")


if __name__ == "__main__":
    main()
