"""Every error: which argument, what it was, what is allowed, before anything runs."""

from __future__ import annotations

import enum
from collections.abc import Callable
from fractions import Fraction
from typing import Any

import numpy
import pytest
import torch
from inputs import calls

import clasp_kernels
from clasp_kernels import (
    attention_salience,
    complete_tokens,
    cover_tokens,
    fuse_layers,
    gather_tokens,
    merge_tokens,
    prune_tokens,
    select_pivots,
    select_tokens,
)
from clasp_kernels.ops import _checks

B, N, D = 2, 5, 3
FEATURES = torch.zeros(B, N, D)
SALIENCE = torch.zeros(B, N)
SELECTED = torch.tensor([[0, 1], [4, -1]])
QUERY, KEY = torch.zeros(B, 4, 3, 6), torch.zeros(B, 2, 7, 6)
WEIGHTS = torch.ones(2)
LAYERS = [FEATURES, FEATURES]
IDS = torch.tensor([0, 1])
NESTED = torch.nested.nested_tensor([SALIENCE[0], SALIENCE[1, 1:]], layout=torch.jagged)


def case(error: type[Exception], message: str, op: Callable[..., Any], *args: Any, **options: Any):
    """The message is given in full but for the op's name, which it starts with."""
    return pytest.param(error, f"{op.__name__}: {message}", op, args, options, id=message[:60])


