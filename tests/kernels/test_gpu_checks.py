"""What the tests on a GPU hold results to, held itself to the oracle, and tried at small sizes."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from contextlib import nullcontext
from pathlib import Path

import exact
import gpu_checks
import large
import oracle
import pytest
import sanitized
import torch
from gpu_kernels import CUDA_DESIGN, Kernels
from inputs import DTYPES

from clasp_kernels import backend_report, use_backend
from clasp_kernels.backends import table

pytestmark = pytest.mark.deep

ROOT = Path(__file__).resolve().parents[2]

SIZES = [large.Size(3, 13, 7), large.Size(2, 9, 1), large.Size(1, 1, 5)]
# Triton's interpreter is slow, and tests/ops have its kernels at many sizes: one is enough to see
# that the checks accept its results.
ON_THE_CPU = [*(("reference", size) for size in SIZES), ("triton", SIZES[1])]


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize(("backend_name", "size"), ON_THE_CPU, ids=str)
@pytest.mark.parametrize("name", large.OPS)
def test_small_sizes_pass_on_the_cpu(name, backend_name, size, dtype) -> None:
    with use_backend(backend_name):
        if problem := gpu_checks.problem(name, "cpu"):
            pytest.skip(problem)
        for weighted in (False, True):
            gpu_checks.assert_right(name, size, dtype, "cpu", weighted=weighted)
            gpu_checks.assert_images_are_independent(name, size, dtype, "cpu", weighted=weighted)
        gpu_checks.assert_same_bits_every_time(name, size, dtype, "cpu", times=2)


@pytest.mark.parametrize("normalize", [None, "l2", "rms"])
def test_fusion_in_float64_is_the_oracles(normalize) -> None:
    given = large.arguments("fuse_layers", SIZES[0], torch.bfloat16, "cpu")
    given["normalize"] = normalize
    torch.testing.assert_close(exact.fuse_layers(**given), oracle.fuse_layers(**given))


def test_salience_in_float64_is_the_oracles() -> None:
    given = large.arguments("attention_salience", SIZES[0], torch.bfloat16, "cpu")
    expected = oracle.attention_salience(**given)
    torch.testing.assert_close(exact.attention_salience(**given), expected)


@pytest.mark.parametrize("size", SIZES, ids=str)
def test_merging_in_float64_is_the_oracles(size) -> None:
    given = large.arguments("merge_tokens", size, torch.float16, "cpu", exact=True)
    torch.testing.assert_close(exact.merge_tokens(**given), oracle.merge_tokens(**given))


@pytest.mark.parametrize("dim", [1, 4, 63])
def test_wide_features_have_exact_cosines(dim) -> None:
    features = large.Maker(0, "cpu").exact_features(2, 40, dim)
    norms = features.square().sum(-1).sqrt()
    assert torch.equal(norms, norms.round())
    assert len(features[0].unique(dim=0)) < 40
    assert (norms == 0).any() and (features != 0).any(0).any(0).sum() == min(dim, 4)


@pytest.mark.parametrize("name", ["complete_tokens", "cover_tokens"])
def test_the_certificate_accepts_what_the_oracle_picks(name) -> None:
    given = large.arguments(name, large.Size(3, 13, 7), torch.float32, "cpu")
    picks = getattr(oracle, name)(**given)
    certify = exact.certify_cover
    if name == "complete_tokens":
        certify = exact.certify_completion
        del given["num_tokens"]
    certify(**given, picks=picks)
    for image, step in [(0, 0), (2, 3)]:
        for wrong in (-1, 13, -2, int(picks[image, step - 1]), int(given["selected"][image].max())):
            if wrong == picks[image, step]:
                continue
            changed = picks.clone()
            changed[image, step] = wrong
            with pytest.raises(AssertionError, match="not certified"):
                certify(**given, picks=changed)
    swapped = picks[:, [1, 0, *range(2, picks.shape[1])]]
    with pytest.raises(AssertionError, match="not certified"):
        certify(**given, picks=swapped)


def test_the_certificate_of_weighted_picks_accepts_what_the_oracle_picks() -> None:
    size = large.Size(3, 13, 7)
    given = large.arguments("complete_tokens", size, torch.float32, "cpu", weighted=True)
    given["weights"][0, 1:3] = torch.tensor([torch.nan, torch.inf])
    picks = oracle.complete_tokens(**given)
    choice = given["features"], given["selected"]
    options = {"weights": given["weights"], "valid": given["valid"]}
    exact.certify_completion(*choice, picks, **options)
    unweighted = oracle.complete_tokens(**{**given, "weights": None})
    assert torch.equal(unweighted[2], picks[2])  # of equal weights
    for image in range(2):
        changed = picks.clone()
        changed[image] = unweighted[image]
        with pytest.raises(AssertionError, match="not certified"):
            exact.certify_completion(*choice, changed, **options)


@pytest.mark.parametrize("name", large.OPS)
def test_a_wrong_result_is_noticed(name, monkeypatch) -> None:
    """A backend that is wrong in one image or element, and right in all else."""
    right = gpu_checks.run

    calls = []

    def wrong_at_first(op, given):
        results = right(op, given)
        calls.append(op)
        if len(calls) > 1:
            return results
        changed = results[0].clone()
        changed.view(-1)[-1] += 1
        return (changed, *results[1:])

    monkeypatch.setattr(gpu_checks, "run", wrong_at_first)
    with use_backend("reference"), pytest.raises(AssertionError):
        gpu_checks.assert_right(name, large.Size(2, 40, 7), torch.float32, "cpu")


EQUAL = large.Size(2, 96, 64)
GREEDY = sorted({*table.ops_of("cuda"), "cover_tokens"})


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("chosen", ["cpu", "triton"])
@pytest.mark.parametrize("name", GREEDY)
def test_equal_tokens_tie(name, chosen, dtype) -> None:
    with use_backend(chosen):
        if problem := gpu_checks.problem(name, "cpu"):
            pytest.skip(problem)
        exact = chosen == "triton"
        gpu_checks.assert_equal_tokens_tie(name, EQUAL, dtype, "cpu", seed=1, exact=exact)


@pytest.mark.parametrize("exact", [False, True])
@pytest.mark.parametrize("name", GREEDY)
def test_one_that_puts_the_higher_of_two_equal_tokens_first_is_noticed(
    name, exact, monkeypatch
) -> None:
    right = gpu_checks.run

    def higher_first(op, given):
        """What a product does that rounds in another way for tokens after the one compared with."""
        features = given["features"].clone()
        features[:, -8:] *= 1 + 1e-4 * torch.randn(features.shape[-1])
        return right(op, {**given, "features": features})

    monkeypatch.setattr(gpu_checks, "run", higher_first)
    with use_backend("reference"), pytest.raises(AssertionError, match="the higher of two equal"):
        for seed in range(10):
            case = (name, EQUAL, torch.float32, "cpu", seed)
            gpu_checks.assert_equal_tokens_tie(*case, exact=exact)


@pytest.mark.parametrize("name", large.OPS)
def test_one_that_reads_what_was_left_in_memory_is_noticed(name, monkeypatch) -> None:
    held = []
    right = gpu_checks.run

    def reads(op, given):
        results = right(op, given)
        # Without the check's doing it is filled with what no call expects.
        dirty = not torch.utils.deterministic.fill_uninitialized_memory and held[-1] == 0xFF
        return tuple(result + 1 if dirty else result for result in results)

    check = gpu_checks.assert_what_memory_held_does_not_matter
    monkeypatch.setattr(gpu_checks, "leave_in_memory", lambda byte, device: held.append(byte))
    with use_backend("reference"):
        check(name, SIZES[0], torch.float32, "cpu")
        assert held == list(gpu_checks.LEFT_BEHIND)
        monkeypatch.setattr(gpu_checks, "run", reads)
        with pytest.raises(AssertionError):
            check(name, SIZES[0], torch.float32, "cpu")
    assert torch.utils.deterministic.fill_uninitialized_memory


@pytest.mark.parametrize(
    ("taken", "problem"),
    [
        (0, "was not seen"),
        (255 << 20, None),
        (300 << 20, "299 MiB of workspace"),
    ],
)
def test_too_much_workspace_is_noticed(taken, problem, monkeypatch) -> None:
    monkeypatch.setattr(torch.cuda, "synchronize", lambda: None)
    monkeypatch.setattr(torch.cuda, "reset_peak_memory_stats", lambda: None)
    monkeypatch.setattr(torch.cuda, "memory_allocated", lambda: 5 << 20)
    monkeypatch.setattr(torch.cuda, "max_memory_allocated", lambda: (5 << 20) + taken)
    given = large.arguments("complete_tokens", SIZES[0], torch.float32, "cpu")
    expected = pytest.raises(AssertionError, match=problem) if problem else nullcontext()
    with expected:
        gpu_checks.assert_takes_no_more_than_a_workspace("complete_tokens", given)


@pytest.mark.parametrize(
    ("design", "tokens", "fits"),
    [
        ("matrix", 8192, True),
        ("matrix", 8193, False),
        ("steps", 16384, True),
        ("auto", 16384, True),
    ],
)
def test_sizes_that_a_design_of_the_cuda_extension_serves(design, tokens, fits) -> None:
    assert Kernels("select_tokens", "cuda", design).fit(large.Size(2, tokens, 3584)) == fits


def test_a_design_is_forced_for_the_time_of_a_block(monkeypatch) -> None:
    monkeypatch.setenv(CUDA_DESIGN, "auto")
    with Kernels("select_tokens", "cuda", "steps").forced():
        assert os.environ[CUDA_DESIGN] == "steps"
        assert backend_report().forced == "cuda"
    assert os.environ[CUDA_DESIGN] == "auto"
    with Kernels("select_tokens", "triton").forced():
        assert os.environ[CUDA_DESIGN] == "auto"
        assert backend_report().forced == "triton"


def test_where_no_kernels_serve_the_sanitizers_do_not_pass(capsys) -> None:
    with pytest.raises(SystemExit, match="racecheck has had nothing to watch"):
        sanitized.main("racecheck", "cpu")
    assert "select_tokens-cuda-steps: the CUDA kernel of select_tokens takes GPU tensors" in (
        capsys.readouterr().out
    )


# Of most tests a case with Triton kernels and one with a design; those of one file are quick.
A_FEW = "(gather_tokens or select_tokens-cuda-matrix or select_tokens-cuda-auto) and not "
A_FEW += "(twenty and gather or 8192 or 2880 or 16384 or float16 or 577x1 or opcheck and default)"
TWO_GPUS = {"test_a_device_that_is_not_the_current_one"}
MORE_MEMORY = {
    "test_fuses_layers_of_more_than_2_to_the_31_elements",
    "test_gathers_from_and_to_more_than_2_to_the_31_elements",
}
NEED_A_GPU = {
    "test_gpu": TWO_GPUS | {"test_wild_indices_of_one_image_do_no_harm_to_others"},
    "test_gpu_results": MORE_MEMORY | {"test_the_reference_serves_a_gpu_too"},
    "test_gpu_cuda": {"test_a_design_that_cannot_serve_says_so_and_is_not_chosen"},
}


@pytest.mark.skipif(torch.cuda.is_available(), reason="they run on the GPU")
@pytest.mark.parametrize("file", NEED_A_GPU)
def test_what_needs_a_gpu_is_played_without_one(file) -> None:
    folders = (ROOT, ROOT / "tests", ROOT / "tests" / "ops", ROOT / "tests" / "kernels")
    path = ROOT / "tests" / "kernels" / f"{file}.py"
    # Rewriting assertions takes seconds where no bytecode is kept.
    options = ["-v", "-p", "no:cacheprovider", "-p", "rehearsal", "--assert=plain"]
    options += ["-k", "" if file == "test_gpu_cuda" else A_FEW]
    done = subprocess.run(
        [sys.executable, "-m", "pytest", *options, str(path)],
        env={**os.environ, "PYTHONPATH": os.pathsep.join(map(str, folders))},
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    played = set(re.findall(r"::(\w+)\S* PASSED", done.stdout))
    written = set(re.findall(r"^def (test_\w+)", path.read_text(), re.MULTILINE))
    assert written - played == NEED_A_GPU[file], done.stdout
