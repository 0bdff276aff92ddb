"""Builds farthest point sampling out of a source archive of torch-cluster, and nothing else of it.

    python3 benchmarks/gpu/build_fps.py torch_cluster-1.6.3.tar.gz FOLDER

There are no wheels of it for every torch. The whole package is nine extensions, built one file
after the other, and needs SciPy to be imported; the op that is timed is three files. The library
goes to FOLDER/torch_cluster_fps.so, which `TORCH_CLUSTER_FPS` then has to name.
"""

from __future__ import annotations

import os
import sys
import tarfile
from pathlib import Path

import torch
from torch.utils import cpp_extension

NAME = "torch_cluster_fps"


def build(archive: Path, folder: Path) -> Path:
    with tarfile.open(archive) as file:
        file.extractall(folder, filter="data")
    sources = folder / archive.name.removesuffix(".tar.gz") / "csrc"
    files, flags, libraries = ["fps.cpp", "cpu/fps_cpu.cpp"], [], []
    if torch.version.cuda is not None:
        files, flags = [*files, "cuda/fps_cuda.cu"], ["-DWITH_CUDA"]
        libraries = [f"-L{libraries_of_nvcc(torch.version.cuda)}"]
    # Headers of CUDA's libraries, which torch's ask for, come with its wheels or with the toolkit.
    wheels = sorted(Path(torch.__file__).parent.parent.glob("nvidia/*/include"))
    cpp_extension.load(
        NAME,
        [str(sources / name) for name in files],
        extra_cflags=["-O2", *flags],
        extra_cuda_cflags=["-O2", "--expt-relaxed-constexpr", *flags],
        extra_ldflags=libraries,
        extra_include_paths=[str(path) for path in (sources, *wheels)],
        build_directory=str(folder),
        is_python_module=False,
    )
    return folder / f"{NAME}.so"


def libraries_of_nvcc(cuda: str) -> str:
    """The folder of the runtime. torch looks beside nvcc, which may be a wrapper elsewhere."""
    sys.path.append(str(Path(__file__).resolve().parents[2] / "tools"))
    import cuda_toolkit

    return cuda_toolkit.find_static_runtime(
        cuda_toolkit.find_nvcc(os.environ, cuda.partition(".")[0])
    )


if __name__ == "__main__":
    print(build(Path(sys.argv[1]), Path(sys.argv[2])))