CASES = [
    # fuse_layers
    case(
        TypeError,
        "hidden_states must be a sequence of tensors or one tensor, got int.",
        fuse_layers, 3, WEIGHTS,
    ),
    case(
        ValueError,
        "hidden_states must hold at least one layer, got none.",
        fuse_layers, [], WEIGHTS,
    ),
    case(
        ValueError,
        "hidden_states must hold at least one layer, got none.",
        fuse_layers, torch.zeros(0, B, N, D), WEIGHTS[:0],
    ),
    case(
        TypeError,
        "hidden_states[1] must be a tensor, got list.",
        fuse_layers, [FEATURES, [1.0]], WEIGHTS,
    ),
    case(
        TypeError,
        "hidden_states[0] must be float32 or bfloat16 or float16, got float64.",
        fuse_layers, [FEATURES.double()], WEIGHTS,
    ),
    case(
        TypeError,
        "hidden_states[1] must be float32, got bfloat16.",
        fuse_layers, [FEATURES, FEATURES.bfloat16()], WEIGHTS,
    ),
    case(
        ValueError,
        "hidden_states[1] must be [B, N, D] with N = 5, as in previous arguments, "
        "got shape [2, 4, 3].",
        fuse_layers, [FEATURES, FEATURES[:, 1:]], WEIGHTS,
    ),
    case(
        ValueError,
        "hidden_states must be [L, B, N, D], got shape [2, 5, 3].",
        fuse_layers, FEATURES, WEIGHTS,
    ),
    case(
        ValueError,
        "weights must be [L] with L = 2, as in previous arguments, got shape [3].",
        fuse_layers, LAYERS, torch.ones(3),
    ),
    case(
        ValueError,
        "weights must be [L] without category_ids, which choose among rows, got shape [2, 2].",
        fuse_layers, LAYERS, torch.ones(2, 2),
    ),
    case(
        ValueError,
        "weights must be [C, L], got shape [2].",
        fuse_layers, LAYERS, WEIGHTS, IDS,
    ),
    case(
        TypeError,
        "weights must be float32, got bfloat16.",
        fuse_layers, LAYERS, WEIGHTS.bfloat16(),
    ),
    case(TypeError, "weights must be a tensor, got list.", fuse_layers, LAYERS, [0.5, 0.5]),
    case(
        ValueError,
        "weights must be on cpu like hidden_states[0], got meta.",
        fuse_layers, LAYERS, WEIGHTS.to("meta"),
    ),
    case(
        ValueError,
        "category_ids must lie in 0..2 (the rows of weights), got 3.",
        fuse_layers, LAYERS, torch.ones(3, 2), torch.tensor([0, 3]),
    ),
    case(
        ValueError,
        "category_ids must lie in 0..2 (the rows of weights), got -1.",
        fuse_layers, LAYERS, torch.ones(3, 2), torch.tensor([-1, 2]),
    ),
    case(
        TypeError,
        "category_ids must be int64, got int32.",
        fuse_layers, LAYERS, torch.ones(3, 2), IDS.int(),
    ),
    case(
        ValueError,
        "category_ids must be [B] with B = 2, as in previous arguments, got shape [3].",
        fuse_layers, LAYERS, torch.ones(3, 2), torch.tensor([0, 1, 2]),
    ),
    case(
        ValueError,
        "normalize must be None, 'l2' or 'rms', got 'L2'.",
        fuse_layers, LAYERS, WEIGHTS, normalize="L2",
    ),
    case(
        ValueError,
        "weights must have at least one row, which category_ids chooses, got shape [0, 2].",
        fuse_layers, LAYERS, torch.ones(0, 2), IDS,
    ),
    # attention_salience
    case(
        ValueError,
        "query must be [B, Hq, T, d], got shape [2, 5, 3].",
        attention_salience, FEATURES, KEY,
    ),
    case(
        TypeError,
        "key must be float32, got float16.",
        attention_salience, QUERY, KEY.half(),
    ),
    case(
        ValueError,
        "key must be [B, Hkv, S, d] with d = 6, as in previous arguments, "
        "got shape [2, 2, 7, 5].",
        attention_salience, QUERY, KEY[..., 1:],
    ),
    case(
        ValueError,
        "the heads of query must be a multiple of the heads of key, got 4 and 3.",
        attention_salience, QUERY, torch.zeros(B, 3, 7, 6),
    ),
    case(
        ValueError,
        "the heads of query must be a multiple of the heads of key, got 4 and 0.",
        attention_salience, QUERY, KEY[:, :0],
    ),
    case(
        ValueError,
        "query must have at least one row and one feature, got shape [2, 4, 0, 6].",
        attention_salience, QUERY[:, :, :0], KEY,
    ),
    case(
        ValueError,
        "key must have at least one position, got S = 0.",
        attention_salience, QUERY, KEY[:, :, :0],
    ),
    case(
        TypeError,
        "key_valid must be bool, got int64.",
        attention_salience, QUERY, KEY, key_valid=torch.ones(B, 7, dtype=torch.int64),
    ),
    case(
        ValueError,
        "key_valid must be [B, S] with S = 7, as in previous arguments, got shape [2, 6].",
        attention_salience, QUERY, KEY, key_valid=torch.ones(B, 6, dtype=torch.bool),
    ),
    case(
        ValueError,
        "query_weights must be [B, T] with T = 3, as in previous arguments, got shape [2, 4].",
        attention_salience, QUERY, KEY, query_weights=torch.ones(B, 4),
    ),
    case(
        ValueError,
        "query_weights must be finite and not negative, got -1.0.",
        attention_salience, QUERY, KEY, query_weights=torch.tensor([[1.0, -1.0, 2.0]] * B),
    ),
    case(
        ValueError,
        "query_weights must be finite and not negative, got nan.",
        attention_salience, QUERY, KEY, query_weights=torch.full((B, 3), float("nan")),
    ),
    case(
        ValueError,
        "query_weights must be finite and not negative, got inf.",
        attention_salience, QUERY, KEY, query_weights=torch.full((B, 3), float("inf")),
    ),
    case(
        ValueError, "scale must be finite in float32, got nan.",
        attention_salience, QUERY, KEY, scale=float("nan"),
    ),
    case(
        ValueError, "scale must be finite in float32, got 1e+39.",
        attention_salience, QUERY, KEY, scale=1e39,
    ),
    case(
        ValueError, f"scale must be finite in float32, got {-10**400}.",
        attention_salience, QUERY, KEY, scale=-10**400,
    ),
    case(
        TypeError, "scale must be a number, got bool.",
        attention_salience, QUERY, KEY, scale=True,
    ),
    case(
        TypeError, "causal must be a bool, got str.",
        attention_salience, QUERY, KEY, causal="no",
    ),
    case(
        TypeError, "scale must be a number, got str.",
        attention_salience, QUERY, KEY, scale="1",
    ),
    *(
        case(
            ValueError,
            f"key_range must be non-empty and inside 0..S = 0..7, got {key_range}.",
            attention_salience, QUERY, KEY, key_range=key_range,
        )
        for key_range in [(0, 0), (3, 2), (-1, 4), (5, 8)]
    ),
    *(
        case(
            TypeError,
            f"key_range must be two ints (start, stop), got {key_range}.",
            attention_salience, QUERY, KEY, key_range=key_range,
        )
        for key_range in [3, (1,), (0, 2.0)]
    ),
    # select_pivots
    case(TypeError, "salience must be a tensor, got list.", select_pivots, [[1.0]], 1),
    case(
        TypeError,
        "salience must be float32 or bfloat16 or float16, got int64.",
        select_pivots, SALIENCE.long(), 1,
    ),
    case(
        ValueError,
        "salience must be [B, N], got shape [5].",
        select_pivots, SALIENCE[0], 1,
    ),
    case(ValueError, "k must be 0 or more, got -1.", select_pivots, SALIENCE, -1),
    case(
        ValueError,
        "k must be 0 or more for every image, got -2 for image 1.",
        select_pivots, SALIENCE, [3, -2],
    ),
    case(
        ValueError,
        "k must hold one int per image, B = 2, got 3.",
        select_pivots, SALIENCE, [1, 2, 3],
    ),
    *(
        case(
            ValueError,
            f"k must be at most 2147483647, got {k}.",
            select_pivots, SALIENCE, k,
        )
        for k in [2**31, 2**70]
    ),
    case(
        ValueError,
        "k must be at most 2147483647 for every image, got 2147483648 for image 1.",
        select_pivots, SALIENCE, [3, 2**31],
    ),
    *(
        case(
            TypeError,
            f"k must be an int or one int per image, got {type(k).__name__}.",
            select_pivots, SALIENCE, k,
        )
        for k in [b"12", bytearray(2), "12"]
    ),
    case(
        TypeError,
        "k must be a dense tensor, got a sparse_coo one.",
        select_pivots, SALIENCE, IDS.to_sparse(),
    ),
    case(
        TypeError,
        "salience must be a dense tensor, got a sparse_coo one.",
        select_pivots, SALIENCE.to_sparse(), 1,
    ),
    case(
        TypeError,
        "salience must be a dense tensor, got a nested one.",
        select_pivots, NESTED, 1,
    ),
    case(TypeError, "k must hold ints, got float for image 1.", select_pivots, SALIENCE, [1, 2.0]),
    case(TypeError, "k must hold ints, got bool for image 0.", select_pivots, SALIENCE, [True, 1]),
    case(
        TypeError, "k must be an int or one int per image, got float.", select_pivots, SALIENCE, 2.0
    ),
    case(
        TypeError, "k must be an int or one int per image, got bool.", select_pivots, SALIENCE, True
    ),
    case(TypeError, "k must be int64, got int32.", select_pivots, SALIENCE, IDS.int()),
    case(
        ValueError,
        "k must be [B] with B = 2, got shape [3].",
        select_pivots, SALIENCE, torch.ones(3, dtype=torch.int64),
    ),
    case(
        TypeError,
        "k is the width of the output and must be known on the host, got a tensor (on meta); "
        "pass an int or a list of B ints.",
        select_pivots, SALIENCE, IDS.to("meta"),
    ),
    case(
        ValueError,
        "valid must be [B, N] with N = 5, as in previous arguments, got shape [2, 4].",
        select_pivots, SALIENCE, 1, valid=torch.ones(B, 4, dtype=torch.bool),
    ),
    # complete_tokens
    case(
        ValueError,
        "features must be [B, N, D], got shape [5, 3].",
        complete_tokens, FEATURES[0], SELECTED, 1,
    ),
    case(
        ValueError,
        "selected must be [B, P] with B = 2, as in previous arguments, got shape [1, 2].",
        complete_tokens, FEATURES, SELECTED[:1], 1,
    ),
    case(
        TypeError,
        "selected must be int64, got int32.",
        complete_tokens, FEATURES, SELECTED.int(), 1,
    ),
    case(
        ValueError,
        "selected must lie in -1..4 (a token, or -1 for none), got 5.",
        complete_tokens, FEATURES, SELECTED + 1, 1,
    ),
    case(
        ValueError,
        "selected must lie in -1..4 (a token, or -1 for none), got -2.",
        complete_tokens, FEATURES, SELECTED - 1, 1,
    ),
    case(
        ValueError,
        "selected must lie in -1..-1 (a token, or -1 for none), got 0.",
        complete_tokens, FEATURES[:, :0], torch.zeros(B, 1, dtype=torch.int64), 1,
    ),
    case(
        ValueError,
        "selected must name a token at most once per image, got 3 more than once for image 1.",
        complete_tokens, FEATURES, torch.tensor([[-1, -1, 3], [3, 0, 3]]), 1,
    ),
    case(
        ValueError, "num_tokens must be 0 or more, got -1.",
        complete_tokens, FEATURES, SELECTED, -1,
    ),
    case(
        TypeError, "num_tokens must be an int, got list.",
        complete_tokens, FEATURES, SELECTED, [1, 2],
    ),
    case(
        TypeError,
        "valid must be bool, got float32.",
        complete_tokens, FEATURES, SELECTED, 1, valid=SALIENCE,
    ),
    case(
        ValueError,
        "num_tokens must be at most 2147483647, got 2147483648.",
        complete_tokens, FEATURES, SELECTED, 2**31,
    ),
    case(
        ValueError,
        "weights must be [B, N] with N = 5, as in previous arguments, got shape [2, 4].",
        complete_tokens, FEATURES, SELECTED, 1, weights=SALIENCE[:, 1:],
    ),
    case(
        TypeError,
        "weights must be float32 or bfloat16 or float16, got float64.",
        complete_tokens, FEATURES, SELECTED, 1, weights=SALIENCE.double(),
    ),
    # cover_tokens
    case(
        ValueError,
        "selected must lie in -1..4 (a token, or -1 for none), got 5.",
        cover_tokens, FEATURES, SELECTED + 1, 1,
    ),
    case(
        ValueError,
        "selected must name a token at most once per image, got 3 more than once for image 1.",
        cover_tokens, FEATURES, torch.tensor([[-1, -1, 3], [3, 0, 3]]), 1,
    ),
    case(
        ValueError,
        "num_tokens must be 0 or more for every image, got -1 for image 1.",
        cover_tokens, FEATURES, SELECTED, [1, -1],
    ),
    case(
        ValueError,
        "weights must be [B, N] with N = 5, as in previous arguments, got shape [2, 4].",
        cover_tokens, FEATURES, SELECTED, 1, weights=SALIENCE[:, 1:],
    ),
    case(
        TypeError,
        "preference must be float32 or bfloat16 or float16, got int64.",
        cover_tokens, FEATURES, SELECTED, 1, preference=SALIENCE.long(),
    ),
    # select_tokens
    case(
        ValueError,
        "salience must be [B, N] with N = 5, as in previous arguments, got shape [2, 4].",
        select_tokens, FEATURES, SALIENCE[:, 1:], 2, 1,
    ),
    case(
        ValueError,
        "salience must be on cpu like features, got meta.",
        select_tokens, FEATURES, SALIENCE.to("meta"), 2, 1,
    ),
    case(ValueError, "budget must be 0 or more, got -3.", select_tokens, FEATURES, SALIENCE, -3, 1),
    case(
        ValueError,
        "budget must be 0 or more for every image, got -3 for image 0.",
        select_tokens, FEATURES, SALIENCE, torch.tensor([-3, 1]), 1,
    ),
    case(
        TypeError,
        "pivot_counts must be an int or one int per image, got NoneType.",
        select_tokens, FEATURES, SALIENCE, 2, None,
    ),
    case(
        ValueError,
        "pivot_counts must hold one int per image, B = 2, got 1.",
        select_tokens, FEATURES, SALIENCE, 2, [1],
    ),
    case(
        TypeError,
        "pivot_counts must be int64, got float32.",
        select_tokens, FEATURES, SALIENCE, 2, torch.ones(2),
    ),
    case(
        ValueError,
        "weights must be on cpu like features, got meta.",
        select_tokens, FEATURES, SALIENCE, 2, 1, weights=SALIENCE.to("meta"),
    ),
    case(
        ValueError,
        "completion must be 'farthest' or 'cover', got None.",
        select_tokens, FEATURES, SALIENCE, 2, 1, completion=None,
    ),
    # gather_tokens
    case(
        ValueError,
        "indices must lie in -1..4 (a token, or -1 for none), got 7.",
        gather_tokens, FEATURES, torch.tensor([[0], [7]]),
    ),
    case(
        TypeError, "indices must be int64, got bool.",
        gather_tokens, FEATURES, torch.ones(B, N, dtype=torch.bool),
    ),
    # merge_tokens
    case(
        ValueError,
        "features must be [B, N, F] with N = 5, as in previous arguments, "
        "got shape [2, 4, 3].",
        merge_tokens, FEATURES, FEATURES[:, 1:], SELECTED,
    ),
    case(
        ValueError,
        "indices must lie in -1..4 (a token, or -1 for none), got 5.",
        merge_tokens, FEATURES, FEATURES, SELECTED + 1,
    ),
    case(
        ValueError,
        "indices must name a token at most once per image, got 2 more than once for image 0.",
        merge_tokens, FEATURES, FEATURES, torch.tensor([[2, 2], [0, 1]]),
    ),
    # prune_tokens
    case(
        ValueError,
        "features must be [B, N, F] with N = 5, as in previous arguments, "
        "got shape [2, 4, 3].",
        prune_tokens, FEATURES, FEATURES[:, 1:], SALIENCE, 2, 1,
    ),
    case(
        ValueError,
        "salience must be [B, N] with N = 5, as in previous arguments, got shape [2, 4].",
        prune_tokens, FEATURES, FEATURES, SALIENCE[:, 1:], 2, 1,
    ),
    case(
        ValueError,
        "budget must be 0 or more, got -1.",
        prune_tokens, FEATURES, FEATURES, SALIENCE, -1, 1,
    ),
    case(
        TypeError,
        "merge must be a bool, got int.",
        prune_tokens, FEATURES, FEATURES, SALIENCE, 2, 1, merge=1,
    ),
]  # fmt: skip


