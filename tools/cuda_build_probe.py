"""Tries the installed package with its CUDA extension, on a machine without a GPU.

It runs in the environment that cuda_build_check.py makes, from a folder outside of the checkout. It
takes the inputs of the ops' tests. It ends with status 1 and a sentence for everything that is
wrong.
"""

from __future__ import annotations

import importlib
import sys
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode

import clasp_kernels
from clasp_kernels import backend_report, backends, use_backend
from clasp_kernels.backends import cuda, table

ROOT = Path(__file__).resolve().parent.parent
DTYPES = (torch.float32, torch.bfloat16, torch.float16)


def of_the_tests(module: str) -> Any:
    """A module of the ops' tests, which are no package."""
    folder = str(ROOT / "tests" / "ops")
    if folder not in sys.path:
        sys.path.append(folder)
    return importlib.import_module(module)


def loading() -> Iterator[str]:
    """The package is the installed one, and both extensions load."""
    package = Path(clasp_kernels.__file__).resolve()
    if package.is_relative_to(ROOT / "clasp_kernels"):
        yield f"{package.parent} is the checkout's package, not the installed one."
    report = backend_report()
    print(report)
    if not report.native.loaded:
        yield f"the C++ extension is not loaded: {report.native.reason}"
    if not report.cuda.loaded:
        yield f"the CUDA extension is not loaded: {report.cuda.reason}"


def registration() -> Iterator[str]:
    """The dispatcher has a kernel for CUDA of every op."""
    # These were read before the Triton kernels were registered for the other ops.
    of_extension = cuda.load().ops
    for op in table.ops_of("cuda"):
        if op not in of_extension:
            yield f"the CUDA extension has registered no kernel of {op} for CUDA."
    for op in table.ops_of("triton"):
        if not cuda.registered(op):
            yield f"the dispatcher has no kernel of {op} for CUDA."


def serving() -> Iterator[str]:
    """The package says why it cannot serve a GPU that is not there."""
    if torch.cuda.is_available():
        print("there is a GPU, so what is said without one is not tried")
        return
    for op in table.ops_of("cuda"):
        choice = backends.choose(op, "cuda", "cuda")
        print(f"{op} on a GPU: {choice.reason}")
        if choice != (None, "torch sees no GPU."):
            yield f"{op} says of the CUDA backend {choice}, and not that torch sees no GPU."


def results() -> Iterator[str]:
    """The C++ kernels give the results of the reference, at the inputs of the ops' tests."""
    run, inputs = of_the_tests("calling").run, of_the_tests("inputs")
    given = [(f"{dtype}", inputs.calls(dtype)) for dtype in DTYPES]
    given.append(("plain", inputs.plain_calls()))
    for name, of_all in given:
        for op in table.ops_of("cpu"):
            with use_backend("reference"):
                expected = run(op, of_all[op].arguments)
            with use_backend("cpu"):
                found = run(op, of_all[op].arguments)
            try:
                torch.testing.assert_close(found, expected, rtol=2**-7, atol=1e-5)
            except AssertionError as error:
                yield f"{op}, {name}: the C++ kernel differs from the reference: {error}"


def shapes() -> Iterator[str]:
    """Tensors without data that are on a GPU go through every op, and give what the CPU gives."""
    calling, inputs = of_the_tests("calling"), of_the_tests("inputs")

    def on_gpu(tensor: Tensor) -> Tensor:
        return torch.empty(tensor.shape, dtype=tensor.dtype, device="cuda")

    for op, call in inputs.calls(torch.bfloat16).items():
        expected = calling.run(op, call.arguments)
        with FakeTensorMode():
            found = calling.run(op, calling.tensors_mapped(call.arguments, on_gpu))
        for there, here in zip(found, expected, strict=True):
            facts = [(tuple(it.shape), it.dtype) for it in (there, here)]
            if there.device.type != "cuda" or facts[0] != facts[1]:
                yield f"{op} without data gives {there}, and on the CPU {facts[1]}."


def outcome(check: Callable[[], Iterator[str]]) -> list[str]:
    """What a check finds wrong, an exception included."""
    try:
        return list(check())
    except Exception as error:
        traceback.print_exc()
        return [f"{check.__name__} fails: {type(error).__name__}: {error}"]


def main() -> int:
    wrong = []
    for check in (loading, registration, serving, results, shapes):
        found = outcome(check)
        print(
            f"{'WRONG' if found else 'ok':6}{(check.__doc__ or '').partition('.')[0]}", flush=True
        )
        wrong += found
    for sentence in wrong:
        print(f"error: {sentence}", file=sys.stderr)
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
