"""What a result has to be, on whatever device and at whatever size."""

from __future__ import annotations

from typing import Any

import exact
import large
import torch
from calling import assert_same_bits, run

from clasp_kernels import backend_report, backends, complete_tokens, select_pivots, use_backend

# Half a unit in the last place of the output dtype, on top of float32 accumulation.
TOLERANCE = {
    torch.float32: {"rtol": 1e-5, "atol": 1e-5},
    torch.bfloat16: {"rtol": 2**-8, "atol": 1e-5},
    torch.float16: {"rtol": 2**-11, "atol": 1e-5},
}


def assert_right(
    op: str, size: large.Size, dtype: torch.dtype, device: str, *, weighted: bool = False
) -> None:
    """Against float64, or along its own choices where they decide, or against the reference."""
    given = large.arguments(op, size, dtype, device, weighted=weighted)
    if op == "fuse_layers":
        for normalize in (None, "l2", "rms"):
            given["normalize"] = normalize
            (fused,) = run(op, given)
            assert fused.dtype == dtype
            expected = exact.fuse_layers(**given)
            torch.testing.assert_close(fused.double(), expected, **TOLERANCE[dtype])
    elif op == "attention_salience":
        (salience,) = run(op, given)
        expected = exact.attention_salience(**given)
        torch.testing.assert_close(salience.double(), expected, rtol=3e-5, atol=1e-7)
    elif op == "complete_tokens":
        (picks,) = run(op, given)
        exact.certify_completion(
            given["features"], given["selected"], picks, given.get("weights"), given["valid"]
        )
        given = large.arguments(op, size, dtype, device, exact=True, weighted=weighted)
        assert_equals_the_reference(op, given)
    elif op == "cover_tokens":
        (picks,) = run(op, given)
        exact.certify_cover(**given, picks=picks)
        assert_equals_the_reference(op, large.arguments(op, size, dtype, device, exact=True))
    elif op == "select_tokens":
        assert_selects(given)
        given = large.arguments(op, size, dtype, device, exact=True, weighted=weighted)
        assert_equals_the_reference(op, given)
    elif op == "merge_tokens":
        given = large.arguments(op, size, dtype, device, exact=True)
        (merged,) = run(op, given)
        assert merged.dtype == dtype
        expected = exact.merge_tokens(**given)
        torch.testing.assert_close(merged.double(), expected, **TOLERANCE[dtype])
    else:
        assert_equals_the_reference(op, given)


def assert_equals_the_reference(op: str, given: dict[str, Any]) -> None:
    result = run(op, given)
    with use_backend("reference"):
        assert_same_bits(result, run(op, given))


def assert_selects(given: dict[str, Any]) -> None:
    """Pivots, then the completion by the same backend, certified, then a sort by index."""
    features, salience, valid = given["features"], given["salience"], given["valid"]
    weights = given.get("weights")
    indices, is_pivot, counts = run("select_tokens", given)
    tokens = features.shape[1]
    budget = given["budget"]
    shares = [min(max(s, 1), b) for s, b in zip(given["pivot_counts"], budget, strict=True)]
    pivots = select_pivots_of_the_reference(salience, shares, valid)
    completion = complete_tokens(features, pivots, max(budget), weights=weights, valid=valid)
    exact.certify_completion(features, pivots, completion, weights, valid)
    for image in range(features.shape[0]):
        of_image = pivots[image][pivots[image] >= 0]
        picks = completion[image][completion[image] >= 0][: budget[image] - len(of_image)]
        kept = torch.cat([of_image, picks]).sort().values
        assert counts[image] == len(kept)
        assert torch.equal(indices[image, : len(kept)], kept)
        assert (indices[image, len(kept) :] == -1).all()
        marked = indices[image][is_pivot[image]]
        assert torch.equal(marked, of_image.sort().values)
        assert len(kept) <= tokens


def select_pivots_of_the_reference(
    salience: torch.Tensor, shares: list[int], valid: torch.Tensor | None
) -> torch.Tensor:
    with use_backend("reference"):
        return select_pivots(salience, shares, valid=valid)


