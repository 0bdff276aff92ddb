"""What crosses a border with a call: views that only pretend, files, processes, thread state."""

from __future__ import annotations

import copy
import multiprocessing
import pickle
from pathlib import Path
from typing import Any

import pytest
import torch
from calling import assert_same_bits, run, tensors_mapped
from inputs import calls
from torch import Tensor

from clasp_kernels import Selection, prune_tokens, select_tokens

FEATURES = torch.randn(3, 9, 4, generator=torch.Generator().manual_seed(1))
SALIENCE = torch.rand(3, 9, generator=torch.Generator().manual_seed(2))


def negated(tensor: Tensor) -> Tensor:
    """The values, as a view of their negatives."""
    return torch._neg_view(-tensor) if tensor.is_floating_point() else tensor


def imaginary(tensor: Tensor) -> Tensor:
    """The values, as the imaginary part of a conjugate: strided, and negated when it is read."""
    if tensor.dtype != torch.float32:
        return tensor
    return torch.complex(torch.zeros_like(tensor), -tensor).conj().imag


@pytest.mark.parametrize("view", [negated, imaginary])
def test_views_that_are_yet_to_be_negated(served: str, view: Any) -> None:
    arguments = calls()[served].arguments
    views = tensors_mapped(arguments, view)
    if served != "fuse_layers":  # whose tensors are in a list
        assert any(isinstance(value, Tensor) and value.is_neg() for value in views.values())
    assert_same_bits(run(served, views), run(served, arguments))


def test_outputs_are_memory_of_their_own(served: str) -> None:
    """A file they are saved in holds no more than them, and writing to them changes no input."""
    arguments = calls()[served].arguments
    inputs = {
        tensor.untyped_storage().data_ptr()
        for value in arguments.values()
        for tensor in (value if isinstance(value, list) else [value])
        if isinstance(tensor, Tensor)
    }
    for output in run(served, arguments):
        assert output.untyped_storage().nbytes() == output.numel() * output.element_size()
        assert output.untyped_storage().data_ptr() not in inputs


def test_default_dtype_and_device_change_nothing(served: str) -> None:
    arguments = calls()[served].arguments
    expected = run(served, arguments)
    before = torch.get_default_dtype()
    try:
        for dtype in (torch.float64, torch.bfloat16):
            torch.set_default_dtype(dtype)
            assert_same_bits(run(served, arguments), expected)
    finally:
        torch.set_default_dtype(before)
    with torch.device("meta"):
        assert_same_bits(run(served, arguments), expected)


def test_a_selection_can_be_copied_pickled_and_saved(tmp_path: Path) -> None:
    selection = select_tokens(FEATURES, SALIENCE, [4, 2, 3], 2)
    torch.save(selection, tmp_path / "selection.pt")
    for copied in (
        copy.deepcopy(selection),
        pickle.loads(pickle.dumps(selection)),
        torch.load(tmp_path / "selection.pt"),  # which trusts no file
    ):
        assert type(copied) is Selection
        assert_same_bits(copied, selection)


class Select(torch.nn.Module):
    def forward(self, features: Tensor, salience: Tensor) -> Selection:
        return select_tokens(features, salience, 4, 2)


class Prune(torch.nn.Module):
    def forward(self, features: Tensor, salience: Tensor) -> tuple[Tensor, Selection]:
        return prune_tokens(features, features, salience, 4, 2)


@pytest.mark.parametrize("strict", [False, True])
@pytest.mark.parametrize("module", [Select(), Prune()], ids=["select", "prune"])
def test_a_program_that_returns_a_selection_can_be_saved(
    module: torch.nn.Module, strict: bool, tmp_path: Path
) -> None:
    program = torch.export.export(module, (FEATURES, SALIENCE), strict=strict)
    torch.export.save(program, tmp_path / "program.pt2")
    loaded = torch.export.load(tmp_path / "program.pt2").module()(FEATURES, SALIENCE)
    selection = loaded if isinstance(module, Select) else loaded[1]
    assert type(selection) is Selection
    assert_same_bits(selection, select_tokens(FEATURES, SALIENCE, 4, 2))


class Selected(torch.utils.data.Dataset[Selection]):
    def __len__(self) -> int:
        return len(FEATURES)

    def __getitem__(self, index: int) -> Selection:
        return select_tokens(FEATURES[index : index + 1], SALIENCE[index : index + 1], 4, 2)


@pytest.mark.skipif("fork" not in multiprocessing.get_all_start_methods(), reason="nothing forks")
def test_forked_workers_of_a_loader_work_after_the_threads_were_used() -> None:
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    expected = select_tokens(FEATURES, SALIENCE, 4, 2)
    torch.set_num_threads(before)
    loader = torch.utils.data.DataLoader(
        Selected(), batch_size=None, num_workers=2, multiprocessing_context="fork", timeout=60
    )
    for index, selection in enumerate(loader):
        assert type(selection) is Selection
        assert_same_bits(selection, tuple(part[index : index + 1] for part in expected))


@pytest.mark.parametrize("flush", [True, False])
def test_an_error_leaves_subnormals_as_the_thread_had_them(flush: bool) -> None:
    subnormal = torch.tensor(1e-40)
    ops = torch.ops.clasp_kernels
    if not torch.set_flush_denormal(flush):
        pytest.skip("this processor cannot flush subnormals")
    try:
        select_tokens(FEATURES[:1], SALIENCE[:1], 4, 2)
        with pytest.raises(RuntimeError):
            ops.gather_tokens(FEATURES, torch.tensor([[0], [9], [1]]))
        with pytest.raises(RuntimeError):
            ops.attention_salience(
                FEATURES[None], FEATURES[None, :, :, 1:], 1.0, False, None, None, 0, 1
            )
        assert ((subnormal * 1).item() == 0) is flush
    finally:
        torch.set_flush_denormal(False)
