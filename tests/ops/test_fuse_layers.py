import itertools

import oracle
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from inputs import DTYPES, dtypes, generator, seeds
from torch import Tensor

from clasp_kernels import fuse_layers

OP = "fuse_layers"

# Half a unit in the last place of the output dtype, on top of float32 accumulation.
TOLERANCE = {
    torch.float32: {"rtol": 1e-5, "atol": 1e-6},
    torch.bfloat16: {"rtol": 2**-8, "atol": 1e-6},
    torch.float16: {"rtol": 2**-11, "atol": 1e-6},
}


def random_layers(seed: int, count: int, *shape: int, dtype: torch.dtype) -> list[Tensor]:
    random = generator(seed)
    return [torch.randn(shape, generator=random).to(dtype) for _ in range(count)]


@given(
    seed=seeds,
    dtype=dtypes,
    normalize=st.sampled_from([None, "l2", "rms"]),
    layers=st.integers(1, 4),
    batch=st.integers(1, 3),
    tokens=st.integers(0, 5),
    width=st.integers(1, 9),
    categories=st.integers(0, 3),
)
def test_matches_the_formula(
    backend, seed, dtype, normalize, layers, batch, tokens, width, categories
) -> None:
    states = random_layers(seed, layers, batch, tokens, width, dtype=dtype)
    random = generator(seed)
    ids = torch.randint(categories, (batch,), generator=random) if categories else None
    weights = torch.randn((categories, layers) if categories else (layers,), generator=random)
    actual = fuse_layers(states, weights, ids, normalize=normalize)
    expected = oracle.fuse_layers(states, weights, ids, normalize)
    assert actual.dtype == dtype
    torch.testing.assert_close(actual.double(), expected, **TOLERANCE[dtype])


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_one_tensor_is_the_same_as_a_list_of_layers(backend, dtype) -> None:
    states = torch.randn(3, 2, 5, 4).to(dtype)
    weights = torch.tensor([0.2, 0.5, 0.3])
    assert torch.equal(fuse_layers(states, weights), fuse_layers(list(states), weights))
    assert torch.equal(fuse_layers(states, weights), fuse_layers(tuple(states), weights))


@pytest.mark.cpu_tensors("it looks at addresses")
def test_list_form_copies_nothing(backend) -> None:
    """The op is handed the very views it was given, CLS dropped."""
    seen: list[Tensor] = []

    class Spy(torch.utils._python_dispatch.TorchDispatchMode):
        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            if func.namespace == "clasp_kernels":
                seen.extend(args[0])
            return func(*args, **(kwargs or {}))

    states = [torch.randn(2, 6, 4) for _ in range(3)]
    views = [layer[:, 1:] for layer in states]
    with Spy():
        fused = fuse_layers(views, torch.tensor([0.2, 0.5, 0.3]))
    for layer, view in zip(states, seen, strict=True):
        assert view.data_ptr() == layer.data_ptr() + 4 * layer.element_size()
        assert view.stride() == layer.stride()
    contiguous = [view.contiguous() for view in views]
    assert torch.equal(fused, fuse_layers(contiguous, torch.tensor([0.2, 0.5, 0.3])))


@pytest.mark.parametrize("normalize", [None, "l2", "rms"])
@pytest.mark.parametrize("garbage", [float("nan"), float("inf")])
def test_a_layer_of_weight_zero_has_no_influence(backend, normalize, garbage) -> None:
    states = random_layers(1, 3, 2, 4, 3, dtype=torch.float32)
    weights = torch.tensor([[0.5, 0.0, 0.5], [0.5, -0.0, 0.5]])
    ids = torch.tensor([1, 0])
    clean = fuse_layers(states, weights, ids, normalize=normalize)
    states[1] = torch.full_like(states[1], garbage)
    assert torch.equal(fuse_layers(states, weights, ids, normalize=normalize), clean)


def test_weight_zero_is_per_image(backend) -> None:
    states = [torch.ones(2, 1, 1), torch.full((2, 1, 1), float("nan"))]
    weights = torch.tensor([[1.0, 0.0], [1.0, 1.0]])
    fused = fuse_layers(states, weights, torch.tensor([0, 1]))
    assert fused[0, 0, 0] == 1
    assert fused[1, 0, 0].isnan()


def test_all_weights_zero_give_zeros(backend) -> None:
    states = [torch.full((1, 2, 3), float("nan"))] * 2
    assert torch.equal(fuse_layers(states, torch.zeros(2)), torch.zeros(1, 2, 3))


def test_a_zero_vector_stays_zero_under_l2(backend) -> None:
    fused = fuse_layers([torch.zeros(1, 2, 3)], torch.ones(1), normalize="l2")
    assert torch.equal(fused, torch.zeros(1, 2, 3))


def test_rms_damps_tokens_that_are_nearly_zero(backend) -> None:
    # mean(x^2) equals the epsilon of 1e-6, so the token is divided by sqrt(2e-6).
    fused = fuse_layers([torch.full((1, 1, 4), 1e-3)], torch.ones(1), normalize="rms")
    torch.testing.assert_close(fused, torch.full((1, 1, 4), 2**-0.5))
    zero = fuse_layers([torch.zeros(1, 1, 4)], torch.ones(1), normalize="rms")
    assert torch.equal(zero, torch.zeros(1, 1, 4))


def test_accumulates_in_float32(backend) -> None:
    # In bfloat16, 256 + 1 is 256 and the ones would be lost one by one.
    states = [torch.full((1, 1, 1), 256.0, dtype=torch.bfloat16)]
    states += [torch.ones(1, 1, 1, dtype=torch.bfloat16)] * 8
    assert fuse_layers(states, torch.ones(9)).item() == 264


def test_output_is_contiguous_whatever_the_input(backend) -> None:
    states = torch.randn(2, 3, 4, 5).transpose(1, 2)
    assert fuse_layers(states, torch.ones(2)).is_contiguous()


@pytest.mark.parametrize("normalize", [None, "l2", "rms"])
def test_an_image_does_not_depend_on_its_batch_in_any_layout(backend, normalize) -> None:
    weights = torch.ones(1)
    for order in itertools.permutations(range(3)):
        back = [order.index(dim) for dim in range(3)]
        sizes = [(3, 13, 19)[dim] for dim in order]
        states = torch.randn(sizes, generator=generator(0)).permute(back)
        whole = fuse_layers([states], weights, normalize=normalize)
        for image in range(3):
            alone = fuse_layers([states[image : image + 1]], weights, normalize=normalize)
            assert torch.equal(alone[0], whole[image])


def test_norms_beyond_float32(backend) -> None:
    """As documented: an overflow gives zeros, an underflow under l2 leaves the token alone."""
    for normalize in ("l2", "rms"):
        huge = fuse_layers([torch.full((1, 1, 3), 1e20)], torch.ones(1), normalize=normalize)
        assert torch.equal(huge, torch.zeros(1, 1, 3))
    tiny = torch.full((1, 1, 3), 1e-25)
    assert torch.equal(fuse_layers([tiny], torch.ones(1), normalize="l2"), tiny)
    for scale in (1e-18, 1e18):
        unit = fuse_layers([torch.full((1, 1, 4), scale)], torch.ones(1), normalize="l2")
        torch.testing.assert_close(unit, torch.full((1, 1, 4), 0.5))
