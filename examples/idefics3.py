r"""Idefics 3, pruned: each tile of an image, and the whole image, is pruned by itself.

    python examples/idefics3.py
    python examples/idefics3.py --model HuggingFaceM4/Idefics3-8B-Llama3 \
        --image photo.jpg --question "What does the sign say?"

Without --model a tiny model with random weights is pruned, and nothing is downloaded. Use a
fraction as budget, because a number of tokens applies to each tile.
"""

from __future__ import annotations

from typing import Any

from _shared import options, random_image, random_prompt, report, timed, tiny_model
from transformers import AutoProcessor, Idefics3ForConditionalGeneration

from clasp_kernels import apply_clasp


def main() -> None:
    args = options(__doc__)
    processor: Any = None
    if args.model is None:
        model = tiny_model("idefics3")
        inputs = random_prompt(model, random_image(model))
    else:
        model = Idefics3ForConditionalGeneration.from_pretrained(args.model, dtype="auto")
        model.to(args.device)
        processor = AutoProcessor.from_pretrained(args.model)
        content = [{"type": "image", "image": args.image}, {"type": "text", "text": args.question}]
        inputs = processor.apply_chat_template(
            [{"role": "user", "content": content}],
            add_generation_prompt=True,
            tokenize=True,
            return_dict=True,
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
