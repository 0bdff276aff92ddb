r"""LLaVA-NeXT (1.6), pruned: all tiles of an image share one budget.

    python examples/llava_next.py
    python examples/llava_next.py --model llava-hf/llava-v1.6-vicuna-7b-hf \
        --image photo.jpg --question "What does the sign say?"

Without --model a tiny model with random weights is pruned, and nothing is downloaded. The
newline embeddings after the rows of patches are not visual tokens and are never dropped.
"""

from __future__ import annotations

from typing import Any

from _shared import options, random_image, random_prompt, report, timed, tiny_model
from transformers import AutoProcessor, LlavaNextForConditionalGeneration

from clasp_kernels import apply_clasp


def main() -> None:
    args = options(__doc__)
    processor: Any = None
    if args.model is None:
        model = tiny_model("llava_next")
        inputs = random_prompt(model, random_image(model))
    else:
        model = LlavaNextForConditionalGeneration.from_pretrained(args.model, dtype="auto")
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
