"""The CUDA extension as a backend: when it is used, its error messages, and the fallback order."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from interpreter import WITHOUT_OPS, python

import clasp_kernels.ops  # registers the ops before a test changes the backends
from clasp_kernels import backend_report, backends, use_backend
from clasp_kernels.backends import chooser, cuda, table, triton

FEATURES = torch.eye(3)[None]
SALIENCE = torch.tensor([[1.0, 3.0, 2.0]])
DEFAULT = ("8.0", "9.0", "10.0+PTX")


def loaded(architectures: tuple[str, ...] = DEFAULT, **changes: object) -> cuda.CudaStatus:
    name = "_C_cuda.abi3.so"
    status = cuda.CudaStatus(True, name, Path(name), architectures, table.ops_of("cuda"))
    return status._replace(**changes)


FAILED = loaded(loaded=False, ops=(), failed=True, reason="_C_cuda.abi3.so does not load.")
NOT_BUILT = cuda.CudaStatus(False, "built without CUDA kernels: no nvcc.")


class Computer:
    """Fakes the GPUs that torch sees, and the state of the extension."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.monkeypatch = monkeypatch

    def __call__(
        self, status: cuda.CudaStatus, *capabilities: tuple[int, int], has_triton: bool = True
    ) -> None:
        patch = self.monkeypatch.setattr
        patch(cuda, "_status", status)
        patch(triton, "installed", lambda: has_triton)
        patch(triton, "version", lambda: "3.7.0")
        patch(triton, "INTERPRETED", False)
        patch(torch.cuda, "is_available", lambda: bool(capabilities))
        patch(torch.cuda, "device_count", lambda: len(capabilities))
        patch(torch.cuda, "get_device_capability", lambda index=0: capabilities[index])
        self.forget()

    def forget(self) -> None:
        for cached in (
            *(cuda.gpu_problem, triton.gpu_problem, chooser._settle_once),
            *(chooser._entry_point, chooser._warn_fallback, chooser._warn_without_cuda),
        ):
            cached.cache_clear()


@pytest.fixture
def computer(monkeypatch: pytest.MonkeyPatch) -> Iterator[Computer]:
    computer = Computer(monkeypatch)
    yield computer
    monkeypatch.undo()
    computer.forget()


@pytest.mark.parametrize(
    ("architecture", "serves", "refuses"),
    [
        ("8.0", [(8, 0), (8, 6), (8, 9)], [(7, 5), (9, 0), (10, 0)]),
        ("8.6", [(8, 6), (8, 9)], [(8, 0), (9, 0)]),
        ("9.0a", [(9, 0)], [(8, 9), (10, 0)]),
        ("9.0a+PTX", [(9, 0)], [(10, 0)]),
        ("9.0+PTX", [(9, 0), (10, 0), (12, 1)], [(8, 9)]),
        ("10.0f", [(10, 0), (10, 3)], [(9, 0), (12, 0)]),
    ],
)
def test_the_gpus_that_an_architecture_serves(architecture, serves, refuses) -> None:
    assert [pair for pair in serves + refuses if cuda.serves(architecture, pair)] == serves


@pytest.mark.parametrize("capability", [(8, 0), (8, 6), (9, 0), (10, 0), (12, 0)])
def test_it_comes_first_on_gpus_that_it_was_built_for(computer: Computer, capability) -> None:
    computer(loaded(), capability)
    for op in table.ops_of("cuda"):
        assert backends.choose(op, "cuda", "auto") == ("cuda", "_C_cuda.abi3.so")
        assert backends.choose(op, "cuda", "cuda") == ("cuda", "forced")
        assert backends.choose(op, "cuda", "triton") == ("triton", "forced")
        # The default overload calls the CUDA kernels for GPU tensors, the overload `.triton`
        # Triton.
        assert chooser._settle_once(op, "cuda", "auto") == "default"
        assert chooser._settle_once(op, "cuda", "cuda") == "default"
        assert chooser._settle_once(op, "cuda", "triton") == "triton"
    assert backends.choose("gather_tokens", "cuda", "auto") == ("triton", "Triton 3.7.0")


def test_a_gpu_that_it_was_not_built_for_goes_past_it_to_triton(computer: Computer) -> None:
    computer(loaded(("9.0",)), (9, 0), (8, 9))
    backend, reason = backends.choose("select_tokens", "cuda", "auto")
    assert backend == "triton"
    assert reason.startswith("Triton 3.7.0 (not cuda: _C_cuda.abi3.so, cannot serve a GPU of ")
    assert "compute capability 8.9. Rebuild it with TORCH_CUDA_ARCH_LIST=8.9." in reason
    with pytest.warns(RuntimeWarning, match="TORCH_CUDA_ARCH_LIST=8.9"):
        # Not the default overload, for which the dispatcher would call the CUDA kernel.
        assert chooser._settle_once("select_tokens", "cuda", "auto") == "triton"
    assert chooser._settle_once("gather_tokens", "cuda", "auto") == "default"


