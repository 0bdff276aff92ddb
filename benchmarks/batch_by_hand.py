"""The loop that one writes without ``clasp batch``: ``datasets.map`` with a pruned model.

    python benchmarks/batch_by_hand.py FILE.jsonl OUT.parquet [ROWS] [TOKENS] [BUDGET] [PROCESSES]

In batches of ROWS as they come, answers of at most TOKENS tokens. A damaged picture ends it, and it
begins from the start when it is run again.
"""

from __future__ import annotations

import functools
import sys
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset
from PIL import Image
from transformers import AutoProcessor, LlavaForConditionalGeneration

from clasp_kernels import apply_clasp
from clasp_kernels.bundled import tiny_vlm_path


@functools.cache
def pruned_model(budget: float) -> tuple[Any, Any]:
    """Load the model and its processor, once in each process."""
    model = LlavaForConditionalGeneration.from_pretrained(tiny_vlm_path()).eval()
    processor = AutoProcessor.from_pretrained(tiny_vlm_path())
    processor.tokenizer.padding_side = "left"
    apply_clasp(model, budget=budget, processor=processor)
    return model, processor


def answer(
    batch: dict[str, list[Any]], folder: Path, tokens: int, budget: float
) -> dict[str, list[str]]:
    """Answer a batch of rows."""
    model, processor = pruned_model(budget)
    prompts = [
        processor.apply_chat_template(
            [{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": question}]}],
            add_generation_prompt=True,
        )
        for question in batch["question"]
    ]
    images = [Image.open(folder / path).convert("RGB") for path in batch["image"]]
    inputs = processor(images=images, text=prompts, padding=True, return_tensors="pt")
    with torch.inference_mode():
        ids = model.generate(**inputs, do_sample=False, max_new_tokens=tokens)
    new = ids[:, inputs["input_ids"].shape[1] :]
    texts = processor.batch_decode(new, skip_special_tokens=True)
    return {"answer": [text.strip() for text in texts]}


def main(
    questions: str,
    out: str,
    rows: str = "8",
    tokens: str = "4",
    budget: str = "0.25",
    processes: str = "1",
) -> None:
    table = Dataset.from_json(questions)
    table = table.map(
        answer,
        fn_kwargs={
            "folder": Path(questions).parent,
            "tokens": int(tokens),
            "budget": float(budget),
        },
        batched=True,
        batch_size=int(rows),
        num_proc=int(processes) if int(processes) > 1 else None,
        # Results are kept by a hash of the function, and would be read again in the next round.
        load_from_cache_file=False,
    )
    table.to_parquet(out)


if __name__ == "__main__":
    main(*sys.argv[1:])
