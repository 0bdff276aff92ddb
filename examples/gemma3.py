r"""Gemma 3, pruned: attention between the kept tokens of an image stays bidirectional.

    python examples/gemma3.py
    python examples/gemma3.py --model google/gemma-3-4b-it \
        --image photo.jpg --question "What does the sign say?"

Without --model a tiny model with random weights is pruned, and nothing is downloaded. Prompt and
answer have to fit into the model's sliding window.
"""

from __future__ import annotations

from typing import Any

from _shared import options, random_image, random_prompt, report, timed, tiny_model
from transformers import AutoProcessor, Gemma3ForConditionalGeneration

from clasp_kernels import apply_clasp


def main() -> None:
    args = options(__doc__)
    processor: Any = None
    if args.model is None:
        model = tiny_model("gemma3")
        inputs = random_prompt(model, random_image(model))
    else:
        model = Gemma3ForConditionalGeneration.from_pretrained(args.model, dtype="auto")
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
