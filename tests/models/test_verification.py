"""``verify`` says whether pruning is right here, and really fails where it is not."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import pytest
import torch
import transformers
from tiny_llava import tiny_llava, tiny_profile
from transformers import LlavaForConditionalGeneration

from clasp_kernels.models import Verification, apply, apply_clasp, verification, verify
from clasp_kernels.models.adapter import VisionOutput
from clasp_kernels.models.history import PrunedHistory
from clasp_kernels.models.layout import PrunedLayout
from clasp_kernels.models.llava import LlavaAdapter
from clasp_kernels.models.selection import TokenSelector
from clasp_kernels.models.specimens import Specimen


def failed(report: Verification) -> set[str]:
    return {check.name for check in report.checks if not check.passed}


def test_every_family_passes_here() -> None:
    report = verify()
    assert report.passed, failed(report)
    assert {check.family for check in report.checks} == set(apply.supported_model_types())
    assert {check.attention for check in report.checks} == {"sdpa", "eager"}
    assert report.transformers == transformers.__version__
    for check in report.checks:
        assert check.difference is not None and check.tolerance is not None
        assert check.control is not None
        assert check.difference <= check.tolerance <= 1e-4
        assert check.control > 1000 * check.tolerance  # it tells right from wrong


def test_every_family_has_a_specimen() -> None:
    assert set(verification.SPECIMENS) == set(apply.supported_model_types())


def test_a_report_is_json() -> None:
    answer = json.loads(json.dumps(verify(families=["llava"]).to_dict()))
    assert answer["passed"] is True
    assert answer["checks"][0]["family"] == "llava"
    assert answer["transformers"] == transformers.__version__


class Reversed(LlavaAdapter):
    """Hands the language model its tokens in the wrong order."""

    def project(self, tokens: torch.Tensor) -> torch.Tensor:
        return super().project(tokens.flip(1))


class NextLayer(LlavaAdapter):
    """Hands the projector another layer than it was trained on."""

    def encode(self, pixel_values: torch.Tensor) -> VisionOutput:
        vision = super().encode(pixel_values)
        return VisionOutput(**{**vars(vision), "features": vision.fused_layers[-1]})


class LastPatchScores(LlavaAdapter):
    """Scores tokens by another row's attention; what is kept is still treated right."""

    def encode(self, pixel_values: torch.Tensor) -> VisionOutput:
        vision = super().encode(pixel_values)
        return VisionOutput(**{**vars(vision), "query": vision.key[:, :, -1:]})


class Fails(LlavaAdapter):
    """Meets a tower that it does not know."""

    def encode(self, pixel_values: torch.Tensor) -> VisionOutput:
        raise AttributeError("CLIPEncoder has no attribute\nlayers")


ALL = {subject.name for subject in verification._SUBJECTS}


@pytest.mark.parametrize(
    ("broken", "fails"),
    [
        (Reversed, ALL),
        (NextLayer, ALL),
        (Fails, ALL | {"salience"}),
        (LastPatchScores, {"salience"}),
    ],
)
def test_a_broken_adapter_fails(
    monkeypatch: pytest.MonkeyPatch, broken: type[LlavaAdapter], fails: set[str]
) -> None:
    monkeypatch.setitem(apply._ADAPTERS, "llava", broken)
    report = verify()
    assert not report.passed
    assert failed(report) == fails
    problems = {check.problem for check in report.checks if not check.passed}
    if broken is Fails:
        assert problems == {"AttributeError: CLIPEncoder has no attribute layers"}
    else:
        assert all("differs by" in problem for problem in problems)


def no_history(monkeypatch: pytest.MonkeyPatch) -> set[str]:
    """The silent fault of 5.24: a cache under a new name, whose history nobody finds."""
    monkeypatch.setattr(PrunedHistory, "attach", lambda self, cache: None)
    return {name for name in ALL if not name.startswith("prefill")}


def no_padding_mask(monkeypatch: pytest.MonkeyPatch) -> set[str]:
    take = PrunedLayout.take

    def all_real(self: PrunedLayout, columns: torch.Tensor, padding: int = 0) -> torch.Tensor:
        taken = take(self, columns, padding)
        return torch.ones_like(taken) if columns.max() == 1 else taken

    monkeypatch.setattr(PrunedLayout, "take", all_real)
    one = {"prefill, one prompt", "generate, one prompt", "decode, past_key_values"}
    return ALL - one


