"""FlashAttention as transformers calls it, with its kernels replaced by plain attention."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from tiny_llava import images, prompts, tiny_llava, tiny_profile
from torch.nn import functional as F
from transformers import LlavaForConditionalGeneration, modeling_flash_attention_utils

from clasp_kernels.models import apply_clasp
from clasp_kernels.models.compat import output_cache
from clasp_kernels.policy import Schedule


def attend(
    q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, causal: bool = False, **_: Any
) -> torch.Tensor:
    """Compute attention of [batch, length, heads, head_dim]; causal rows end at the last key."""
    q, k, v = (x.transpose(1, 2) for x in (q, k, v))
    mask = None
    if causal:
        mask = torch.ones(q.shape[2], k.shape[2], dtype=torch.bool).tril(k.shape[2] - q.shape[2])
    out = F.scaled_dot_product_attention(q, k, v, attn_mask=mask, enable_gqa=True)
    return out.transpose(1, 2)


def attend_packed(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    cu_seqlens_q: torch.Tensor,
    cu_seqlens_k: torch.Tensor,
    causal: bool = False,
    **_: Any,
) -> torch.Tensor:
    bounds = zip(cu_seqlens_q, cu_seqlens_q[1:], cu_seqlens_k, cu_seqlens_k[1:], strict=False)
    return torch.cat(
        [attend(q[a:b][None], k[c:d][None], v[c:d][None], causal)[0] for a, b, c, d in bounds]
    )


@pytest.fixture
def flash(monkeypatch: pytest.MonkeyPatch) -> None:
    module = modeling_flash_attention_utils
    functions = (attend, attend_packed, None, module._pad_input, module._unpad_input)

    def keywords(is_causal: bool, **_: Any) -> dict[str, Any]:
        return {"causal": is_causal}

    # Releases with paged decoding have a second function that selects keywords.
    both = hasattr(module, "_process_with_kvcache_kwargs_fn")
    loaded = functions, (keywords, keywords) if both else keywords
    monkeypatch.setattr(module, "lazy_import_flash_attention", lambda *_, **__: loaded)


@pytest.mark.parametrize("rows", [[[1, 5, "image", 7, 8]], [[1, 5, "image", 7], [1, "image", 3]]])
@pytest.mark.parametrize(
    "settings",
    [
        {"budget": 8, "positions": "original"},
        {"budget": 8, "positions": "compact"},
        {"schedule": Schedule({0: 20, 1: 12, 3: 5})},
    ],
    ids=str,
)
def test_two_turns_with_an_image_each(
    flash: None, rows: list[list[int | str]], settings: dict[str, Any]
) -> None:
    """Gaps in the position ids are not taken for borders between packed samples."""
    logits = {}
    for attention in ("sdpa", "flash_attention_2"):
        model = tiny_llava()
        apply_clasp(model, profile=tiny_profile(), **settings)
        model.model.language_model.config._attn_implementation = attention
        logits[attention] = two_turns(model, rows)
    torch.testing.assert_close(logits["flash_attention_2"], logits["sdpa"], atol=1e-4, rtol=0)


def two_turns(
    model: LlavaForConditionalGeneration, rows: list[list[int | str]]
) -> list[torch.Tensor]:
    """Return the logits of every decode step."""
    settings = {
        "max_new_tokens": 3,
        "output_logits": True,
        "return_dict_in_generate": True,
        "suppress_tokens": [60],
        "categories": "ocr",
    }
    turn = prompts(*rows)
    first = model.generate(**turn, pixel_values=images(len(rows)), **settings)
    new_tokens = torch.ones(len(rows), 3, dtype=torch.int64)
    second = model.generate(
        input_ids=torch.cat([first.sequences, turn["input_ids"]], 1),
        attention_mask=torch.cat([turn["attention_mask"], new_tokens, turn["attention_mask"]], 1),
        pixel_values=images(len(rows), seed=2),
        past_key_values=output_cache(first),
        **settings,
    )
    return [*first.logits, *second.logits]
