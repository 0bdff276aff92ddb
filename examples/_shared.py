"""Shared by the examples: options, tiny random models and their prompts, timing, a report."""

from __future__ import annotations

import argparse
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import torch
from PIL import Image

from clasp_kernels.bundled import bundled_path
from clasp_kernels.models import PrefillRecord
from clasp_kernels.models.specimens import IMAGE_TOKEN, SPECIMENS, VOCABULARY


def options(description: str | None, *, video: bool = False) -> argparse.Namespace:
    """Parse the options of the model family examples. ``video`` adds ``--video``."""
    parser = argparse.ArgumentParser(
        description=description, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("--model", metavar="ID", help="a model's id or folder; without it a tiny random model runs")
    add("--budget", type=_budget, default=0.25, help="tokens kept per image, or their share")
    add("--image", type=_open, metavar="FILE", help="default: a drawing with three stars")
    if video:
        add("--video", type=Path, metavar="FILE", help="shown after the image")
    add("--question", help="default: How many stars are there?")
    add("--device", help="default: a GPU if there is one")
    arguments = parser.parse_args()
    given = [name for name, value in vars(arguments).items() if value is not None]
    if arguments.model is None and given != ["budget"]:
        parser.error(f"--{given[-1]} needs --model: the random model takes only --budget")
    if arguments.image is None:
        arguments.image = _open(bundled_path("demo", "scene_2.png"))
    if arguments.question is None:
        arguments.question = "How many stars are there?"
    if arguments.device is None:
        arguments.device = "cuda" if torch.cuda.is_available() else "cpu"
    return arguments


def _open(path: str | Path) -> Image.Image:
    return Image.open(path).convert("RGB")


def _budget(text: str) -> int | float:
    return int(text) if text.isdigit() else float(text)


def tiny_model(family: str) -> Any:
    """Build a model of the family's class with a few layers and random weights."""
    model = SPECIMENS[family].build()
    # The last of its 64 tokens are image placeholders and the tokens around them.
    model.generation_config.suppress_tokens = list(range(IMAGE_TOKEN, VOCABULARY))
    # Without a tokenizer, apply_clasp warns and every prompt is "general".
    warnings.filterwarnings("ignore", "the router cannot read the prompts")
    return model


class Visual(NamedTuple):
    """A random image or video."""

    pixels: dict[str, torch.Tensor]
    """The image or video arguments of forward."""
    tokens: list[int]
    """Its placeholders in a prompt, with the tokens around them."""


def random_image(model: Any) -> Visual:
    """Make a random image for a tiny model."""
    specimen = SPECIMENS[model.config.model_type]
    pixels = specimen.images(model, 1, torch.Generator().manual_seed(0))
    [features] = model.get_image_features(**pixels, return_dict=True).pooler_output
    before, after = specimen.around(model.config)
    return Visual(pixels, [*before, *[model.config.image_token_id] * len(features), *after])


def random_qwen_video(model: Any, *, frames: int = 3) -> Visual:
    """Make a video for a tiny Qwen-VL model: ``frames`` times the patches of an image."""
    pixels, [start, *frame, end] = random_image(model)
    frame = [model.config.video_token_id for _ in frame]
    if model.config.model_type.startswith("qwen3"):  # a timestamp before each frame
        tokens = [token for second in range(frames) for token in (5 + second, start, *frame, end)]
    else:
        tokens = [start, *frame * frames, end]
    return Visual(
        {
            "pixel_values_videos": pixels["pixel_values"].repeat(frames, 1),
            "video_grid_thw": pixels["image_grid_thw"] * torch.tensor([frames, 1, 1]),
        },
        tokens,
    )


def random_prompt(model: Any, *visuals: Visual) -> dict[str, torch.Tensor]:
    """Return arguments of ``generate`` for a prompt with the given images, videos and some text."""
    tokens = [token for visual in visuals for token in visual.tokens]
    input_ids = torch.tensor([[11, 12, *tokens, 21, 22, 23, 24]])
    inputs = {"input_ids": input_ids, "attention_mask": torch.ones_like(input_ids)}
    inputs.update(SPECIMENS[model.config.model_type].columns(model, input_ids))
    for visual in visuals:
        inputs.update(visual.pixels)
    return inputs


class Timed(NamedTuple):
    """The result of ``generate`` and the time it took."""

    ids: torch.Tensor
    seconds: float


def timed(generate: Callable[[], torch.Tensor]) -> Timed:
    """Run ``generate`` twice and time the second run. The first allocates and selects kernels."""
    generate()
    _wait()
    start = time.perf_counter()
    ids = generate()
    _wait()
    return Timed(ids, time.perf_counter() - start)


def _wait() -> None:
    if torch.cuda.is_available():
        torch.cuda.synchronize()


def report(record: PrefillRecord | None, whole: Timed, pruned: Timed, processor: Any) -> None:
    """Print the kept tokens, the savings and, with a processor, the answers."""
    if record is None:
        raise SystemExit("The prompt had no image or video, so nothing was pruned.")
    [stage] = record.stages  # with a budget there is one stage, before the LLM
    dropped = record.prompt_length - record.pruned_length
    kept = " + ".join(map(str, stage.counts))
    print(f"kept {kept} of {sum(stage.counts) + dropped} visual tokens", end="")
    print(f", {int(stage.is_pivot.sum())} of them pivots (category {record.categories[0]!r})")
    print(f"prompt: {record.prompt_length} columns, pruned {record.pruned_length}")
    before, after = record.kv_cache_bytes_unpruned / 1024, record.kv_cache_bytes / 1024
    print(f"KV cache after the prompt: {before:.1f} KiB, pruned {after:.1f} KiB")
    print(f"generate: {whole.seconds:.3f} s, pruned {pruned.seconds:.3f} s")
    if processor is None:
        print("The weights are random and the model is tiny: neither time says anything.")
        return
    for name, run in (("answer", whole), ("answer, pruned", pruned)):
        words = processor.decode(run.ids[0, record.prompt_length :], skip_special_tokens=True)
        print(f"{name}: {words.strip()}")
