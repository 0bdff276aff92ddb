"""Your own profile and router: categories, layer weights, and how the budget is split.

    python examples/custom_profile.py

It prunes the tiny model that comes with the package. The numbers are made up to show the layout;
they were not tuned.
"""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

from PIL import Image
from transformers import AutoProcessor, LlavaForConditionalGeneration

from clasp_kernels import apply_clasp
from clasp_kernels.bundled import bundled_path, tiny_vlm_path
from clasp_kernels.policy import CategoryPolicy, Profile

PROFILE = Profile(
    name="signs first",
    model_type="llava",
    source="written by hand, as an example",
    layers=(0.4, 0.8, 1.0),  # relative depths: 0 is the tower's input, 1 the last layer's output
    fuse_into="selection",  # fused layers only choose tokens; the projector's input is unchanged
    categories={
        # The fallback. One weight per layer, and the fraction of pivots.
        "general": CategoryPolicy(layer_weights=(0.2, 0.3, 0.5), pivot_ratio=0.5),
        # Small writing: the deepest layer only, more pivots, and twice the budget.
        "signs": CategoryPolicy((0.0, 0.0, 1.0), pivot_ratio=0.75, budget_scale=2.0),
        # The whole picture: mostly completion, and half of the budget.
        "places": CategoryPolicy((0.5, 0.5, 0.0), pivot_ratio=0.1, budget_scale=0.5),
    },
)
QUESTIONS = {
    "scene_5.png": "What does the sign say?",
    "scene_6.png": "Describe the scene.",
    "scene_1.png": "What color is the ring?",
}


def route(prompts: list[str]) -> list[str]:
    """Return a category of the profile for each prompt. Any such callable is a router."""
    words = {"sign": "signs", "scene": "places"}
    return [
        next((category for word, category in words.items() if word in prompt), "general")
        for prompt in prompts
    ]


def main() -> None:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "clasp_profile.json")  # apply_clasp reads this file in a model's folder
        PROFILE.save(path)
        profile = Profile.load(path)

    model = LlavaForConditionalGeneration.from_pretrained(tiny_vlm_path())
    processor: Any = AutoProcessor.from_pretrained(tiny_vlm_path())
    with apply_clasp(model, budget=16, profile=profile, router=route) as handle:
        for name, question in QUESTIONS.items():
            content = [{"type": "image"}, {"type": "text", "text": question}]
            prompt = processor.apply_chat_template(
                [{"role": "user", "content": content}], add_generation_prompt=True
            )
            image = Image.open(bundled_path("demo", name))
            inputs = processor(images=image, text=prompt, return_tensors="pt")
            ids = model.generate(**inputs, max_new_tokens=8, do_sample=False)
            words = ids[0, inputs["input_ids"].shape[1] :]
            answer = processor.decode(words, skip_special_tokens=True)
            assert handle.last is not None
            [stage] = handle.last.stages
            kept, pivots = stage.counts[0], int(stage.is_pivot.sum())
            print(f"{question} {answer.strip()}")
            print(f"  {handle.last.categories[0]}: {kept} tokens kept, {pivots} of them pivots")


if __name__ == "__main__":
    main()