@pytest.mark.parametrize(("error", "message", "op", "args", "options"), CASES)
def test_error_names_the_argument_what_it_was_and_what_is_allowed(
    error, message, op, args, options
) -> None:
    with pytest.raises(error) as raised:
        op(*args, **options)
    assert str(raised.value) == message


@pytest.mark.parametrize(("error", "message", "op", "args", "options"), CASES)
def test_errors_come_before_anything_runs(error, message, op, args, options) -> None:
    class NoOps(torch.utils._python_dispatch.TorchDispatchMode):
        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            assert func.namespace != "clasp_kernels"
            return func(*args, **(kwargs or {}))

    with NoOps(), pytest.raises(error):
        op(*args, **options)


def test_unused_slots_may_repeat_but_hide_no_repeated_token() -> None:
    complete_tokens(FEATURES, torch.tensor([[-1, 2, -1, -1], [3, -1, 0, -1]]), 1)
    with pytest.raises(ValueError, match="got 2 more than once for image 1"):
        complete_tokens(FEATURES, torch.tensor([[0, -1, -1, 1], [-1, 2, -1, 2]]), 1)


def test_values_are_not_looked_at_while_compiling() -> None:
    """Checks that depend on data would break the graph; shapes are still checked."""
    torch._dynamo.reset()
    compiled = torch.compile(gather_tokens, fullgraph=True, backend="eager")
    compiled(FEATURES, SELECTED)
    with pytest.raises(Exception, match="indices must be int64"):
        compiled(FEATURES, SELECTED.int())


