"""Farthest point sampling by torch-cluster (MIT, rusty1s), where it is installed.

It takes the point whose Euclidean distance to those taken is the largest. Between unit vectors a
and b that is |a - b|^2 = 2 - 2 cos(a, b), so that on normalised features it is the completion that
starts from one token. Its kernel has a block of 256 threads an image, takes float64, float32 and
float16 of any width, and begins with the first point of each image or a random one.

It is given features that are normalised already and in float32, and offsets and ratio as tensors on
the device: none of that is timed. What it returns counts the tokens of all images together and has
the start in it, which is not timed either.
"""

from __future__ import annotations

import contextlib
import importlib
import os
from collections.abc import Iterator
from typing import Any

import torch
from rows import LIBRARY
from torch import Tensor

from .implementation import Implementation, Inputs, NotServed, first_line

PACKAGE = "torch_cluster"
LIBRARY_FILE = "TORCH_CLUSTER_FPS"  # what build_fps.py has made, where there is no package


@contextlib.contextmanager
def installed(device: str) -> Iterator[None]:
    path = os.environ.get(LIBRARY_FILE)
    try:
        if path:
            torch.ops.load_library(path)
        else:
            importlib.import_module(PACKAGE)
    except (ImportError, OSError, RuntimeError) as error:  # not there, or built for another torch
        raise NotServed(f"{path or PACKAGE} cannot be loaded: {first_line(error)}") from error
    yield


def sample(points: Tensor, offsets: Tensor, ratio: Tensor) -> Tensor:
    """What `torch_cluster.fps` calls, from the first point of each image."""
    return torch.ops.torch_cluster.fps(points, offsets, ratio, False)


def adapt(inputs: Inputs) -> Inputs:
    """Features [B, N, D], of which the first token is selected: points [B * N, D]."""
    features, _, num_tokens = inputs
    batch, count, _ = features.shape
    device = features.device
    points = torch.nn.functional.normalize(features.float(), dim=-1).flatten(0, 1)
    offsets = torch.arange(0, (batch + 1) * count, count, device=device)
    # It rounds up: half a token less than what is to be taken, the start included, is that many.
    ratio = torch.tensor((num_tokens + 0.5) / count, dtype=torch.float64, device=device)
    return points, offsets, ratio


def restore(inputs: Inputs, result: Tensor) -> Any:
    """The picks [B, num_tokens] of each image."""
    features, _, num_tokens = inputs
    batch, count, _ = features.shape
    first = torch.arange(0, batch * count, count, device=result.device)[:, None]
    return result.view(batch, num_tokens + 1)[:, 1:] - first


def implementations() -> list[Implementation]:
    # It reads a size back by other means than torch's, which therefore does not notice the wait.
    waits = "waits for the device"
    return [
        Implementation(
            "torch-cluster-fps",
            LIBRARY,
            lambda: sample,
            adapt,
            restore,
            within=installed,
            waits=waits,
        )
    ]
