"""Farthest point sampling by others' kernels, where they are installed.

It takes the point whose Euclidean distance to those taken is the largest. Between unit vectors a
and b that is |a - b|^2 = 2 - 2 cos(a, b), so that on normalised features it is the completion that
starts from one token, here the first of each image. They are given features that are normalised
already and in float32: that is not timed.

- torch-cluster (MIT, rusty1s), on a GPU: a block of 256 threads an image. It takes offsets and
  ratio as tensors on the device, and what it returns counts the tokens of all images together.
- torch-quickfps (MIT, Andrew Lu), on CPU and GPU: by buckets, which on a GPU it makes in few
  dimensions, as its README advises for embeddings, or by the plain algorithm, which on a CPU is
  about as fast in so many dimensions. Its GPU kernels are packages of their own,
  torch-quickfps-cu130 say.
"""

from __future__ import annotations

import contextlib
import functools
import importlib
import os
from collections.abc import Iterator
from typing import Any

import torch
from case import Implementation, Inputs, NotServed, first_line, given
from rows import LIBRARY
from torch import Tensor

PACKAGES = ("torch_cluster", "torch_quickfps")
LIBRARY_FILE = "TORCH_CLUSTER_FPS"  # what gpu/build_fps.py has made, where there is no package
NOTE = "given unit vectors in float32"


@contextlib.contextmanager
def loaded(module: str, path: str | None = None) -> Iterator[None]:
    """The module, or the library of ops at ``path`` in place of it."""
    try:
        if path:
            torch.ops.load_library(path)
        else:
            importlib.import_module(module)
    except (ImportError, OSError, RuntimeError) as error:  # not there, or built for another torch
        raise NotServed(f"{path or module} cannot be loaded: {first_line(error)}") from error
    yield


def cluster_there(device: str) -> contextlib.AbstractContextManager[None]:
    return loaded("torch_cluster", os.environ.get(LIBRARY_FILE))


@contextlib.contextmanager
def quickfps_there(device: str) -> Iterator[None]:
    with loaded("torch_quickfps"):
        kernel = "torch_quickfps::_sample_idx_impl"
        if not torch._C._dispatch_has_kernel_for_dispatch_key(kernel, device.upper()):
            raise NotServed(f"the torch_quickfps that is installed has no kernels for {device}")
        yield


def unit_vectors(features: Tensor) -> Tensor:
    return torch.nn.functional.normalize(features.float(), dim=-1)


def for_cluster(inputs: Inputs) -> Inputs:
    """Features [B, N, D], of which the first token is selected: points [B * N, D]."""
    features, _, num_tokens = inputs
    batch, count, _ = features.shape
    device = features.device
    offsets = torch.arange(0, (batch + 1) * count, count, device=device)
    # It rounds up: half a token less than what is to be taken, the start included, is that many.
    ratio = torch.tensor((num_tokens + 0.5) / count, dtype=torch.float64, device=device)
    return unit_vectors(features).flatten(0, 1), offsets, ratio


def cluster(points: Tensor, offsets: Tensor, ratio: Tensor) -> Tensor:
    """What `torch_cluster.fps` calls, from the first point of each image."""
    return torch.ops.torch_cluster.fps(points, offsets, ratio, False)


def from_cluster(inputs: Inputs, result: Tensor) -> Tensor:
    """The picks [B, num_tokens] of each image."""
    features, _, num_tokens = inputs
    batch, count, _ = features.shape
    first = torch.arange(0, batch * count, count, device=result.device)[:, None]
    return result.view(batch, num_tokens + 1)[:, 1:] - first


def for_quickfps(inputs: Inputs) -> Inputs:
    features, _, num_tokens = inputs
    return unit_vectors(features), num_tokens + 1


def quickfps(points: Tensor, count: int, function: str, **options: int) -> Tensor:
    """From the first point of each image, by a function of torch_quickfps."""
    return getattr(torch.ops.torch_quickfps, function)(points, count, start_idx=0, **options)


def implementations(gpu: bool) -> list[Implementation]:
    buckets: dict[str, Any] = {"h": 8, "low_d": 8} if gpu else {}
    forms = {"torch-quickfps": functools.partial(quickfps, function="sample_idx", **buckets)}
    if not gpu:
        plain = functools.partial(quickfps, function="sample_idx_baseline")
        forms["torch-quickfps-plain"] = plain
    others = [
        Implementation(
            name,
            LIBRARY,
            given(form),
            for_quickfps,
            restore=lambda inputs, result: result[:, 1:],
            within=quickfps_there,
            note=NOTE,
        )
        for name, form in forms.items()
    ]
    if gpu:
        others.append(
            Implementation(
                "torch-cluster-fps",
                LIBRARY,
                given(cluster),
                for_cluster,
                from_cluster,
                within=cluster_there,
                # It reads a size back by other means than torch's, which cannot notice the wait.
                waits="waits for the device",
                note=NOTE,
            )
        )
    return others
