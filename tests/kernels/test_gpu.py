"""On a GPU: graphs, compilation, streams and devices; nothing waits, nothing is compiled twice.

What depends on the kernels is tested with each design of the CUDA extension, the rest with the one
that it chooses.
"""

from __future__ import annotations

from typing import Any

import large
import pytest
import sanitized
import torch
from calling import assert_same_bits, handed_to_torch, run, tensors_mapped
from gpu_kernels import DEVICE, OF_EACH_DESIGN, TRITON, each, each_that_fits, with_sizes
from inputs import DTYPES, calls
from torch import Tensor

import clasp_kernels
from clasp_kernels import backends

if not torch.cuda.is_available():
    pytest.skip("there is no GPU", allow_module_level=True)

DTYPE = torch.bfloat16
SIZE = large.Size(3, 577, 1024)


def on_gpu(arguments: dict[str, Any], device: str = DEVICE) -> dict[str, Any]:
    return tensors_mapped(arguments, lambda tensor: tensor.to(device))


def tensors_of(arguments: dict[str, Any]) -> list[Tensor]:
    found: list[Tensor] = []
    tensors_mapped(arguments, lambda tensor: found.append(tensor) or tensor)
    return found


@each(OF_EACH_DESIGN)
@pytest.mark.parametrize("strict", ["0", "1"])
def test_replays_as_a_graph_with_other_inputs(op, strict, monkeypatch) -> None:
    """Counts are ints or on the device: lists would come from the host."""
    monkeypatch.setenv("CLASP_KERNELS_STRICT", strict)
    static = large.arguments(op, SIZE, DTYPE, DEVICE, seed=1, ragged=False)
    run(op, static)  # compiles
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        outputs = run(op, static)
    for seed in (2, 3):
        other = large.arguments(op, SIZE, DTYPE, DEVICE, seed=seed, ragged=False)
        expected = run(op, other)
        for here, there in zip(tensors_of(static), tensors_of(other), strict=True):
            here.copy_(there)
        for output in outputs:
            output.fill_(1)
        graph.replay()
        assert_same_bits(outputs, expected)
        graph.replay()  # whatever a run leaves behind, the next one must not trip over
        assert_same_bits(outputs, expected)


def test_compiles_into_one_graph(op) -> None:
    given = on_gpu(calls()[op].arguments)
    torch._dynamo.reset()
    compiled = torch.compile(run, fullgraph=True)
    assert_same_bits(compiled(op, given), run(op, given))


@pytest.mark.parametrize("name", large.OPS)
def test_compiles_without_forcing_a_backend(name) -> None:
    given = on_gpu(calls()[name].arguments)
    torch._dynamo.reset()
    with clasp_kernels.use_backend("auto"):
        assert_same_bits(torch.compile(run, fullgraph=True)(name, given), run(name, given))


def test_compiled_for_a_changing_number_of_tokens(op) -> None:
    torch._dynamo.reset()
    compiled = torch.compile(run, fullgraph=True, dynamic=True)
    for tokens in (40, 51, 64):
        given = large.arguments(op, large.Size(2, tokens, 63), DTYPE, DEVICE)
        assert_same_bits(compiled(op, given), run(op, given))


def test_compiled_with_graphs_of_inductor(op) -> None:
    torch._dynamo.reset()
    compiled = torch.compile(run, fullgraph=True, mode="reduce-overhead")
    for seed in range(4):  # warmed up, recorded, replayed
        given = large.arguments(op, SIZE, DTYPE, DEVICE, seed=seed, ragged=False)
        torch.compiler.cudagraph_mark_step_begin()
        assert_same_bits(compiled(op, given), run(op, given))


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("overload", ["default", "triton"])
@pytest.mark.parametrize("name", large.OPS)
def test_opcheck(name, overload, dtype) -> None:
    """The default overload leads to the CUDA extension, where it is built and has the op."""
    backend, reason = backends.choose(name, DEVICE, "triton" if overload == "triton" else "auto")
    if backend is None:
        pytest.skip(reason)
    arguments = handed_to_torch(name, on_gpu(calls(dtype)[name].arguments))
    torch.library.opcheck(getattr(getattr(torch.ops.clasp_kernels, name), overload), arguments)


@each(OF_EACH_DESIGN)
@pytest.mark.parametrize("ragged", [False, True])
def test_waits_for_nothing(op, ragged, monkeypatch) -> None:
    monkeypatch.delenv("CLASP_KERNELS_STRICT", raising=False)
    given = large.arguments(op, SIZE, DTYPE, DEVICE, ragged=ragged)
    run(op, given)  # compiles, and takes memory for the first time
    torch.cuda.synchronize()
    torch.cuda.set_sync_debug_mode("error")
    try:
        for _ in range(3):
            run(op, given)
    finally:
        torch.cuda.set_sync_debug_mode("default")


@each(OF_EACH_DESIGN)
@pytest.mark.parametrize("ragged", [False, True])
def test_is_enqueued_while_the_gpu_is_busy(op, ragged, monkeypatch) -> None:
    """As above, whatever waits: a wait that torch does not know of would not show there."""
    monkeypatch.delenv("CLASP_KERNELS_STRICT", raising=False)
    given = large.arguments(op, SIZE, DTYPE, DEVICE, ragged=ragged)
    expected = run(op, given)
    run(op, given)
    torch.cuda.synchronize()
    torch.cuda._sleep(5 * 10**8)  # cycles: a quarter of a second or so
    asleep = torch.cuda.Event()
    asleep.record()
    result = run(op, given)
    assert not asleep.query(), "the call came back when the GPU was idle again"
    assert_same_bits(result, expected)


