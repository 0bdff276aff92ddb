r"""Video-LLaVA, pruned: an image and a video. All frames of the video share one budget.

    python examples/video_llava.py
    python examples/video_llava.py --model LanguageBind/Video-LLaVA-7B-hf \
        --image photo.jpg --video clip.mp4 --question "Is the photo from the clip?"

Without --model a tiny model with random weights is pruned, and nothing is downloaded. Eight frames
are sampled from a video, the number that the model was trained with.
"""

from __future__ import annotations

from typing import Any

import torch
from _shared import Visual, options, random_image, random_prompt, report, timed, tiny_model
from transformers import AutoProcessor, VideoLlavaForConditionalGeneration

from clasp_kernels import apply_clasp

FRAMES = 8


def random_video(model: Any) -> Visual:
    """Make frames of the tiny model's input size; each has its patches and a CLS token."""
    vision = model.config.vision_config
    side = vision.image_size
    tokens = FRAMES * ((side // vision.patch_size) ** 2 + 1)
    pixels = torch.randn(1, FRAMES, 3, side, side, generator=torch.Generator().manual_seed(0))
    return Visual({"pixel_values_videos": pixels}, [model.config.video_token_id] * tokens)


def main() -> None:
    args = options(__doc__, video=True)
    processor: Any = None
    if args.model is None:
        model = tiny_model("video_llava")
        inputs = random_prompt(model, random_image(model), random_video(model))
    else:
        model = VideoLlavaForConditionalGeneration.from_pretrained(args.model, dtype="auto")
        model.to(args.device)
        processor = AutoProcessor.from_pretrained(args.model)
        # Not the chat template: transformers documents this prompt format for the model.
        placeholders = "<image>" if args.video is None else "<image>\n<video>"
        inputs = processor(
            text=f"USER: {placeholders}\n{args.question} ASSISTANT:",
            images=args.image,
            videos=None if args.video is None else [str(args.video)],
            videos_kwargs={"do_sample_frames": True, "num_frames": FRAMES},
            return_tensors="pt",
        ).to(model.device, model.dtype)

    def generate() -> Any:
        return model.generate(**inputs, max_new_tokens=32, do_sample=False)

    whole = timed(generate)
    with apply_clasp(model, budget=args.budget, processor=processor) as handle:
        pruned = timed(generate)
    report(handle.last, whole, pruned, processor)


if __name__ == "__main__":
    main()
