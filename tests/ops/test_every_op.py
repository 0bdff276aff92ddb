"""What holds for every op, on every backend that serves it."""

from __future__ import annotations

import copy
import functools
from collections.abc import Callable
from typing import Any

import pytest
import torch
from calling import assert_same_bits, handed_to_torch, run, tensors_mapped
from inputs import DTYPES, Call, calls, plain_calls
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

import clasp_kernels
from clasp_kernels import Selection, backend_report, backends, reference
from clasp_kernels.triton import INTERPRETED

OPS = sorted(calls())


def test_fresh_memory_is_poisoned() -> None:
    assert torch.zeros(1).new_empty(3).isnan().all()
    assert (torch.zeros(1).new_empty(3, dtype=torch.int64) > 10**6).all()


@pytest.mark.parametrize("make", [calls, plain_calls])
def test_opcheck(served: str, make: Callable[[], dict[str, Call]]) -> None:
    """Of the overload that the backend that is forced has, or of the default one."""
    packet = getattr(torch.ops.clasp_kernels, served)
    forced = backend_report().forced
    overload = getattr(packet, forced if forced in packet.overloads() else "default")
    torch.library.opcheck(overload, handed_to_torch(served, make()[served].arguments))


@pytest.mark.parametrize("op", OPS)
def test_opcheck_with_inputs_that_require_grad(op: str) -> None:
    arguments = tuple(
        value.clone().requires_grad_()
        if isinstance(value, Tensor) and value.is_floating_point()
        else value
        for value in handed_to_torch(op, calls()[op].arguments)
    )
    packet = getattr(torch.ops.clasp_kernels, op)
    torch.library.opcheck(packet.default, arguments, test_utils="test_autograd_registration")


@pytest.mark.cpu_tensors("what moves tensors cannot be traced; tests/kernels/test_gpu.py does it")
def test_compiles_into_one_graph(served: str) -> None:
    call = calls()[served]
    torch._dynamo.reset()
    compiled = torch.compile(run, fullgraph=True, backend="aot_eager")
    assert_same_bits(compiled(served, call.arguments), run(served, call.arguments))


def test_inductor_gives_what_eager_gives() -> None:
    # Ops alone: for anything else inductor would compile C++, and take most of the suite's time.
    def prune(features: Tensor, salience: Tensor) -> Tensor:
        return clasp_kernels.prune_tokens(features, features, salience, 5, 2)[0]

    features = torch.randn(3, 9, 4)
    salience = torch.rand(3, 9)
    torch._dynamo.reset()
    compiled = torch.compile(prune, fullgraph=True)
    assert torch.equal(compiled(features, salience), prune(features, salience))


def test_compiled_with_a_changing_number_of_tokens() -> None:
    torch._dynamo.reset()
    compiled = torch.compile(
        clasp_kernels.select_tokens, fullgraph=True, dynamic=True, backend="aot_eager"
    )
    for tokens, budget in ((7, 3), (11, 4), (5, 8)):
        features, salience = torch.randn(2, tokens, 3), torch.rand(2, tokens)
        actual = compiled(features, salience, budget, 2)
        assert_same_bits(actual, clasp_kernels.select_tokens(features, salience, budget, 2))


def test_compiled_with_the_other_completion() -> None:
    """One graph, although it is made of several ops."""

    def select(features: Tensor, salience: Tensor) -> Selection:
        return clasp_kernels.select_tokens(features, salience, [5, 3], 2, completion="cover")

    torch._dynamo.reset()
    compiled = torch.compile(select, fullgraph=True, backend="aot_eager")
    assert_same_bits(compiled(FEATURES, SALIENCE), select(FEATURES, SALIENCE))
    farthest = clasp_kernels.select_tokens(FEATURES, SALIENCE, [5, 3], 2)
    assert not torch.equal(compiled(FEATURES, SALIENCE).indices, farthest.indices)


# Seeded, as with some values both completions keep the same tokens.
_GENERATOR = torch.Generator().manual_seed(0)
FEATURES = torch.randn(2, 9, 4, generator=_GENERATOR)
SALIENCE = torch.rand(2, 9, generator=_GENERATOR)
HEADS = torch.randn(2, 2, 6, 3, generator=_GENERATOR)


@pytest.mark.parametrize(
    ("function", "values"),
    [
        (lambda k: clasp_kernels.select_pivots(SALIENCE, k), [[3, 5], [4, 2], [7, 7]]),
        (
            lambda budget: clasp_kernels.select_tokens(FEATURES, SALIENCE, budget, 2)[0],
            [[3, 5], [4, 2], [7, 7]],
        ),
        (
            lambda pivots: clasp_kernels.select_tokens(FEATURES, SALIENCE, 6, pivots)[1],
            [[3, 5], [4, 0], [9, 9]],
        ),
        (
            lambda scale: clasp_kernels.attention_salience(HEADS, HEADS, scale=scale),
            [0.5, 2.0, -1.0],
        ),
    ],
    ids=["k", "budget", "pivot_counts", "scale"],
)
def test_compiled_once_called_with_other_numbers(function, values) -> None:
    """From the second call on the numbers are symbols."""
    torch._dynamo.reset()
    compiled = torch.compile(function, fullgraph=True, backend="aot_eager")
    for value in values:
        assert torch.equal(compiled(value), function(value))


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_records_no_graph(served: str, dtype: torch.dtype) -> None:
    arguments = tensors_mapped(
        calls(dtype)[served].arguments,
        lambda tensor: tensor.requires_grad_() if tensor.is_floating_point() else tensor,
    )
    for output in run(served, arguments):
        assert not output.requires_grad
        assert output.grad_fn is None