def test_a_budget_that_would_be_data_dependent_is_refused_while_compiling() -> None:
    torch._dynamo.reset()
    compiled = torch.compile(select_pivots, fullgraph=True, backend="eager")
    assert compiled(SALIENCE, [1, 2]).tolist() == [[0, -1], [0, 1]]
    with pytest.raises(Exception, match="must be known on the host"):
        compiled(SALIENCE, torch.tensor([1, 2]))


def test_values_of_fake_tensors_are_not_looked_at() -> None:
    from torch._subclasses.fake_tensor import FakeTensorMode

    for op, call in calls().items():
        with FakeTensorMode(allow_non_fake_inputs=True):
            assert getattr(clasp_kernels, op)(**call.arguments) is not None
    # They carry their mode with them, so it need not be active.
    mode = FakeTensorMode()
    fake = gather_tokens(mode.from_tensor(FEATURES), mode.from_tensor(SELECTED))
    assert fake.shape == (B, 2, D)


def test_traces_symbolically_with_make_fx() -> None:
    from torch.fx.experimental.proxy_tensor import make_fx

    graph = make_fx(gather_tokens, tracing_mode="symbolic")(FEATURES, SELECTED)
    assert torch.equal(graph(FEATURES, SELECTED), gather_tokens(FEATURES, SELECTED))


