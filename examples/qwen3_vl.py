r"""Qwen3-VL, pruned: an image and a video. All frames of the video share one budget.

    python examples/qwen3_vl.py
    python examples/qwen3_vl.py --model Qwen/Qwen3-VL-8B-Instruct \
        --image photo.jpg --video clip.mp4 --question "Is the photo from the clip?"

Without --model a tiny model with random weights is pruned, and nothing is downloaded. Videos are
sampled at one frame per second; the prompt has timestamps between the frames.
"""

from __future__ import annotations

from typing import Any

from _shared import (
    options,
    random_image,
    random_prompt,
    random_qwen_video,
    report,
    timed,
    tiny_model,
)
from transformers import AutoProcessor, Qwen3VLForConditionalGeneration

from clasp_kernels import apply_clasp


def main() -> None:
    args = options(__doc__, video=True)
    processor: Any = None
    if args.model is None:
        model = tiny_model("qwen3_vl")
        inputs = random_prompt(model, random_image(model), random_qwen_video(model))
    else:
        model = Qwen3VLForConditionalGeneration.from_pretrained(args.model, dtype="auto")
        model.to(args.device)
        processor = AutoProcessor.from_pretrained(args.model)
        content: list[dict[str, Any]] = [{"type": "image", "image": args.image}]
        if args.video is not None:
            content.append({"type": "video", "path": str(args.video)})
        content.append({"type": "text", "text": args.question})
        inputs = processor.apply_chat_template(
            [{"role": "user", "content": content}],
            add_generation_prompt=True,
            tokenize=True,
            return_dict=True,
            return_tensors="pt",
            processor_kwargs={"videos_kwargs": {"do_sample_frames": True, "fps": 1.0}},
        ).to(model.device, model.dtype)

    def generate() -> Any:
        return model.generate(**inputs, max_new_tokens=32, do_sample=False)

    whole = timed(generate)
    with apply_clasp(model, budget=args.budget, processor=processor) as handle:
        pruned = timed(generate)
    report(handle.last, whole, pruned, processor)


if __name__ == "__main__":
    main()
