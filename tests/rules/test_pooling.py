"""The mean of groups of tokens."""

from __future__ import annotations

import pytest
import torch

from clasp_kernels.rules import pool_tokens


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16, torch.float64])
def test_a_mean_is_accumulated_in_float32(dtype: torch.dtype) -> None:
    generator = torch.Generator().manual_seed(0)
    tokens = (torch.randn(3, 400, 7, generator=generator) + 5).to(dtype)
    groups = torch.randint(-1, 4, (3, 400), generator=generator)
    means = pool_tokens(tokens, groups, 4)
    assert means.shape == (3, 4, 7) and means.dtype == dtype
    for image in range(3):
        for group in range(4):
            expected = tokens[image, groups[image] == group].double().mean(0)
            wide = torch.promote_types(dtype, torch.float32)
            tolerance = 200 * torch.finfo(wide).eps + torch.finfo(dtype).eps
            torch.testing.assert_close(
                means[image, group].double(), expected, rtol=tolerance, atol=0
            )


def test_what_is_not_finite_stays_in_its_group() -> None:
    tokens = torch.ones(2, 6, 3)
    tokens[0, 1], tokens[0, 4] = float("nan"), float("inf")
    groups = torch.tensor([[0, 0, 1, 1, -1, 2], [2, 2, 1, 1, 0, 0]])
    means = pool_tokens(tokens, groups, 3)
    assert means[0, 0].isnan().all()
    assert (means[0, 1:] == 1).all() and (means[1] == 1).all()


def test_an_empty_group_is_0_and_nothing_has_no_mean() -> None:
    tokens = torch.ones(2, 3, 4)
    means = pool_tokens(tokens, torch.tensor([[2, 2, -1], [-1, -1, -1]]), 3)
    assert means.sum(-1).tolist() == [[0, 0, 4], [0, 0, 0]]
    for shape, number in (((0, 3, 4), 2), ((2, 0, 4), 2), ((2, 3, 4), 0)):
        none = torch.full(shape[:2], -1)
        assert pool_tokens(torch.ones(shape), none, number).shape == (shape[0], number, 4)


def test_a_mean_does_not_depend_on_the_batch_or_the_layout() -> None:
    generator = torch.Generator().manual_seed(0)
    tokens = torch.randn(5, 300, 33, generator=generator)
    groups = torch.randint(0, 20, (5, 300), generator=generator)
    together = pool_tokens(tokens, groups, 20)
    for image in range(5):
        part = slice(image, image + 1)
        assert torch.equal(pool_tokens(tokens[part], groups[part], 20), together[part])
    strided = torch.stack([tokens, tokens], 2).flatten(1, 2)[:, ::2]
    assert torch.equal(pool_tokens(strided, groups, 20), together)