class Elsewhere:
    """Stands in for a tensor on a GPU, as far as the decision to read it goes."""

    is_cpu = is_cuda = is_meta = False
    device = torch.device("cuda")


@pytest.mark.parametrize(("strict", "reads"), [(None, False), ("0", False), ("1", True)])
def test_values_on_a_gpu_are_read_only_when_strict(monkeypatch, strict, reads) -> None:
    if strict is None:
        monkeypatch.delenv("CLASP_KERNELS_STRICT", raising=False)
    else:
        monkeypatch.setenv("CLASP_KERNELS_STRICT", strict)
    assert _checks.may_read(Elsewhere()) is reads  # type: ignore[arg-type]
    assert _checks.may_read(FEATURES)
    assert not _checks.may_read(FEATURES.to("meta"))


@pytest.mark.parametrize(
    ("here", "there", "waits"), [("cuda", "cpu", True), ("cpu", "cuda", False)]
)
def test_counts_on_another_device_are_copied(here: str, there: str, waits: bool) -> None:
    """Towards the host the copy must be finished before its values are used."""
    from torch._subclasses.fake_tensor import FakeTensorMode

    copies: list[bool] = []

    class Spy(torch.utils._python_dispatch.TorchDispatchMode):
        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            if func is torch.ops.aten._to_copy.default:
                copies.append(not kwargs.get("non_blocking", False))
            return func(*args, **(kwargs or {}))

    with FakeTensorMode(), Spy():
        counts = torch.ones(B, dtype=torch.int64, device=here)
        salience = torch.zeros(B, N, device=there)
        select_tokens(torch.zeros(B, N, D, device=there), salience, 2, counts)
    assert copies == [waits]


