"""Others' farthest point sampling, a baseline of complete_tokens: what it is given and gives."""

from __future__ import annotations

import sys
import tarfile
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import farthest_points
import ops
import pytest
import torch
from case import Implementation, Inputs, NotServed
from gpu import build_fps, run
from gpu.clock import HostClock
from torch import Tensor

from clasp_kernels import complete_tokens, use_backend

SHAPES = pytest.mark.parametrize("shape", [(7, 3, 2), (40, 24, 19), (576, 1024, 63)])
BATCHES = pytest.mark.parametrize("batch", [1, 3])


def samplings(gpu: bool) -> dict[str, Implementation]:
    return {it.name: it for it in farthest_points.implementations(gpu)}


def inputs_of(batch: int, shape: tuple[int, int, int]) -> Inputs:
    """From the first of N tokens of width D to as many as the shape says."""
    count, dim, num_tokens = shape
    features = torch.randn(batch, count, dim, generator=torch.Generator().manual_seed(0))
    return features, torch.zeros(batch, 1, dtype=torch.int64), num_tokens


def picks(sampling: Implementation, inputs: Inputs) -> Tensor:
    with sampling.within("cpu"):
        return sampling.restore(inputs, sampling.make()(*sampling.adapt(inputs)))


@pytest.fixture
def torch_cluster(monkeypatch: Any) -> None:
    """Farthest point sampling as the package defines it, by the signature of its op."""

    def fps(src: Tensor, ptr: Tensor, ratio: Tensor, random_start: bool) -> Tensor:
        assert src.dtype == torch.float32 and src.is_contiguous() and not random_start
        picks = []
        for begin, end in zip(ptr.tolist(), ptr.tolist()[1:], strict=False):
            picks.append(begin)
            distances = (src[begin:end] - src[begin]).square().sum(-1)
            for _ in range(int((ratio * (end - begin)).ceil()) - 1):
                picks.append(begin + int(distances.argmax()))
                others = (src[begin:end] - src[picks[-1]]).square().sum(-1)
                distances = distances.minimum(others)
        return torch.tensor(picks)

    monkeypatch.setitem(sys.modules, "torch_cluster", ModuleType("torch_cluster"))
    monkeypatch.setattr(torch.ops, "torch_cluster", SimpleNamespace(fps=fps), raising=False)
    monkeypatch.delenv("TORCH_CLUSTER_FPS", raising=False)


@BATCHES
@SHAPES
def test_farthest_points_are_our_completion(torch_cluster, batch, shape) -> None:
    inputs, sampling = inputs_of(batch, shape), samplings(gpu=True)["torch-cluster-fps"]
    assert torch.equal(picks(sampling, inputs), complete_tokens(*inputs))
    assert sampling.waits


@pytest.mark.parametrize(
    ("name", "gpu"),
    [("torch-quickfps", False), ("torch-quickfps-plain", False), ("torch-quickfps", True)],
)
@BATCHES
@SHAPES
def test_quickfps_picks_what_we_do(name, gpu, batch, shape) -> None:
    pytest.importorskip("torch_quickfps")
    inputs = inputs_of(batch, shape)
    assert torch.equal(picks(samplings(gpu)[name], inputs), complete_tokens(*inputs))


def test_quickfps_without_kernels_for_the_device_says_so() -> None:
    pytest.importorskip("torch_quickfps")
    sampling = samplings(gpu=True)["torch-quickfps"]
    with pytest.raises(NotServed, match="no kernels for xpu"), sampling.within("xpu"):
        pass


@pytest.mark.parametrize("built", [False, True])
def test_a_package_that_does_not_load_costs_its_row_alone(monkeypatch, tmp_path, built) -> None:
    monkeypatch.setitem(sys.modules, "torch_cluster", None)
    named = "torch_cluster"
    if built:
        named = str(tmp_path / "fps.so")
        Path(named).write_text("no library")
    monkeypatch.setenv("TORCH_CLUSTER_FPS", named if built else "")
    session = run.Session(HostClock(), "cpu")
    with use_backend("reference"):
        session.measure(next(it.small() for it in ops.load("complete_tokens").gpu))
    why = {it["implementation"]: it["why"] for it in session.left_out}["torch-cluster-fps"]
    assert why.startswith(f"{named} cannot be loaded: ") and "\n" not in why
    assert not session.failures
    ours = next(row for row in session.rows if row.kind == "ours")
    assert "torch-cluster-fps" in ours.note and "cuda-" not in ours.note


@pytest.mark.parametrize("cuda", [None, "13.0"])
def test_of_an_archive_only_what_is_timed_is_built(monkeypatch, tmp_path, cuda) -> None:
    root = tmp_path / "torch_cluster-9.9"
    for name in ("fps.cpp", "cpu/fps_cpu.cpp", "cuda/fps_cuda.cu", "knn.cpp"):
        (root / "csrc" / name).parent.mkdir(parents=True, exist_ok=True)
        (root / "csrc" / name).touch()
    archive, folder = tmp_path / "torch_cluster-9.9.tar.gz", tmp_path / "built"
    with tarfile.open(archive, "w:gz") as file:
        file.add(root, root.name)
    given: dict[str, Any] = {}
    monkeypatch.setattr(torch.version, "cuda", cuda)
    monkeypatch.setattr(build_fps, "libraries_of_nvcc", lambda version: f"runtime of {version}")
    monkeypatch.setattr(
        build_fps.cpp_extension, "load", lambda name, files, **more: given.update(more, files=files)
    )
    assert build_fps.build(archive, folder) == folder / "torch_cluster_fps.so"
    assert all(Path(name).is_relative_to(folder) and Path(name).exists() for name in given["files"])
    names = {Path(name).name for name in given["files"]}
    assert names == {"fps.cpp", "fps_cpu.cpp"} | ({"fps_cuda.cu"} if cuda else set())
    assert ("-DWITH_CUDA" in given["extra_cflags"]) == bool(cuda)
    assert given["extra_ldflags"] == (["-Lruntime of 13.0"] if cuda else [])
    assert not given["is_python_module"]