def one_token_off(monkeypatch: pytest.MonkeyPatch) -> set[str]:
    select = TokenSelector.select

    def shifted(self: TokenSelector, *args: Any) -> Any:
        kept = select(self, *args)
        kept.stage.indices[:, 0] = (kept.stage.indices[:, 0] - 1) % kept.stage.indices[:, 1]
        return kept

    monkeypatch.setattr(TokenSelector, "select", shifted)
    return ALL


@pytest.mark.parametrize("break_it", [no_history, no_padding_mask, one_token_off])
def test_broken_pruning_fails(
    monkeypatch: pytest.MonkeyPatch, break_it: Callable[[pytest.MonkeyPatch], set[str]]
) -> None:
    fails = break_it(monkeypatch)
    report = verify()
    assert failed(report) - {"salience"} == fails


def test_a_check_that_could_not_fail_does_not_pass(monkeypatch: pytest.MonkeyPatch) -> None:
    """A model that does not look at its images proves nothing."""
    build = verification.SPECIMENS["llava"].build

    def blind(**settings: Any) -> Any:
        model = build(**settings)
        for name, parameter in model.model.multi_modal_projector.named_parameters():
            if "linear_2" in name:
                parameter.data.zero_()
        for layer in model.model.language_model.layers:
            layer.self_attn.o_proj.weight.data.zero_()
        return model

    specimen = verification.SPECIMENS["llava"]
    monkeypatch.setitem(
        verification.SPECIMENS,
        "llava",
        Specimen(blind, specimen.images, specimen.salience),
    )
    report = verify()
    generated = [check for check in report.checks if check.name.startswith("generate")]
    assert generated and not any(check.passed for check in generated)
    assert all("nothing is proved" in check.problem for check in generated)


def test_a_users_model_is_left_as_it_was(model: LlavaForConditionalGeneration) -> None:
    model.train()
    model.model.vision_tower.eval()
    before = dict(vars(model))
    training = [module.training for module in model.modules()]
    weights = {name: weight.clone() for name, weight in model.state_dict().items()}
    torch.manual_seed(3)
    expected = torch.rand(3)
    torch.manual_seed(3)
    report = verify(model)
    assert torch.equal(torch.rand(3), expected)
    assert report.passed, report
    assert len(report.checks) == len(ALL)
    assert dict(vars(model)) == before
    assert [module.training for module in model.modules()] == training
    assert all(torch.equal(weights[name], weight) for name, weight in model.state_dict().items())


def test_a_patched_model_stays_patched(model: LlavaForConditionalGeneration) -> None:
    with apply_clasp(model, budget=3, profile=tiny_profile()):
        patched = dict(vars(model))
        assert verify(model).passed
        assert dict(vars(model)) == patched


@pytest.mark.parametrize(("free", "dtype"), [(1e12, "float32"), (0.0, "bfloat16")])
def test_low_precision_is_checked_in_float32_where_it_fits(
    monkeypatch: pytest.MonkeyPatch, free: float, dtype: str
) -> None:
    monkeypatch.setattr(verification, "_free_memory", lambda device: free)
    model = tiny_llava().to(torch.bfloat16)
    report = verify(model)
    assert report.passed, report
    assert report.dtype == dtype
    assert model.dtype == torch.bfloat16


def test_low_precision_fails_too(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(verification, "_free_memory", lambda device: 0.0)
    monkeypatch.setitem(apply._ADAPTERS, "llava", Reversed)
    assert failed(verify(tiny_llava().to(torch.bfloat16))) == ALL


def test_free_memory_is_known() -> None:
    assert verification._free_memory(torch.device("cpu")) > 1e6


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ({"families": ["gpt2", "llava"]}, r"families must be among llava.*, got gpt2"),
        ({"families": "llava"}, "families must be a list of names, got 'llava'"),
        ({"model": 3}, r"model must have a supported config.model_type, 'llava'.*; got None \(int"),
        ({"model": tiny_llava(), "families": ["llava"]}, "give model or families, not both"),
    ],
)
def test_bad_arguments(arguments: dict[str, Any], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        verify(**arguments)


def test_no_checks_are_no_pass() -> None:
    assert not verify(families=[]).passed