def test_counts_in_a_list_go_to_a_gpu_from_pinned_memory(monkeypatch) -> None:
    from torch._subclasses.fake_tensor import FakeTensorMode

    pinned: list[bool] = []
    tensor = torch.tensor

    def record(values, dtype, device, pin_memory) -> torch.Tensor:
        assert device == "cpu"
        pinned.append(pin_memory)
        return tensor(values, dtype=dtype)

    monkeypatch.setattr(torch, "tensor", record)
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 0)
    # Without a driver, tensors without data may be on a GPU, but no memory can be pinned.
    for device, in_use in (("cpu", True), ("cuda", True), ("cuda", False)):
        monkeypatch.setattr(torch.cuda, "is_initialized", lambda in_use=in_use: in_use)
        with FakeTensorMode():
            select_pivots(torch.zeros(B, N, device=device), [1, 2])
    assert pinned == [False, True, False]


def test_values_that_are_not_checked_do_what_is_documented() -> None:
    """Called directly, as compiled code does."""
    ops = torch.ops.clasp_kernels
    tokens = torch.arange(1.0, 16.0).view(1, 5, 3)
    weights = torch.tensor([[1.0], [2.0]])
    last = ops.fuse_layers.reference([tokens], weights, torch.tensor([-1]), "none")
    assert torch.equal(last, 2 * tokens)
    for fuse in (ops.fuse_layers.default, ops.fuse_layers.reference):
        for category in (2, -3):
            with pytest.raises((RuntimeError, IndexError)):
                fuse([tokens], weights, torch.tensor([category]), "none")

    for gather in (ops.gather_tokens.default, ops.gather_tokens.reference):
        assert not gather(tokens, torch.tensor([[-2]])).any()
        with pytest.raises((RuntimeError, IndexError)):
            gather(tokens, torch.tensor([[5]]))

    for merge in (ops.merge_tokens.default, ops.merge_tokens.reference):
        assert not merge(tokens, tokens, torch.tensor([[-2]]), None).any()
        merged = merge(tokens, tokens, torch.tensor([[1, 1]]), None)
        assert torch.equal(merged[0], torch.stack([tokens[0].mean(0), torch.zeros(3)]))

    for complete in (ops.complete_tokens.default, ops.complete_tokens.reference):
        for selected in ([1, 1], [1, -2]):
            picked = complete(tokens, torch.tensor([selected]), 5, None)[0].tolist()
            assert sorted(picked) == [-1, 0, 2, 3, 4]
        with pytest.raises((RuntimeError, IndexError)):
            complete(tokens, torch.tensor([[5]]), 5, None)

    for cover in (ops.cover_tokens.default, ops.cover_tokens.reference):
        for selected in ([1, 1], [1, -2]):
            picked = cover(tokens, torch.tensor([selected]), 5, None, None, None, None)[0].tolist()
            assert sorted(picked) == [-1, 0, 2, 3, 4]
        with pytest.raises((RuntimeError, IndexError)):
            cover(tokens, torch.tensor([[5]]), 5, None, None, None, None)