@each(TRITON)
def test_nothing_is_compiled_again_for_another_batch(op, monkeypatch) -> None:
    import triton

    for ragged in (False, True):
        run(op, large.arguments(op, SIZE, DTYPE, DEVICE, ragged=ragged))
    compiled: list[str] = []
    runtime = triton.knobs.runtime
    hook = lambda **what: compiled.append(what["repr"])  # noqa: E731
    monkeypatch.setattr(runtime, "jit_post_compile_hook", hook)
    for batch in (1, 2, 16, 17, 64):
        for ragged in (False, True):
            size = SIZE._replace(batch=batch)
            run(op, large.arguments(op, size, DTYPE, DEVICE, ragged=ragged))
    assert not compiled


@each(OF_EACH_DESIGN)
def test_two_streams_at_once(op) -> None:
    both = [large.arguments(op, SIZE, DTYPE, DEVICE, seed=seed) for seed in (1, 2)]
    expected = [run(op, given) for given in both]
    streams = [torch.cuda.Stream(), torch.cuda.Stream()]
    found: list[list] = [[], []]
    torch.cuda.synchronize()
    for _ in range(10):
        for i in range(2):
            with torch.cuda.stream(streams[i]):
                found[i].append(run(op, both[i]))
    torch.cuda.synchronize()
    for i in range(2):
        for result in found[i]:
            assert_same_bits(result, expected[i])


def test_a_device_that_is_not_the_current_one(op) -> None:
    """Kernels, memory and the current stream are those of the tensors' device."""
    if torch.cuda.device_count() < 2:
        pytest.skip("there is only one GPU")
    call = calls()[op]
    expected = run(op, on_gpu(call.arguments, "cuda:0"))
    for current, other in ((0, 1), (1, 0)):
        there = f"cuda:{other}"
        given = on_gpu(call.arguments, there)
        stream = torch.cuda.Stream(there)
        torch.cuda.synchronize(other)
        with torch.cuda.device(current), torch.cuda.stream(stream):
            torch.cuda.set_device(current)  # the stream has brought its own along
            results = run(op, given)
            assert torch.cuda.current_device() == current
        torch.cuda.synchronize(other)
        for result, right in zip(results, expected, strict=True):
            assert result.device.index == other
            assert torch.equal(result.cpu(), right.cpu())


VIEWS = each_that_fits(OF_EACH_DESIGN, [large.Size(2, 577, width) for width in (63, 1024)], DTYPES)


@with_sizes(VIEWS)
def test_views_without_the_class_token(op, size, dtype) -> None:
    """``h[:, 1:]`` starts at an address that no 16-byte access divides if D is odd."""

    def without_first(tensor: Tensor) -> Tensor:
        if tensor.dim() < 2:
            return tensor
        longer = torch.cat([tensor[:, :1], tensor], 1)
        return longer[:, 1:]

    given = tensors_mapped(large.arguments(op, size, dtype, DEVICE), torch.clone)
    assert_same_bits(run(op, tensors_mapped(given, without_first)), run(op, given))


def test_ragged_counts_where_the_gpu_is_the_default_device(op) -> None:
    given = large.arguments(op, SIZE, DTYPE, DEVICE)
    expected = run(op, given)
    with torch.device(DEVICE):
        assert_same_bits(run(op, given), expected)


def test_autocast_changes_nothing(op) -> None:
    given = on_gpu(calls()[op].arguments)
    expected = run(op, given)
    with torch.autocast(DEVICE, dtype=torch.bfloat16):
        assert_same_bits(run(op, given), expected)


WILD = (-(2**63), -(2**31), -2, 577, 2**31, 2**40, 2**63 - 1)


@each(kernels for kernels in OF_EACH_DESIGN if kernels.op in sanitized.INDICES)
@pytest.mark.parametrize("wild", WILD, ids=str)
def test_wild_indices_of_one_image_do_no_harm_to_others(op, wild, monkeypatch) -> None:
    """Nothing checks them on a GPU, and a read out of bounds would end the whole process."""
    monkeypatch.delenv("CLASP_KERNELS_STRICT", raising=False)
    given = large.arguments(op, SIZE, DTYPE, DEVICE)
    expected = run(op, given)
    given[sanitized.INDICES[op]].select(0, 1).fill_(wild)
    results = run(op, given)
    torch.cuda.synchronize()
    for result, right in zip(results, expected, strict=True):
        assert_same_bits((result[0], result[2]), (right[0], right[2]))


@pytest.mark.parametrize("kernels", sanitized.WORKLOADS["memcheck"], ids=str)
def test_what_compute_sanitizer_watches_runs(kernels) -> None:
    """And Triton's kernels for it are compiled, as under compute-sanitizer that takes minutes."""
    if problem := kernels.problem(DEVICE):
        pytest.skip(problem)
    sanitized.call(kernels, DEVICE)
