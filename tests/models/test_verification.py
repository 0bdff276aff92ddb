"""``verify`` passes if pruning is correct, and fails for each kind of error."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import pytest
import torch
import transformers
from tiny_llava import tiny_llava, tiny_profile
from transformers import LlavaForConditionalGeneration

from clasp_kernels.models import (
    Verification,
    apply,
    apply_clasp,
    families,
    oracle,
    verification,
    verify,
)
from clasp_kernels.models.adapter import VisionOutput
from clasp_kernels.models.families.llava import LlavaAdapter
from clasp_kernels.models.history import CachedPast, PrunedHistory
from clasp_kernels.models.layout import PrunedLayout
from clasp_kernels.models.selection import TokenSelector
from clasp_kernels.models.specimens import Specimen


def failed(report: Verification) -> set[str]:
    return {check.name for check in report.checks if not check.passed}


@pytest.fixture
def one_attention(monkeypatch: pytest.MonkeyPatch) -> None:
    """For errors that both implementations meet alike."""
    monkeypatch.setattr(verification, "_ATTENTIONS", ("sdpa",))


@pytest.fixture
def few_checks(monkeypatch: pytest.MonkeyPatch, one_attention: None) -> None:
    """For what is about the run and not about its checks: one before and one inside the decoder."""
    monkeypatch.setattr(verification, "TASKS", named("prefill, one prompt", "stages, prefill"))


@pytest.fixture
def few_that_generate(monkeypatch: pytest.MonkeyPatch, one_attention: None) -> None:
    """For what is about ``generate``: one before and one inside the decoder."""
    few = named("generate, padded batch", "stages, generate, one prompt")
    monkeypatch.setattr(verification, "TASKS", few)


def named(*names: str) -> list[oracle.Task]:
    tasks = [task for task in oracle.TASKS if task.name in names]
    assert len(tasks) == len(names)
    return tasks


@pytest.fixture(scope="module")
def report() -> Verification:
    return verify(families=(name for name in ["llava"]))


def test_a_family_passes_here(report: Verification) -> None:
    """Verify one family; families/test_every_family.py verifies the others."""
    assert len(report.checks) == 2 * (len(ALL) + 2)
    assert report.passed, failed(report)
    assert {check.family for check in report.checks} == {"llava"}
    assert {check.attention for check in report.checks} == {"sdpa", "eager"}
    assert report.transformers == transformers.__version__
    for check in report.checks:
        assert check.difference is not None and check.tolerance is not None
        assert check.control is not None
        assert check.difference <= check.tolerance <= 1e-4
        assert check.control > 1000 * check.tolerance  # wrong tokens are detected clearly


def test_every_family_has_a_specimen() -> None:
    assert set(verification.SPECIMENS) == set(apply.supported_model_types())
    assert verification._check_names(None) == list(apply.supported_model_types())


def test_a_report_is_json(report: Verification) -> None:
    answer = json.loads(json.dumps(report.to_dict()))
    assert answer["passed"] is True
    assert answer["checks"][0]["family"] == "llava"
    assert answer["transformers"] == transformers.__version__


class Reversed(LlavaAdapter):
    """Error: passes tokens to the language model in the wrong order."""

    def project(self, model: Any, tokens: torch.Tensor) -> torch.Tensor:
        return super().project(model, tokens.flip(1))


class NextLayer(LlavaAdapter):
    """Error: passes the projector another layer than it was trained on."""

    def encode(self, model: Any, inputs: Mapping[str, Any]) -> VisionOutput:
        vision = super().encode(model, inputs)
        return VisionOutput(**{**vars(vision), "features": vision.fused_layers[-1]})


class LastPatchScores(LlavaAdapter):
    """Error: scores tokens by the attention of other tokens. The rest is correct."""

    def encode(self, model: Any, inputs: Mapping[str, Any]) -> VisionOutput:
        vision = super().encode(model, inputs)
        return VisionOutput(**{**vars(vision), "salience": lambda: vision.salience().flip(1)})


class Fails(LlavaAdapter):
    """Error: fails in an unknown vision tower."""

    def encode(self, model: Any, inputs: Mapping[str, Any]) -> VisionOutput:
        raise AttributeError("CLIPEncoder has no attribute\nlayers")


ALL = {task.name for task in oracle.TASKS}
STAGES = {name for name in ALL if name.startswith("stages")}
SALIENCE = {"salience", "stages, salience"}


@pytest.mark.parametrize(
    ("broken", "fails"),
    [
        (Reversed, ALL | {"stages, salience"}),
        (NextLayer, ALL | {"stages, salience"}),
        (Fails, ALL | SALIENCE),
        (LastPatchScores, {"salience"}),
    ],
)
def test_a_broken_adapter_fails(
    one_attention: None,
    monkeypatch: pytest.MonkeyPatch,
    broken: type[LlavaAdapter],
    fails: set[str],
) -> None:
    monkeypatch.setitem(families.ADAPTERS, "llava", broken)
    report = verify(families=["llava"])
    assert not report.passed
    assert failed(report) == fails
    problems = {check.problem for check in report.checks if not check.passed}
    if broken is Fails:
        assert problems == {"AttributeError: CLIPEncoder has no attribute layers"}
    else:
        assert all("differs by" in problem for problem in problems)


def no_history(monkeypatch: pytest.MonkeyPatch) -> set[str]:
    """Lose the history of caches, as happened silently when 5.24 renamed the cache argument."""
    monkeypatch.setattr(PrunedHistory, "attach", lambda self, cache: None)
    return {name for name in ALL if "prefill" not in name}


def no_padding_mask(monkeypatch: pytest.MonkeyPatch) -> set[str]:
    take = PrunedLayout.take

    def all_real(self: PrunedLayout, columns: torch.Tensor, padding: int = 0) -> torch.Tensor:
        taken = take(self, columns, padding)
        return torch.ones_like(taken) if columns.max() == 1 else taken

    monkeypatch.setattr(PrunedLayout, "take", all_real)
    return {name for name in ALL if "one prompt" not in name} - {"decode, past_key_values"}


def one_token_off(monkeypatch: pytest.MonkeyPatch) -> set[str]:
    select = TokenSelector.select

    def shifted(self: TokenSelector, *args: Any) -> Any:
        kept = select(self, *args)
        if kept.is_pivot is not None:
            kept.indices[:, 0] = (kept.indices[:, 0] - 1) % kept.indices[:, 1]
        return kept

    monkeypatch.setattr(TokenSelector, "select", shifted)
    return ALL - STAGES | {"stages, generate, padded batch"}


def one_hidden_state_off(monkeypatch: pytest.MonkeyPatch) -> set[str]:
    columns_in = PrunedLayout.columns_in

    def shifted(self: PrunedLayout, *args: Any) -> torch.Tensor:
        places = columns_in(self, *args)
        places[:, -1] -= 1
        return places

    monkeypatch.setattr(PrunedLayout, "columns_in", shifted)
    return STAGES


def masks_of_the_first_layer(monkeypatch: pytest.MonkeyPatch) -> set[str]:
    monkeypatch.setattr(CachedPast, "at", lambda self, layer: self)
    return {name for name in STAGES if "prefill" not in name and "one prompt" not in name}


@pytest.mark.parametrize(
    "break_it",
    [
        no_history,
        no_padding_mask,
        one_token_off,
        one_hidden_state_off,
        masks_of_the_first_layer,
    ],
)
def test_broken_pruning_fails(
    one_attention: None,
    monkeypatch: pytest.MonkeyPatch,
    break_it: Callable[[pytest.MonkeyPatch], set[str]],
) -> None:
    fails = break_it(monkeypatch)
    report = verify(families=["llava"])
    assert failed(report) - SALIENCE == fails


def test_a_check_that_could_not_fail_does_not_pass(
    few_that_generate: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A model that ignores its images proves nothing."""
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
    report = verify(families=["llava"])
    generated = [check for check in report.checks if check.name == "generate, padded batch"]
    assert generated and not any(check.passed for check in generated)
    assert all("proves nothing" in check.problem for check in generated)


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


