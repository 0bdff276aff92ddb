r"""PaliGemma, pruned: what is kept of a prompt still sees itself as a whole.

    python examples/paligemma.py
    python examples/paligemma.py --model google/paligemma-3b-mix-224 \
        --image photo.jpg --question "answer en What does the sign say?"

Without --model a tiny model with random weights is pruned, and nothing is downloaded. Its processor
makes token_type_ids, which pruning needs.
"""

from __future__ import annotations

from typing import Any

from _shared import options, random_image, random_prompt, report, timed, tiny_model
from transformers import AutoProcessor, PaliGemmaForConditionalGeneration

from clasp_kernels import apply_clasp


def main() -> None:
    args = options(__doc__)
    processor: Any = None
    if args.model is None:
        model = tiny_model("paligemma")
        inputs = random_prompt(model, random_image(model))
    else:
        model = PaliGemmaForConditionalGeneration.from_pretrained(args.model, dtype="auto")
        model.to(args.device)
        processor = AutoProcessor.from_pretrained(args.model)
        inputs = processor(
            images=args.image, text=f"<image>{args.question}", return_tensors="pt"
        ).to(model.device, model.dtype)

    def generate() -> Any:
        return model.generate(**inputs, max_new_tokens=32, do_sample=False)

    whole = timed(generate)
    with apply_clasp(model, budget=args.budget, processor=processor) as handle:
        pruned = timed(generate)
    report(handle.last, whole, pruned, processor)


if __name__ == "__main__":
    main()
