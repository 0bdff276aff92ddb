"""The CUDA extension, called through torch without a GPU (cuda_on_host.py).

Covers the contract of its ops, waves of images, and the choice of the design.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch

sys.path.insert(0, str(Path(__file__).parent))
import cuda_on_host

from clasp_kernels.backends.table import ops_of

pytestmark = pytest.mark.deep

OPS = torch.ops.clasp_simt
DESIGN = "CLASP_KERNELS_CUDA_DESIGN"
DESIGNS = ("matrix", "steps")


@pytest.fixture(scope="module", autouse=True)
def extension() -> None:
    cuda_on_host.load()


def complete(
    features: torch.Tensor, count: int, weights: torch.Tensor | None = None
) -> torch.Tensor:
    selected = torch.tensor([[3, -1]]).expand(len(features), 2)
    return OPS.complete_tokens(features, selected, count, None, weights)


def select(
    features: torch.Tensor, salience: torch.Tensor, weights: torch.Tensor | None = None
) -> tuple[torch.Tensor, ...]:
    """Calls select_tokens with budgets and pivot counts that vary by image and include budget 0."""
    images = torch.arange(len(features))
    budget = torch.where(images % 5 == 4, 9, images % 4 * 2)
    counts = (9, budget, 4, images % 4 + 1)
    return OPS.select_tokens(features, salience, *counts, salience > 0.1, weights)


def test_the_contract() -> None:
    """Runs every test in tests/ops of these ops with every design."""
    root = cuda_on_host.harness.ROOT
    options = ["-v", "-p", "no:cacheprovider", "-p", "cuda_on_host", "--op-device=cpu"]
    options += ["--hypothesis-profile=few", "-k", "cuda-cpu"]
    tests = [f"tests/ops/test_{op}.py" for op in ops_of("cuda")]
    path = os.pathsep.join(map(str, (root, Path(__file__).parent)))
    done = subprocess.run(
        [sys.executable, "-m", "pytest", *options, *tests],
        env={**os.environ, "PYTHONPATH": path},
        cwd=root,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    passed = re.findall(r"test_(\w+)\.py::\w+\[cuda-cpu-(\w+)\S*\] PASSED", done.stdout)
    for op in ops_of("cuda"):
        for design in ("auto", "steps"):
            assert passed.count((op, design)) >= 10, (op, design)


@pytest.mark.parametrize("weighted", [False, True], ids=["", "weighted"])
@pytest.mark.parametrize(
    ("design", "batch", "tokens", "workspace"),
    [("matrix", 25, 60, 1 << 18), ("steps", 20, 100, 1 << 15)],
)
def test_waves_of_images(
    design: str,
    batch: int,
    tokens: int,
    workspace: int,
    weighted: bool,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The images need more memory than the workspace has."""
    monkeypatch.setenv(DESIGN, design)
    monkeypatch.setenv("SIMT_WORKSPACE_BYTES", str(workspace))
    features, salience = torch.randn(batch, tokens, 5), torch.rand(batch, tokens)
    weights = torch.rand(batch, tokens) if weighted else None
    bytes_an_image = 17 * tokens if design == "steps" else 4 * tokens**2
    assert 2 * workspace > batch * bytes_an_image > workspace
    picks, kept = complete(features, 3, weights), select(features, salience, weights)
    for image in (batch // 2, batch - 1):
        here = slice(image, image + 1)
        own = None if weights is None else weights[here]
        assert torch.equal(complete(features[here], 3, own), picks[here])
        # The budget depends on the position of an image, so the image is repeated over the batch.
        own = None if own is None else own.expand(batch, -1)
        alone = select(features[here].expand(batch, -1, -1), salience[here].expand(batch, -1), own)
        for ours, whole in zip(alone, kept, strict=True):
            assert torch.equal(ours[image], whole[image])


@pytest.mark.parametrize(
    ("design", "tokens", "workspace"),
    [
        ("matrix", 257, 1 << 18),
        ("matrix", 8193, None),
        ("cluster", 3, None),
        ("", 3, None),
    ],
)
def test_a_design_that_does_not_serve_is_refused(
    design: str, tokens: int, workspace: int | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    features = torch.randn(1, tokens, 4)
    monkeypatch.setenv(DESIGN, design)
    if workspace is not None:
        monkeypatch.setenv("SIMT_WORKSPACE_BYTES", str(workspace))
    with pytest.raises((RuntimeError, ValueError), match=DESIGN):
        complete(features, 2)
    monkeypatch.delenv(DESIGN)
    assert complete(features, 1).shape == (1, 1)


def test_weights_that_are_not_usable_are_refused() -> None:
    """Python checks its arguments; a direct call of the operator must stay in bounds too."""
    features = torch.randn(2, 5, 4)
    for weights in (
        *(torch.rand(2, 4), torch.rand(1, 5), torch.rand(5), torch.rand(2, 5, 1)),
        *(torch.rand(2, 5).double(), torch.rand(2, 5).half(), torch.ones(2, 5, dtype=torch.int32)),
    ):
        with pytest.raises(RuntimeError, match="weights has the wrong"):
            complete(features, 2, weights)
        with pytest.raises(RuntimeError, match="weights has the wrong"):
            select(features, torch.rand(2, 5), weights)


@pytest.mark.parametrize("weighted", [False, True], ids=["", "weighted"])
@pytest.mark.parametrize("design", DESIGNS)
def test_nothing_to_compare(design: str, weighted: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(DESIGN, design)
    for shape in ((0, 5, 4), (2, 0, 4), (2, 5, 0)):
        features = torch.randn(shape)
        batch, tokens, _ = shape
        expected = torch.full((batch, 3), -1)
        expected[:, :tokens] = torch.arange(tokens)[:3]
        nothing = torch.zeros(batch, 0, dtype=torch.int64)
        # Without columns, all similarities are 0, so that the weights decide.
        weights = torch.arange(9.0, 9.0 - tokens, -1).expand(batch, tokens) if weighted else None
        assert torch.equal(OPS.complete_tokens(features, nothing, 3, None, weights), expected)
        kept, is_pivot, counts = OPS.select_tokens(
            features, torch.zeros(batch, tokens), 3, None, 1, None, None, weights
        )
        assert torch.equal(kept, expected)
        assert torch.equal(counts, (expected >= 0).sum(1))
        assert is_pivot.sum() == min(batch * tokens, batch)
