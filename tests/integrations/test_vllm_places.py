"""Positions of pruned prompts, without vLLM: ``test_vllm_qwen2_5_vl.py`` has the server."""

from __future__ import annotations

import pytest
import torch

from clasp_kernels.integrations.vllm.places import (
    ImageSpan,
    delta_of,
    placed,
    prompt_positions,
    with_places,
    without_places,
)
from clasp_kernels.models.specimens import IMAGE_TOKEN, tiny_qwen2_5_vl

# Rows and columns of visual tokens, and the kept ones, of the images of a prompt.
IMAGES = [(3, 7, [0, 6, 8, 20]), (5, 2, [1, 4, 9]), (1, 1, [0])]
# Columns of text before each, and after the last.
TEXT = [2, 3, 1, 4]


def unpruned() -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, int]:
    """Return positions [3, columns] and tokens [columns] of the whole prompt as transformers counts
    them, the columns that are kept, and the first generated position minus the prompt's columns."""
    tokens, kept = [5] * TEXT[0], list(range(TEXT[0]))
    for (rows, columns, chosen), text in zip(IMAGES, TEXT[1:], strict=True):
        kept += [len(tokens) + index for index in chosen]
        tokens += [IMAGE_TOKEN] * (rows * columns)
        kept += range(len(tokens), len(tokens) + text)
        tokens += [5] * text
    ids = torch.tensor([tokens])
    positions, delta = tiny_qwen2_5_vl().model.get_rope_index(
        ids,
        image_grid_thw=torch.tensor([(1, 2 * rows, 2 * columns) for rows, columns, _ in IMAGES]),
        mm_token_type_ids=(ids == IMAGE_TOKEN).int(),
    )
    return positions[:, 0], ids[0], torch.tensor(kept), len(tokens) + int(delta)


@pytest.mark.parametrize("step", [1, 3, 4, 100])
def test_kept_tokens_have_the_positions_that_they_had(step: int) -> None:
    """``step`` columns are computed at once."""
    whole, tokens, kept, generated = unpruned()
    spans, start = [], 0
    for (rows, columns, chosen), text in zip(IMAGES, TEXT[:-1], strict=True):
        spans.append(ImageSpan(start + text, len(chosen), max(rows, columns)))
        start += text + len(chosen)
    positions, delta = prompt_positions(len(kept), spans)
    assert delta == generated - len(kept)

    embeddings = torch.full((len(kept), 8), -1.0, dtype=torch.bfloat16)
    for span, (_, columns, chosen) in zip(spans, IMAGES, strict=True):
        features = torch.randn(len(chosen), 4, dtype=torch.bfloat16)
        end = span.start + span.length
        embeddings[span.start : end] = with_places(features, torch.tensor(chosen), columns)
    placeholders = tokens[kept] == IMAGE_TOKEN
    for computed in range(0, len(kept), step):
        inside = placeholders.clone()
        inside[:computed], inside[computed + step :] = False, False
        _, places = without_places(embeddings[inside])
        positions = placed(positions, placeholders, computed, places)
        now = slice(computed, computed + step)
        assert torch.equal(positions[:, now], whole[:, kept][:, now])
        assert delta_of(positions) == generated - len(kept)
    # A request that vLLM has put off starts again.
    again = placed(positions, placeholders, 0, without_places(embeddings[placeholders])[1])
    assert torch.equal(again, whole[:, kept])


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16], ids=str)
def test_places_of_large_images_are_exact(dtype: torch.dtype) -> None:
    features = torch.randn(4, 6).to(dtype)
    width = 3001
    indices = torch.tensor([0, width - 1, 257 * width + 1, 1023 * width + 999])
    appended = with_places(features, indices, width)
    assert appended.dtype == dtype
    back, places = without_places(appended)
    assert torch.equal(back, features)
    assert places.tolist() == [[0, 0, 257, 1023], [0, 3000, 1, 999]]
