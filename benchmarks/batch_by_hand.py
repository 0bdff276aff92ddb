"""The loop that one writes without ``clasp batch``: ``datasets.map`` with a pruned model.

    python benchmarks/batch_by_hand.py PICTURES OUT.parquet [ROWS] [TOKENS]

One process, in batches of ROWS as they come, answers of at most TOKENS tokens. A damaged picture
ends it, and it begins from the start when it is run again.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import torch
from batch_inputs import QUESTION
from datasets import Dataset
from PIL import Image
from transformers import AutoProcessor, LlavaForConditionalGeneration

from clasp_kernels import apply_clasp
from clasp_kernels.bundled import tiny_vlm_path


def main(pictures: str, out: str, rows: str = "8", tokens: str = "4") -> None:
    model = LlavaForConditionalGeneration.from_pretrained(tiny_vlm_path()).eval()
    processor = AutoProcessor.from_pretrained(tiny_vlm_path())
    processor.tokenizer.padding_side = "left"
    apply_clasp(model, budget=0.25, processor=processor)
    prompt = processor.apply_chat_template(
        [{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": QUESTION}]}],
        add_generation_prompt=True,
    )

    def answer(batch: dict[str, list[Any]]) -> dict[str, list[str]]:
        images = [Image.open(path).convert("RGB") for path in batch["image"]]
        inputs = processor(
            images=images, text=[prompt] * len(images), padding=True, return_tensors="pt"
        )
        with torch.inference_mode():
            ids = model.generate(**inputs, do_sample=False, max_new_tokens=int(tokens))
        new = ids[:, inputs["input_ids"].shape[1] :]
        return {"answer": processor.batch_decode(new, skip_special_tokens=True)}

    files = sorted(str(path) for path in Path(pictures).glob("*.png"))
    table = Dataset.from_dict({"image": files})
    # Its results are kept by a hash of the function, and would be read again in the next round.
    table = table.map(answer, batched=True, batch_size=int(rows), load_from_cache_file=False)
    table.to_parquet(out)


if __name__ == "__main__":
    main(*sys.argv[1:])