def test_values_are_checked_under_vmap() -> None:
    for indices, message in [
        (SELECTED + 1, "indices must lie in -1..4 (a token, or -1 for none), got 5."),
        (SELECTED - 1, "indices must lie in -1..4 (a token, or -1 for none), got -2."),
    ]:
        many = torch.stack([SELECTED, indices, SELECTED], -1)
        with pytest.raises(ValueError) as raised:
            torch.vmap(gather_tokens, in_dims=(None, -1))(FEATURES, many)
        assert str(raised.value) == f"gather_tokens: {message}"
    many = torch.stack([SELECTED, torch.tensor([[0, 1], [3, 3]])], 1)
    with pytest.raises(ValueError, match="got 3 more than once for image 1"):
        torch.vmap(merge_tokens, in_dims=(None, None, 1))(FEATURES, FEATURES, many)
    with pytest.raises(
        ValueError, match=r"query_weights must be finite and not negative, got -1\.0"
    ):
        torch.vmap(lambda w: attention_salience(QUERY, KEY, query_weights=w))(-torch.ones(3, B, 3))
    with pytest.raises(TypeError, match=r"k is the width .* got a tensor \(mapped by vmap\)"):
        torch.vmap(select_pivots, in_dims=(None, 0))(SALIENCE, torch.ones(4, B, dtype=torch.int64))
    shares = torch.tensor([[1, 2], [3, 1]])
    mapped = torch.vmap(lambda pivots: select_tokens(FEATURES, SALIENCE, 3, pivots)[1])(shares)
    assert mapped.sum(-1).equal(shares)