def test_calling_the_torch_op_directly_records_no_graph() -> None:
    for op in OPS:
        arguments = tuple(
            value.requires_grad_()
            if isinstance(value, Tensor) and value.is_floating_point()
            else value
            for value in handed_to_torch(op, calls()[op].arguments)
        )
        for overload in ("default", "reference"):
            result = getattr(getattr(torch.ops.clasp_kernels, op), overload)(*arguments)
            outputs = (result,) if isinstance(result, Tensor) else result
            assert not any(output.requires_grad for output in outputs), (op, overload)


def test_autocast_changes_nothing(served: str) -> None:
    arguments = calls()[served].arguments
    expected = run(served, arguments)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert_same_bits(run(served, arguments), expected)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_an_image_does_not_depend_on_its_batch(served: str, dtype: torch.dtype) -> None:
    call = calls(dtype)[served]
    together = run(served, call.arguments)
    for images in ([0], [1], [2], [2, 0], [1, 1, 1, 1, 1]):
        for alone, whole in zip(run(served, call.take(images)), together, strict=True):
            # Padding aside: widths are the largest count of the images at hand.
            width = alone.shape[1] if alone.dim() > 1 else None
            part = whole[images] if width is None else whole[images][:, :width]
            torch.testing.assert_close(alone, part, rtol=0, atol=0)


def test_twenty_runs_give_the_same_bits(served: str, request: pytest.FixtureRequest) -> None:
    arguments = calls()[served].arguments
    first = run(served, arguments)
    # The interpreter runs one program after another, in one order.
    for _ in range(1 if INTERPRETED and "triton" in request.node.name else 20):
        assert_same_bits(run(served, arguments), first)


def strided(tensor: Tensor) -> Tensor:
    """The same values, the first two dimensions swapped in memory and gaps after every row."""
    if tensor.dim() < 2:
        return torch.stack([tensor, tensor], 1)[:, 0]
    gaps = 5 if tensor.dim() > 2 else 0
    view = tensor.new_zeros(*tensor.shape[:-1], tensor.shape[-1] + gaps).transpose(0, 1)
    view = view.contiguous().transpose(0, 1)[..., gaps:]
    return view.copy_(tensor)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_strides_do_not_matter(served: str, dtype: torch.dtype) -> None:
    arguments = calls(dtype)[served].arguments
    views = tensors_mapped(arguments, strided)
    assert any(
        (isinstance(view, Tensor) and not view.is_contiguous()) or isinstance(view, list)
        for view in views.values()
    )
    assert_same_bits(run(served, views), run(served, arguments))


def test_a_strided_last_dimension_is_accepted(served: str) -> None:
    arguments = calls()[served].arguments
    views = tensors_mapped(
        arguments, lambda tensor: torch.stack([tensor, torch.zeros_like(tensor)], -1)[..., 0]
    )
    torch.testing.assert_close(run(served, views), run(served, arguments))


def test_inputs_are_left_alone(served: str) -> None:
    arguments = calls()[served].arguments
    before = copy.deepcopy(arguments)
    run(served, arguments)
    for name, value in arguments.items():
        if isinstance(value, (Tensor, list)):
            torch.testing.assert_close(value, before[name], rtol=0, atol=0)


def test_an_empty_batch_gives_an_empty_result(served: str) -> None:
    call = calls()[served]
    expected = run(served, call.arguments)
    for empty, full in zip(run(served, call.take([])), expected, strict=True):
        # Widths come from per-image lists, which are empty too.
        lists = any(isinstance(value, list) for value in call.take([]).values())
        assert empty.shape[0] == 0
        assert empty.dtype == full.dtype
        assert lists or empty.shape[1:] == full.shape[1:]


def test_works_in_inference_mode(served: str) -> None:
    arguments = calls()[served].arguments
    expected = run(served, arguments)
    with torch.inference_mode():
        assert_same_bits(run(served, tensors_mapped(arguments, torch.clone)), expected)


@pytest.mark.parametrize("op", OPS)
def test_meta_tensors_give_shapes(op: str) -> None:
    call: Call = calls()[op]
    expected = run(op, call.arguments)
    outputs = run(op, tensors_mapped(call.arguments, lambda tensor: tensor.to("meta")))
    for output, real in zip(outputs, expected, strict=True):
        assert output.device.type == "meta"
        assert (output.shape, output.dtype) == (real.shape, real.dtype)