def test_compiled_code_goes_past_it_too(computer: Computer) -> None:
    computer(loaded(("9.0",)), (8, 9))
    graphs: list[list[str]] = []

    def record(module: torch.fx.GraphModule, inputs: object) -> object:
        graphs.append([str(node.target) for node in module.graph.nodes])
        return lambda *inputs: (torch.zeros(0, 0),)  # without running the graph, which needs a GPU

    def settled(features: torch.Tensor) -> torch.Tensor:
        op = backends.overload("complete_tokens", torch.device("cuda"))
        return op(features, torch.zeros(1, 0, dtype=torch.int64), 0, None)

    torch._dynamo.reset()
    with pytest.warns(RuntimeWarning, match="run on the triton backend"):
        chooser._settle("complete_tokens", "cuda", "auto")
    computer.monkeypatch.undo()  # torch's compiler must not see the fake GPUs
    torch.compile(settled, fullgraph=True, backend=record)(FEATURES[:0])
    assert "clasp_kernels.complete_tokens.triton" in graphs[0]


def test_a_gpu_too_old_for_both_is_served_by_the_reference(computer: Computer) -> None:
    computer(loaded(), (7, 5))
    backend, reason = backends.choose("select_tokens", "cuda", "auto")
    assert backend == "reference"
    assert "(not cuda: the CUDA kernels need compute capability 8.0 or later, a GPU has 7.5.)" in (
        reason
    )
    with pytest.warns(RuntimeWarning, match="select_tokens, .* fall back to the slow reference"):
        assert chooser._settle_once("select_tokens", "cuda", "auto") == "reference"


def test_without_triton_it_serves_what_it_has(computer: Computer) -> None:
    computer(loaded(), (9, 0), has_triton=False)
    assert backends.choose("select_tokens", "cuda", "auto").backend == "cuda"
    with pytest.warns(RuntimeWarning) as caught:
        chooser._settle_once("gather_tokens", "cuda", "auto")
    message = str(caught[0].message)
    assert "gather_tokens, merge_tokens fall back" in message
    assert "complete_tokens" not in message and "select_tokens" not in message


def test_one_that_does_not_load_is_warned_of_once(computer: Computer) -> None:
    computer(FAILED, (9, 0))
    with pytest.warns(RuntimeWarning) as caught:
        for op in (*table.ops_of("cuda"), "gather_tokens"):
            assert chooser._settle_once(op, "cuda", "auto") == "default"
    (warning,) = caught
    assert str(warning.message).startswith(
        "clasp_kernels: complete_tokens, select_tokens run on the triton backend for GPU tensors: "
        "_C_cuda.abi3.so does not load."
    )


def test_one_that_was_not_built_is_not_missed(computer: Computer) -> None:
    computer(NOT_BUILT, (9, 0))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert chooser._settle_once("select_tokens", "cuda", "auto") == "default"
    reason = backends.choose("select_tokens", "cuda", "auto").reason
    assert reason == "Triton 3.7.0 (not cuda: built without CUDA kernels: no nvcc.)"


@pytest.mark.parametrize(
    ("status", "capability", "op", "device", "problem"),
    [
        (NOT_BUILT, (9, 0), "select_tokens", "cuda", "built without CUDA kernels: no nvcc."),
        (FAILED, (9, 0), "select_tokens", "cuda", "_C_cuda.abi3.so does not load."),
        (loaded(), (9, 0), "gather_tokens", "cuda", "there is no CUDA kernel for gather_tokens in"),
        (loaded(), (9, 0), "select_tokens", "cpu", "takes GPU tensors, not cpu tensors."),
        (loaded(), (7, 5), "select_tokens", "cuda", "need compute capability 8.0 or later"),
        (loaded(("8.0",)), (9, 0), "select_tokens", "cuda", "TORCH_CUDA_ARCH_LIST=9.0"),
        (loaded(ops=()), (9, 0), "select_tokens", "cuda", "lacks kernels of this version."),
        (loaded(), None, "select_tokens", "cuda", "torch sees no GPU."),
    ],
)
def test_forced_where_it_cannot_serve_it_says_why(
    computer: Computer, status, capability, op: str, device: str, problem: str
) -> None:
    computer(status, *([capability] if capability else []))
    backend, reason = backends.choose(op, device, "cuda")
    assert backend is None
    assert problem in reason
    with pytest.raises(RuntimeError, match="the cuda backend is forced but cannot serve: "):
        chooser._settle_once(op, device, "cuda")


