"""The ops in your own code: tensors in, tensors out, no model and no transformers.

    python examples/ops_only.py

Random tensors stand in for those of your model: hidden states of two vision layers, query and key
of the attention that scores tokens, and the input tokens of the language model.
"""

from __future__ import annotations

import torch

from clasp_kernels import attention_salience, fuse_layers, gather_tokens, select_tokens

IMAGES, TOKENS, WIDTH, HEADS = 3, 576, 256, 8


def main() -> None:
    generator = torch.Generator().manual_seed(0)

    def random(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=generator).bfloat16()

    # Two layers with a CLS token first. The slices below are views: nothing is copied.
    layers = [random(IMAGES, 1 + TOKENS, WIDTH) for _ in range(2)]
    query, key = (random(IMAGES, HEADS, 1 + TOKENS, WIDTH // HEADS) for _ in range(2))
    tokens = random(IMAGES, TOKENS, WIDTH)

    # Each image has a category, and each category its own layer weights. The second category does
    # not read the first layer, because its weight is 0.
    mixtures = torch.tensor([[0.5, 0.5], [0.0, 1.0]])
    categories = torch.tensor([0, 1, 1])
    fused = fuse_layers([layer[:, 1:] for layer in layers], mixtures, categories)
    print(f"fused: {list(fused.shape)}")

    # The attention of the CLS token to each patch. No full attention matrix is computed.
    salience = attention_salience(query[:, :, :1], key, key_range=(1, 1 + TOKENS))
    print(f"salience: {list(salience.shape)}")

    # Budgets and pivot counts may differ between images. Shorter rows are padded with -1.
    budgets, pivots = torch.tensor([64, 128, 32]), torch.tensor([48, 64, 8])
    selection = select_tokens(fused, salience, budgets, pivots)
    print(f"kept of each image: {selection.counts.tolist()}")
    print(f"pivots of each image: {selection.is_pivot.sum(1).tolist()}")

    # Kept tokens in image order. Shorter rows are padded with zeros.
    kept = gather_tokens(tokens, selection.indices)
    print(f"tokens: {list(tokens.shape)} -> {list(kept.shape)}")
    print(f"filled with zeros: {int((selection.indices < 0).sum())} rows")


if __name__ == "__main__":
    main()