@pytest.mark.parametrize("op", OPS)
def test_reference_reads_nothing_back_to_the_host(op: str) -> None:
    """No op but copies between tensors: on a GPU any of these would wait for the device."""

    class NoSync(TorchDispatchMode):
        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            name = func.name()
            assert "_local_scalar_dense" not in name, name
            assert "nonzero" not in name, name
            assert "masked_select" not in name, name
            return func(*args, **(kwargs or {}))

    arguments = handed_to_torch(op, calls()[op].arguments)
    with NoSync():
        getattr(reference, op)(*arguments)


def mapped_calls(served: str) -> list[dict[str, Any]]:
    """Calls that differ in their tensors alone."""
    call = calls()[served]
    shared = {"k": 4, "budget": 6, "pivot_counts": 3, "num_tokens": 5}
    made = []
    for order in ([0, 1, 2], [2, 0, 1], [1, 1, 0], [0, 2, 2]):
        taken = call.take(order)
        made.append({name: shared.get(name, value) for name, value in taken.items()})
    return made


@pytest.mark.cpu_tensors("what moves tensors asks for storages, which mapped tensors do not have")
@pytest.mark.parametrize("dim", [0, 1, -1])
def test_vmap_gives_what_single_calls_give(served: str, dim: int) -> None:
    """Values are checked and nothing falls back to a loop over calls."""
    if dim != 0 and INTERPRETED and backends.forced_backend() == "triton":
        pytest.skip("the dimension is moved before a kernel runs, and the interpreter is slow")
    made = mapped_calls(served)
    if INTERPRETED and backends.forced_backend() == "triton":
        made = made[:2]
    names = [name for name, value in made[0].items() if isinstance(value, (Tensor, list))]
    rest = {name: value for name, value in made[0].items() if name not in names}

    def stacked(values: tuple[Any, ...]) -> Any:
        if isinstance(values[0], Tensor):
            return torch.stack(values, dim)
        return [torch.stack(layers, dim) for layers in zip(*values, strict=True)]

    def call(*values: Any) -> tuple[Tensor, ...]:
        return run(served, dict(zip(names, values, strict=True)) | rest)

    inputs = [stacked(tuple(one[name] for one in made)) for name in names]
    expected = [
        torch.stack(outputs) for outputs in zip(*(run(served, m) for m in made), strict=True)
    ]
    torch._C._functorch._set_vmap_fallback_enabled(False)
    try:
        assert_same_bits(torch.vmap(call, in_dims=dim)(*inputs), tuple(expected))
        if INTERPRETED and backends.forced_backend() == "triton":
            return  # the rest is about the batching rule, which all backends share
        for index in range(len(names)):  # and each argument on its own
            one = [inputs[i] if i == index else made[0][name] for i, name in enumerate(names)]
            dims = tuple(dim if i == index else None for i in range(len(names)))
            mapped = torch.vmap(call, in_dims=dims)(*one)
            for single, other in enumerate(made):
                arguments = made[0] | {names[index]: other[names[index]]}
                assert_same_bits(tuple(out[single] for out in mapped), run(served, arguments))
    finally:
        torch._C._functorch._set_vmap_fallback_enabled(True)


@pytest.mark.cpu_tensors("what moves tensors asks for storages, which mapped tensors do not have")
def test_vmap_within_vmap(served: str) -> None:
    name = "hidden_states" if served == "fuse_layers" else next(iter(calls()[served].arguments))
    arguments = mapped_calls(served)[0]
    value = arguments[name]
    twice = tensors_mapped({name: value}, lambda tensor: torch.stack([tensor, 2 * tensor]))[name]
    again = tensors_mapped({name: twice}, lambda tensor: torch.stack([tensor] * 3, 1))[name]

    def call(changed: Any) -> tuple[Tensor, ...]:
        return run(served, arguments | {name: changed})

    mapped = torch.vmap(torch.vmap(call), in_dims=1, out_dims=1)(again)
    for index, factor in enumerate((1, 2)):
        scaled = tensors_mapped({name: value}, functools.partial(torch.mul, factor))[name]
        for output, single in zip(mapped, call(scaled), strict=True):
            assert_same_bits((output[index],), (torch.stack([single] * 3),))


@pytest.mark.cpu_tensors("what moves tensors asks for storages, which wrapped tensors do not have")
def test_torch_func_gives_no_derivative(served: str) -> None:
    """As autograd: outputs do not depend on inputs, as far as derivatives go."""
    arguments = mapped_calls(served)[0]
    name = next(name for name, value in arguments.items() if isinstance(value, (Tensor, list)))
    value = arguments[name][0] if isinstance(arguments[name], list) else arguments[name]

    def call(changed: Tensor) -> Tensor:
        changes = [changed] * 3 if name == "hidden_states" else changed
        return run(served, arguments | {name: changes})[0].float()

    assert not torch.func.grad(lambda changed: call(changed).sum() + 0 * changed.sum())(value).any()
    output, tangent = torch.func.jvp(call, (value,), (torch.ones_like(value),))
    assert_same_bits((output,), (call(value),))
    assert not tangent.any()