class Few(enum.IntEnum):
    TWO = 2


class Index:
    def __index__(self) -> int:
        return 2


TWOS = [
    numpy.int64(2), numpy.int32(2), numpy.uint8(2), numpy.array(2), Few.TWO, Index(),
    torch.tensor(2), torch.tensor(2, dtype=torch.int32),
]  # fmt: skip


@pytest.mark.parametrize("two", TWOS, ids=lambda two: f"{type(two).__name__}-{two!r}"[:40])
def test_integers_to_python_are_integers(two: Any) -> None:
    random = torch.Generator().manual_seed(1)
    features, salience = torch.randn(B, N, D, generator=random), torch.rand(B, N, generator=random)
    for call in (
        lambda two: select_pivots(salience, two),
        lambda two: select_pivots(salience, [two, 1]),
        lambda two: complete_tokens(features, SELECTED, two),
        lambda two: select_tokens(features, salience, two, two)[0],
        lambda two: select_tokens(features, salience, (two, 3), [two, two])[0],
        lambda two: prune_tokens(features, features, salience, two, two)[0],
        lambda two: attention_salience(QUERY, KEY, key_range=(0, two)),
        lambda two: attention_salience(QUERY, KEY, key_range=[two, 5]),
    ):
        assert torch.equal(call(two), call(2))


@pytest.mark.parametrize(
    "counts", [numpy.array([1, 2]), numpy.array([1, 2], numpy.int8), range(1, 3)], ids=repr
)
def test_rows_of_integers_are_one_per_image(counts: Any) -> None:
    salience = torch.rand(B, N)
    assert torch.equal(select_pivots(salience, counts), select_pivots(salience, [1, 2]))
    for mine, lists in zip(
        select_tokens(salience[..., None], salience, counts, counts),
        select_tokens(salience[..., None], salience, [1, 2], [1, 2]),
        strict=True,
    ):
        assert torch.equal(mine, lists)


@pytest.mark.parametrize(
    "no_integer",
    [numpy.bool_(True), numpy.float32(2), numpy.array(True), torch.tensor(True), torch.tensor(2.0),
     numpy.array([[1, 2]])],
    ids=repr,
)  # fmt: skip
def test_booleans_and_floats_are_no_integers(no_integer: Any) -> None:
    with pytest.raises((TypeError, ValueError), match=r"k must"):
        select_pivots(SALIENCE, no_integer)
    with pytest.raises(TypeError, match="num_tokens must be an int"):
        complete_tokens(FEATURES, SELECTED, no_integer)
    with pytest.raises(TypeError, match="k must hold ints"):
        select_pivots(SALIENCE, [no_integer, 1])
    with pytest.raises(TypeError, match="key_range must be two ints"):
        attention_salience(QUERY, KEY, key_range=(0, no_integer))
    for counts in (numpy.array([1.0, 2.0]), numpy.array([True, False])):
        with pytest.raises(TypeError, match="k must hold ints"):
            select_pivots(SALIENCE, counts)


def test_scales_may_be_any_real_number() -> None:
    expected = attention_salience(QUERY + 1, KEY + 1, scale=0.5)
    for scale in (numpy.float32(0.5), numpy.float16(0.5), numpy.float64(0.5), Fraction(1, 2)):
        assert torch.equal(attention_salience(QUERY + 1, KEY + 1, scale=scale), expected)
    for scale in (numpy.float32("inf"), numpy.float16("nan")):
        with pytest.raises(ValueError, match="scale must be finite"):
            attention_salience(QUERY, KEY, scale=scale)
    with pytest.raises(TypeError, match="scale must be a number"):
        attention_salience(QUERY, KEY, scale=numpy.bool_(True))
