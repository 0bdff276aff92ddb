"""What only the Triton kernels of attention_salience have: two ways to it, and their blocks."""

from __future__ import annotations

from typing import Any

import exact
import pytest
import torch
from inputs import generator
from torch import Tensor

from clasp_kernels import attention_salience, reference
from clasp_kernels.triton import configs
from clasp_kernels.triton.attention_salience import attention_salience as launch
from clasp_kernels.triton.configs import SalienceTiles

OP = "attention_salience"
NAN, INF = float("nan"), float("inf")
CLOSE = {"rtol": 1e-5, "atol": 1e-7}

# Smaller than they would be, so that few keys, rows and features fill several of them.
WHOLE = SalienceTiles(64, 16, 16, 2, 0, 4, 2, "ieee")
SPLIT = SalienceTiles(16, 16, 16, 0, 2, 4, 2, "ieee")
WAYS = {"all keys at once": WHOLE, "split keys": SPLIT}
EVERY_WAY = pytest.mark.parametrize("tiles", WAYS.values(), ids=WAYS, indirect=True)


@pytest.fixture
def tiles(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> SalienceTiles:
    monkeypatch.setattr(configs, OP, lambda *shape: request.param)
    return request.param


def heads(
    device: str, key_heads: int, group: int, rows: int, keys: int, width: int
) -> tuple[Tensor, Tensor]:
    random = generator(rows + keys + width)
    query = torch.randn(2, key_heads * group, rows, width, generator=random)
    key = torch.randn(2, key_heads, keys, width, generator=random)
    return query.to(device), key.to(device)


def assert_right(query: Tensor, key: Tensor, scale: float = 1.0, **options: Any) -> None:
    salience = attention_salience(query, key, scale=scale, **options)
    query = query.double() * scale * query.shape[3] ** 0.5  # by which the exact one divides
    expected = exact.attention_salience(query, key, **options)
    torch.testing.assert_close(salience.double(), expected, **CLOSE)


@EVERY_WAY
@pytest.mark.parametrize(
    ("key_heads", "group", "rows", "keys", "width"),
    [
        (1, 1, 1, 1, 1),
        (1, 1, 16, 16, 16),
        (2, 3, 1, 17, 3),  # rows of one block, of several heads
        (1, 3, 11, 48, 17),  # blocks of rows that end inside a head; two chunks of features
        (1, 1, 40, 40, 40),  # blocks of rows that end with a program; three chunks
        (1, 2, 33, 9, 5),  # more rows than keys, some of which see none if causal
    ],
)
def test_any_shape(device, tiles, key_heads, group, rows, keys, width) -> None:
    query, key = heads(device, key_heads, group, rows, keys, width)
    valid = torch.rand(2, keys, generator=generator(keys)) < 0.8
    weights = torch.rand(2, rows, generator=generator(rows))
    assert_right(query, key)
    options = {"key_valid": valid.to(device), "query_weights": weights.to(device)}
    assert_right(query, key, causal=True, scale=-0.7, **options)


@EVERY_WAY
def test_a_range_may_cut_blocks_and_changes_no_bit(device, tiles) -> None:
    query, key = heads(device, 2, 2, 7, 60, 7)
    whole = attention_salience(query, key, causal=True)
    for start, stop in [(0, 1), (15, 17), (16, 32), (17, 31), (5, 60), (59, 60), (0, 16)]:
        reported = attention_salience(query, key, causal=True, key_range=(start, stop))
        assert torch.equal(reported, whole[:, start:stop]), (start, stop)


@EVERY_WAY
@pytest.mark.parametrize("valid", [range(20, 60), range(3), range(20, 21), range(0)], ids=str)
def test_a_split_may_have_no_valid_key(device, tiles, valid) -> None:
    query, key = heads(device, 1, 2, 10, 60, 4)
    mask = torch.zeros(2, 60, dtype=torch.bool, device=device)
    mask[:, list(valid)] = True
    key[:, :, ~mask[0]] = NAN
    assert_right(query, key.nan_to_num(0.0), key_valid=mask)
    for causal in (False, True):
        salience = attention_salience(query, key, key_valid=mask, causal=causal)
        assert torch.equal(salience[~mask], torch.zeros_like(salience[~mask]))
        assert salience.isfinite().all()


def test_more_sums_than_are_added_at_once(device, monkeypatch) -> None:
    """Of 20 heads, then of 20 splits; and 300 columns, of which 256 are added at once."""
    for tiles in (SalienceTiles(512, 16, 16, 1, 0, 4, 2, "ieee"), SPLIT._replace(splits=99)):
        monkeypatch.setattr(configs, OP, lambda *shape, tiles=tiles: tiles)
        assert_right(*heads(device, 18, 1, 2, 5, 3))
        assert_right(*heads(device, 2, 1, 2, 300, 3))


@EVERY_WAY
def test_more_weights_than_are_loaded_at_once(device, tiles) -> None:
    query, key = heads(device, 1, 1, 1040, 12, 2)
    weights = torch.rand(2, 1040, generator=generator(1)).to(device)
    weights[0, :1030] = 0
    weights[1, 1030:] = 0
    assert_right(query, key, query_weights=1e38 * weights)


def assert_equals_the_reference(query: Tensor, key: Tensor, **options: Any) -> None:
    """Past the public function, which would refuse such weights on the CPU."""
    given = {"scale": 0.5, "causal": True, "key_valid": None, "query_weights": None, **options}
    given = {"query": query, "key": key, **given, "start": 0, "stop": key.shape[2]}
    expected = reference.attention_salience(*given.values())
    torch.testing.assert_close(launch(*given.values()), expected, equal_nan=True, **CLOSE)


@EVERY_WAY
@pytest.mark.parametrize("garbage", [NAN, INF, -INF])
def test_garbage_spreads_as_in_the_reference(device, tiles, garbage) -> None:
    query, key = heads(device, 1, 2, 10, 50, 3)
    valid = torch.ones(2, 50, dtype=torch.bool, device=device)
    valid[0, 40:] = False
    valid[1, :20] = False
    row, column = query.clone(), key.clone()
    row[0, 1, 7] = garbage
    column[0, 0, 41, 0] = garbage  # masked
    column[1, 0, 45] = garbage  # seen by the later rows, as logits of both infinities or NaN
    assert_equals_the_reference(row, key, key_valid=valid)
    assert_equals_the_reference(query, column, key_valid=valid)
    weights = torch.ones(2, 10, device=device)
    weights[0, 7] = 0
    assert_equals_the_reference(row, key, key_valid=valid, query_weights=weights)
    weights[1, 3] = abs(garbage)
    assert_equals_the_reference(query, key, key_valid=valid, query_weights=weights)


@EVERY_WAY
def test_keys_at_minus_infinity_get_nothing_unless_all_are(device, tiles) -> None:
    query, key = torch.ones(1, 1, 1, 1, device=device), torch.zeros(1, 1, 50, 1, device=device)
    key[:, :, :40] = -INF
    salience = attention_salience(query, key)
    assert torch.equal(salience[0, :40], torch.zeros(40, device=device))
    torch.testing.assert_close(salience[0, 40:], torch.full((10,), 0.1, device=device))
    key[:] = -INF
    valid = torch.arange(50, device=device)[None] < 30
    salience = attention_salience(query, key, key_valid=valid)
    assert torch.equal(salience.isnan(), valid)
    assert torch.equal(salience[~valid], torch.zeros(20, device=device))


@EVERY_WAY
@pytest.mark.parametrize("scale", [0.0, 3e38, -3e38])
def test_a_scale_may_take_the_whole_range(device, tiles, scale) -> None:
    query, key = heads(device, 1, 1, 3, 50, 4)
    assert_right(query, key * 1e-38, scale=scale)
    assert_right(torch.ones_like(query), torch.full_like(key, 0.25), scale=scale)
    assert_equals_the_reference(query, key, scale=scale, causal=False)


@EVERY_WAY
def test_twenty_runs_give_the_same_bits(device, tiles) -> None:
    query, key = (states[:1] for states in heads(device, 2, 1, 3, 40, 4))
    first = attention_salience(query, key, causal=True)
    # The interpreter runs one program after another, in one order.
    for _ in range(1 if device == "cpu" else 20):
        assert torch.equal(attention_salience(query, key, causal=True), first)


@pytest.mark.parametrize("keys", [512, 4096])
def test_amd_is_not_asked_for_a_precision_it_lacks(monkeypatch, keys) -> None:
    for hip, precision in ((None, "tf32x3"), ("7.0", "ieee")):
        monkeypatch.setattr(torch.version, "hip", hip)
        assert configs.attention_salience(keys, 32, 64, 8, 4).precision == precision


def test_amd_is_not_asked_for_shared_memory_it_lacks(monkeypatch) -> None:
    """64 KB a block; what is in flight of the keys alone, at all numbers of them."""
    monkeypatch.setattr(torch.version, "hip", "7.0")
    for keys in (200, 512, 1024):
        for element_bytes in (2, 4):
            tiles = configs.attention_salience(keys, 32, 128, 8, element_bytes)
            if tiles.num_stages > 1:
                tile = (tiles.keys + tiles.rows) * tiles.features * element_bytes
                assert tile * (tiles.num_stages - 1) < 64 << 10
