"""What the tests on a GPU hold results to, held itself to the oracle, and tried at small sizes."""

from __future__ import annotations

import exact
import gpu_checks
import large
import oracle
import pytest
import torch
from inputs import DTYPES

from clasp_kernels import use_backend

SIZES = [large.Size(3, 13, 7), large.Size(2, 9, 1), large.Size(1, 1, 5)]
CPU_BACKENDS = ["reference", "triton"]


@pytest.fixture(params=CPU_BACKENDS)
def forced(request: pytest.FixtureRequest):
    with use_backend(request.param):
        yield request.param


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("size", SIZES, ids=str)
@pytest.mark.parametrize("name", large.OPS)
def test_small_sizes_pass_on_the_cpu(forced, name, size, dtype) -> None:
    if problem := gpu_checks.problem(name, "cpu"):
        pytest.skip(problem)
    gpu_checks.assert_right(name, size, dtype, "cpu")
    gpu_checks.assert_images_are_independent(name, size, dtype, "cpu")
    gpu_checks.assert_same_bits_every_time(name, size, dtype, "cpu", times=2)


@pytest.mark.parametrize("normalize", [None, "l2", "rms"])
def test_fusion_in_float64_is_the_oracles(normalize) -> None:
    given = large.arguments("fuse_layers", SIZES[0], torch.bfloat16, "cpu")
    given["normalize"] = normalize
    torch.testing.assert_close(exact.fuse_layers(**given), oracle.fuse_layers(**given))


def test_salience_in_float64_is_the_oracles() -> None:
    given = large.arguments("attention_salience", SIZES[0], torch.bfloat16, "cpu")
    expected = oracle.attention_salience(**given)
    torch.testing.assert_close(exact.attention_salience(**given), expected)


@pytest.mark.parametrize("size", SIZES, ids=str)
def test_merging_in_float64_is_the_oracles(size) -> None:
    given = large.arguments("merge_tokens", size, torch.float16, "cpu", exact=True)
    torch.testing.assert_close(exact.merge_tokens(**given), oracle.merge_tokens(**given))


@pytest.mark.parametrize("dim", [1, 4, 63])
def test_wide_features_have_exact_cosines(dim) -> None:
    features = large.Maker(0, "cpu").exact_features(2, 40, dim)
    norms = features.square().sum(-1).sqrt()
    assert torch.equal(norms, norms.round())
    assert len(features[0].unique(dim=0)) < 40
    assert (norms == 0).any() and (features != 0).any(0).any(0).sum() == min(dim, 4)


def test_the_certificate_accepts_what_the_oracle_picks() -> None:
    given = large.arguments("complete_tokens", large.Size(3, 13, 7), torch.float32, "cpu")
    picks = oracle.complete_tokens(**given)
    choice = given["features"], given["selected"]
    exact.certify_completion(*choice, picks, given["valid"])
    for image, step in [(0, 0), (2, 3)]:
        for wrong in (-1, 13, -2, int(picks[image, step - 1]), int(given["selected"][image].max())):
            changed = picks.clone()
            changed[image, step] = wrong
            with pytest.raises(AssertionError, match="not certified"):
                exact.certify_completion(*choice, changed, given["valid"])
    swapped = picks[:, [1, 0, *range(2, picks.shape[1])]]
    with pytest.raises(AssertionError, match="not certified"):
        exact.certify_completion(*choice, swapped, given["valid"])


@pytest.mark.parametrize("name", large.OPS)
def test_a_wrong_result_is_noticed(name, monkeypatch) -> None:
    """A backend that is wrong in one image or element, and right in all else."""
    right = gpu_checks.run

    calls = []

    def wrong_at_first(op, given):
        results = right(op, given)
        calls.append(op)
        if len(calls) > 1:
            return results
        changed = results[0].clone()
        changed.view(-1)[-1] += 1
        return (changed, *results[1:])

    monkeypatch.setattr(gpu_checks, "run", wrong_at_first)
    with use_backend("reference"), pytest.raises(AssertionError):
        gpu_checks.assert_right(name, large.Size(2, 40, 7), torch.float32, "cpu")