def test_forced_on_cpu_tensors_it_raises() -> None:
    with use_backend("cuda"), pytest.raises(RuntimeError, match="takes GPU tensors, not cpu"):
        clasp_kernels.select_tokens(FEATURES, SALIENCE, 2, 1)


def test_the_report_names_the_extension_and_its_state(computer: Computer) -> None:
    computer(loaded(reason="_C_cuda.abi3.so, built with torch 2.13.0+cu130"), (9, 0))
    report = backend_report()
    served = {row.op for row in report.ops if (row.device, row.backend) == ("cuda", "cuda")}
    assert served == set(table.ops_of("cuda"))
    assert "CUDA extension: loaded, _C_cuda.abi3.so, built with torch 2.13.0+cu130" in str(report)
    computer(NOT_BUILT)
    assert "CUDA extension: not loaded, built without CUDA kernels: no nvcc." in str(
        backend_report()
    )


def write_extension(folder: Path, info: str) -> None:
    (folder / "_C_cuda.abi3.so").write_bytes(b"not a library")
    (folder / "_build_info.py").write_text(info)


INFO = 'TORCH_VERSION = "2.10.0+cu126"\nCUDA_VERSION = "12.6"\nCUDA_ARCHITECTURES = ("8.0",)\n'


def test_a_failure_to_load_names_both_versions_and_the_way_out(tmp_path, monkeypatch) -> None:
    monkeypatch.setattr(torch.version, "cuda", "13.0")
    write_extension(tmp_path, INFO)
    status = cuda._load(tmp_path)
    assert status.failed and not status.loaded
    assert status.reason.startswith(
        "_C_cuda.abi3.so, built with torch 2.10.0+cu126 and CUDA 12.6, does not load under torch "
        f"{torch.__version__} with CUDA 13.0 ("
    )
    assert status.reason.endswith(cuda.REBUILD)


def test_a_cpu_build_of_torch_does_not_try_to_load_it(tmp_path, monkeypatch) -> None:
    monkeypatch.setattr(torch.version, "cuda", None)
    write_extension(tmp_path, INFO)
    status = cuda._load(tmp_path)
    assert not (status.loaded or status.failed)
    assert status.reason.endswith(f"needs a CUDA build of torch, which {torch.__version__} is not.")


@pytest.mark.parametrize(
    ("info", "problem"),
    [
        (
            'CUDA_PROBLEM = "torch 2.13.0+cpu is a CPU build"',
            "built without CUDA kernels: torch 2.13.0+cpu is a CPU build. ",
        ),
        ("", "built without CUDA kernels: there is no _C_cuda extension in "),
    ],
)
def test_one_that_is_not_there_says_why_and_how_to_build_it(tmp_path, info, problem) -> None:
    (tmp_path / "_build_info.py").write_text(info)
    status = cuda._load(tmp_path)
    assert status.path is None
    assert status.reason.startswith(problem)
    assert "CLASP_KERNELS_BUILD_CUDA=1 pip install" in status.reason


# A torch library replaces the extension, and registers in Python what it would register in C++.
IN_PLACE = (
    WITHOUT_OPS
    + """
import warnings
warnings.simplefilter("error")
import pathlib, torch, clasp_kernels.backends.cuda as cuda, clasp_kernels.backends.cpu as native
from clasp_kernels.backends import table, triton
triton.installed = lambda: True
load = cuda._load
def register(path):
    library = torch.library.Library("clasp_kernels", "IMPL")
    library.impl("select_tokens", lambda *arguments: None, "CUDA")
    cuda.kept = library
    return ""
native.load_library, real = register, native.load_library
native.load = lambda: None
native.find = lambda package, name: pathlib.Path("_C_cuda.abi3.so")
torch.version.cuda = "13.0"
import clasp_kernels.ops
status = cuda.load()
assert status.loaded and status.ops == ("select_tokens",), status
for op in table.ops_of("triton"):
    assert cuda.registered(op), op
    assert torch._C._dispatch_has_kernel_for_dispatch_key(f"clasp_kernels::{op}.triton", "CUDA")
"""
)


def test_it_takes_its_place_before_triton_and_without_a_warning() -> None:
    done = python(IN_PLACE)
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