def assert_images_are_independent(
    op: str, size: large.Size, dtype: torch.dtype, device: str, *, weighted: bool = False
) -> None:
    given = large.arguments(op, size, dtype, device, weighted=weighted)
    together = run(op, given)
    last = size.batch - 1
    for images in ([0], [last], [last, 0, last // 2]):
        for alone, whole in zip(run(op, large.take(op, given, images)), together, strict=True):
            # Padding aside: widths are the largest count of the images at hand.
            part = whole[images]
            part = part[:, : alone.shape[1]] if alone.dim() > 1 else part
            torch.testing.assert_close(alone, part, rtol=0, atol=0)


def assert_same_bits_every_time(
    op: str, size: large.Size, dtype: torch.dtype, device: str, times: int
) -> None:
    given = large.arguments(op, size, dtype, device)
    first = run(op, given)
    for _ in range(times):
        assert_same_bits(run(op, given), first)


def assert_equal_tokens_tie(
    op: str, size: large.Size, dtype: torch.dtype, device: str, seed: int, *, exact: bool = False
) -> None:
    """Of two equal tokens the lower is picked, on whichever side of the two the tokens are that
    they are compared with; all tokens have an equal.

    ``exact``: cosines and their sums are exact, for products that round by the place in a tile, as
    those of Triton's interpreter do on some processors. ``size.dim`` is a power of 4.
    """
    make = large.Maker(seed, device)
    batch, tokens, _ = size
    image = torch.arange(batch, device=device)[:, None]
    one, other = make.rand(batch, tokens).argsort(-1).chunk(2, 1)
    features = make.randn(*size).to(dtype)
    if exact:
        features = features.sign()
    features[image, other] = features[image, one]
    kept, count = one[:, : min(8, tokens // 8)], min(64, tokens // 4)
    if op != "select_tokens":
        (picks,) = run(op, {"features": features, "selected": kept, "num_tokens": count})
    else:
        salience = torch.zeros(batch, tokens, device=device).scatter(1, kept, 1.0)
        given = {"features": features, "salience": salience, "pivot_counts": kept.shape[1]}
        indices, is_pivot, _ = run(op, {**given, "budget": kept.shape[1] + count})
        picks = indices[~is_pivot].view(batch, -1)
    assert picks.shape == (batch, count)
    equal = torch.empty(batch, tokens, dtype=torch.int64, device=device)
    equal[image, one], equal[image, other] = other, one
    wrong = (picks > equal.gather(1, picks)).nonzero().tolist()
    assert not wrong, f"the higher of two equal tokens at [image, pick] {wrong[:5]}"


# Bytes of which floats and integers are 0, small and large, NaN and -1.
LEFT_BEHIND = (0x00, 0x3F, 0xFF)


def assert_what_memory_held_does_not_matter(
    op: str, size: large.Size, dtype: torch.dtype, device: str
) -> None:
    """torch's allocator hands out what others have used, and the call before this one too."""
    given = large.arguments(op, size, dtype, device)
    expected = run(op, given)
    filled = torch.utils.deterministic.fill_uninitialized_memory
    torch.utils.deterministic.fill_uninitialized_memory = False
    try:
        for byte in LEFT_BEHIND:
            leave_in_memory(byte, device)
            assert_same_bits(run(op, given), expected)
    finally:
        torch.utils.deterministic.fill_uninitialized_memory = filled


def leave_in_memory(byte: int, device: str) -> None:
    """What torch's allocator has at hand for outputs and for a whole workspace holds this."""
    if torch.device(device).type != "cuda":
        return  # memory of the CPU is not kept for the next who asks
    torch.cuda.empty_cache()
    sizes = (*[1 << 20] * 16, WORKSPACE + (16 << 20))
    blocks = [torch.full((size,), byte, dtype=torch.uint8, device=device) for size in sizes]
    del blocks
    for size in (4096, 1 << 20, WORKSPACE):
        handed_out = torch.empty(size, dtype=torch.uint8, device=device)
        assert (handed_out == byte).all(), "the allocator has other memory at hand"


# What a call of the CUDA extension may take besides its outputs, whatever the batch.
WORKSPACE = 256 << 20
# Blocks of torch's allocator are up to a MiB larger than what was asked for.
ROUNDING = 4 << 20


def assert_takes_no_more_than_a_workspace(op: str, given: dict[str, Any]) -> None:
    torch.cuda.synchronize()
    before = torch.cuda.memory_allocated()
    torch.cuda.reset_peak_memory_stats()
    results = run(op, given)
    taken = torch.cuda.max_memory_allocated() - before
    outputs = sum(result.nbytes for result in results)
    assert taken >= outputs, "memory that the call has taken was not seen"
    assert taken - outputs <= WORKSPACE + ROUNDING, f"{taken - outputs >> 20} MiB of workspace"


def problem(op: str, device: str) -> str | None:
    """Why :func:`assert_right` cannot judge the backend that is forced, or None if it can."""
    forced = backend_report().forced
    needed = [op, "complete_tokens"] if op == "select_tokens" else [op]
    choices = [backends.choose(name, device, forced) for name in needed]
    return next((choice.reason for choice in choices if choice.backend is None), None)