def test_a_patched_model_stays_patched(
    few_checks: None, model: LlavaForConditionalGeneration
) -> None:
    with apply_clasp(model, budget=3, profile=tiny_profile()):
        patched = dict(vars(model))
        assert verify(model).passed
        assert dict(vars(model)) == patched


def test_low_precision_passes_every_check(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(verification, "_free_memory", lambda device: 0.0)
    report = verify(tiny_llava().to(torch.bfloat16))
    assert report.passed, report
    assert len(report.checks) == len(ALL)
    assert report.dtype == "bfloat16"


def test_low_precision_is_checked_in_float32_where_it_fits(
    few_checks: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(verification, "_free_memory", lambda device: 1e12)
    model = tiny_llava().to(torch.bfloat16)
    report = verify(model)
    assert report.passed, report
    assert report.dtype == "float32"
    assert model.dtype == torch.bfloat16


def test_low_precision_fails_too(few_checks: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(verification, "_free_memory", lambda device: 0.0)
    monkeypatch.setitem(families.ADAPTERS, "llava", Reversed)
    report = verify(tiny_llava().to(torch.bfloat16))
    assert failed(report) == {task.name for task in verification.TASKS}


def test_free_memory_is_known() -> None:
    assert verification._free_memory(torch.device("cpu")) > 1e6


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ({"families": ["gpt2", "llava"]}, r"families must be among llava.*, got gpt2"),
        ({"families": "llava"}, "families must be a list of names, got 'llava'"),
        ({"families": 3}, "families must be a list of names, got 3"),
        ({"model": 3}, r"model must have a supported config.model_type, 'llava'.*; got None \(int"),
        ({"model": tiny_llava(), "families": ["llava"]}, "give model or families, not both"),
    ],
)
def test_bad_arguments(arguments: dict[str, Any], said: str) -> None:
    with pytest.raises((ValueError, TypeError), match=said):
        verify(**arguments)


def test_no_checks_are_no_pass() -> None:
    assert not verify(families=[]).passed


def test_families_may_come_one_by_one(report: Verification) -> None:
    assert {check.family for check in report.checks} == {"llava"}  # from a generator


def test_too_many_tokens_kept_fails(few_checks: None, monkeypatch: pytest.MonkeyPatch) -> None:
    """Correct logits are not enough: the number of kept tokens must match the budget."""
    monkeypatch.setattr(
        TokenSelector, "counts", lambda self, layer, names, tokens: (35,) * len(names)
    )
    report = verify(families=["llava"])
    assert failed(report) >= {task.name for task in verification.TASKS}
    assert any("tokens were kept of the images" in check.problem for check in report.checks)


@pytest.mark.parametrize(
    "settings",
    [
        {"num_beams": 2},
        {"use_cache": False},
        {"do_sample": True, "num_return_sequences": 2},
        {"prompt_lookup_num_tokens": 2},
        {"prefill_chunk_size": 4},
        {"repetition_penalty": 1.5, "eos_token_id": list(range(60))},
    ],
    ids=str,
)
def test_a_models_own_settings_do_not_disturb(
    few_that_generate: None, model: LlavaForConditionalGeneration, settings: dict[str, Any]
) -> None:
    for name, value in settings.items():
        setattr(model.generation_config, name, value)
    own = model.generation_config
    assert verify(model).passed
    assert model.generation_config is own


def unsupported_tower(model: Any) -> Any:
    model.config.vision_config.model_type = "siglip_vision_model"
    return model


@pytest.mark.parametrize("wrong", [unsupported_tower, partial(torch.compile, backend="eager")])
def test_a_model_that_cannot_be_pruned_is_refused(
    model: LlavaForConditionalGeneration, wrong: Callable[[Any], Any]
) -> None:
    with pytest.raises((ValueError, TypeError), match=r"vision tower must be|pass the inner model"):
        verify(wrong(model))


def test_what_the_caller_set_does_not_disturb(
    few_checks: None, model: LlavaForConditionalGeneration
) -> None:
    torch.set_default_dtype(torch.bfloat16)
    torch.set_float32_matmul_precision("medium")
    try:
        with torch.autocast("cpu", torch.bfloat16):
            assert verify(families=["llava"]).passed
            assert verify(model).passed
        assert torch.get_default_dtype() == torch.bfloat16
        assert torch.get_float32_matmul_precision() == "medium"
    finally:
        torch.set_default_dtype(torch.float32)
        torch.set_float32_matmul_precision("highest")


def test_other_devices_generators_are_left_alone(
    few_checks: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    def seeded(seed: int) -> None:
        raise AssertionError("a GPU's generator was seeded")

    monkeypatch.setattr(torch.cuda, "manual_seed_all", seeded)
    assert verify(families=["llava"]).passed


def test_a_patched_float32_model_is_not_copied(
    few_checks: None, model: LlavaForConditionalGeneration, monkeypatch: pytest.MonkeyPatch
) -> None:
    def copied(self: Any, memo: Any) -> None:
        raise AssertionError("copied")

    monkeypatch.setattr(type(model), "__deepcopy__", copied, raising=False)
    with apply_clasp(model, budget=3, profile=tiny_profile()):
        assert verify(model).passed


def test_where_it_ran_is_told(few_checks: None) -> None:
    assert verify(families=["llava"], device="cpu").device == "cpu"
    with pytest.raises((RuntimeError, AssertionError, NotImplementedError)):
        verify(families=["llava"], device="nonsense")
