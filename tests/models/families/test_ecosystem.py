"""Every family's pruned model when it is copied, cast, offloaded, adapted, quantised, trained."""

from __future__ import annotations

import copy
import pickle
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
from accelerate import cpu_offload, disk_offload, dispatch_model
from every_family import (
    CATEGORIES,
    ROWS,
    SCHEDULES,
    answers,
    assert_answers,
    assert_as_it_was,
    assert_prunes,
    batch,
    build,
    every_family,
    every_schedule,
    expected,
    last,
    patched,
    skip_what_is_refused,
)
from tiny_llava import saved_and_loaded

from clasp_kernels.models import oracle, remove_clasp

deep = pytest.mark.deep
#: Whether a model is patched before or after others change it, and where it prunes. Half of the
#: combinations only run in `make test-deep`.
orders = pytest.mark.parametrize(
    ("where", "patch_first"),
    [
        pytest.param("input", False, id="input, apply last"),
        pytest.param("inside", True, id="inside, apply first"),
        pytest.param("input", True, id="input, apply first", marks=deep),
        pytest.param("inside", False, id="inside, apply last", marks=deep),
    ],
)


@every_family
@every_schedule
@pytest.mark.parametrize("run", [oracle._prefill, oracle._generate], ids=["prefill", "generate"])
@pytest.mark.parametrize(
    "dtype", [torch.bfloat16, pytest.param(torch.float16, marks=deep)], ids=str
)
def test_low_precision(family: str, where: str, run: Any, dtype: torch.dtype) -> None:
    model = build(family).to(dtype)
    skip_what_is_refused(model, where)
    check_against_masking(model, where, run)


def check_against_masking(model: Any, where: str, run: Any) -> None:
    """Compare with the oracle on the same dropped tokens, as rounding may change the selection."""
    task = oracle.Task(where, ROWS, run, lambda _: SCHEDULES[where])
    found = oracle.compare_logits(model.config.model_type, lambda: model, task, relative=True)
    assert found.difference <= min(found.tolerance, found.control / 2), found


@every_family
@every_schedule
def test_pixels_in_full_precision(family: str, where: str) -> None:
    """Processors return float32 pixels, whatever the model's dtype is."""
    model, prompts = build(family).bfloat16(), batch(family)
    pixels = {
        name: value.bfloat16() if value.is_floating_point() else value
        for name, value in prompts.items()
    }
    assert torch.equal(model(**prompts).logits, model(**pixels).logits)
    with patched(model, where):
        assert_answers(model, prompts, [a.float() for a in answers(model, pixels)])


def check_offloaded(
    family: str, where: str, patch_first: bool, offload: Callable[[Any], Any]
) -> None:
    """Weights of an offloaded model are only loaded while the module that has them runs."""
    unpatched = build(family)
    offload(unpatched)
    try:
        assert torch.equal(unpatched(**batch(family)).logits, expected(family, None)[0])
    except (RuntimeError, NotImplementedError):
        pytest.skip("the unpatched model, too, cannot run with its weights offloaded")
    model = build(family)
    handle = patched(model, where) if patch_first else None
    offload(model)
    assert all(parameter.is_meta for parameter in model.parameters())
    handle = handle or patched(model, where)
    assert_prunes(model, family, where)
    handle.remove()
    assert all(parameter.is_meta for parameter in model.parameters())
    # Not generate: some unpatched families then use weights before the forward that loads them.
    assert torch.equal(model(**batch(family)).logits, expected(family, None)[0])


@every_family
@orders
def test_weights_in_the_cpus_memory(family: str, where: str, patch_first: bool) -> None:
    check_offloaded(family, where, patch_first, lambda model: cpu_offload(model, "cpu"))


@deep
@every_family
@orders
def test_weights_on_disk(family: str, where: str, patch_first: bool, tmp_path: Path) -> None:
    def offload(model: Any) -> None:
        folder = tmp_path / str(len(list(tmp_path.iterdir())))
        disk_offload(model, folder, "cpu")

    check_offloaded(family, where, patch_first, offload)


def device_map(model: Any, layers: Callable[[int], str]) -> dict[str, str]:
    """Return a device map with an entry for each part and for each decoder layer."""
    decoder = model.get_decoder()
    names = {id(module): name for name, module in model.named_modules()}
    devices = {
        f"{names[id(decoder.layers)]}.{number}": layers(number)
        for number in range(len(decoder.layers))
    }
    parts = [decoder, model.base_model, model]
    for part in parts:
        for name, _ in part.named_parameters(recurse=False):
            devices[f"{names[id(part)]}.{name}"] = "cpu"
        for child in part.children():
            inside = names[id(child)]
            if not any(known == inside or known.startswith(f"{inside}.") for known in devices):
                devices[inside] = "cpu"
    return devices


@every_family
@orders
@pytest.mark.filterwarnings("ignore:The following device_map keys do not match any submodules")
@pytest.mark.parametrize("other", ["cpu", pytest.param("disk", marks=deep)])
def test_a_device_map(
    family: str, where: str, patch_first: bool, other: str, tmp_path: Path
) -> None:
    model = build(family)
    handle = patched(model, where) if patch_first else None
    devices = device_map(model, lambda number: ("cpu", other)[number % 2])
    dispatch_model(model, devices, main_device="cpu", offload_dir=tmp_path, force_hooks=True)
    handle = handle or patched(model, where)
    assert_prunes(model, family, where)
    handle.remove()
    assert_as_it_was(model, family)


#: The same for slower tests: three quarters only run in `make test-deep`.
orders_of_adapting = pytest.mark.parametrize(
    ("where", "patch_first"),
    [
        pytest.param("inside", True, id="inside, apply first"),
        pytest.param("input", False, id="input, apply last", marks=deep),
        pytest.param("input", True, id="input, apply first", marks=deep),
        pytest.param("inside", False, id="inside, apply last", marks=deep),
    ],
)


def adapted(model: Any) -> Any:
    """Return the model with a LoRA on the decoder that changes its outputs."""
    from peft import LoraConfig, get_peft_model

    config = LoraConfig(
        target_modules=r".*(language|text)_model.*(q_proj|v_proj)", task_type="CAUSAL_LM"
    )
    wrapped = get_peft_model(model, config)
    for name, parameter in wrapped.named_parameters():
        if "lora_A" in name or "lora_B" in name:
            generator = torch.Generator().manual_seed(len(name))
            parameter.copy_(0.1 * torch.randn(parameter.shape, generator=generator))
    return wrapped


@every_family
@orders_of_adapting
def test_lora(family: str, where: str, patch_first: bool) -> None:
    reference, prompts = adapted(build(family)).merge_and_unload(), batch(family)
    unpruned = answers(reference, prompts, pruned=False)
    with patched(reference, where):
        wanted = answers(reference, prompts)
    plain = build(family)
    with patched(plain, where):
        assert not torch.allclose(answers(plain, prompts)[0], wanted[0], atol=1e-2)

    model = build(family)
    handle = patched(model, where) if patch_first else None
    wrapped = adapted(model)
    handle = handle or patched(wrapped.get_base_model(), where)
    assert_answers(wrapped, prompts, wanted, atol=1e-4)
    with torch.enable_grad():
        wrapped(**prompts, **CATEGORIES, labels=labels_of(model, prompts)).loss.backward()
    gradients = [p.grad for name, p in wrapped.named_parameters() if "lora_" in name]
    assert all(gradient is not None and gradient.abs().sum() > 0 for gradient in gradients)
    merged = wrapped.merge_and_unload()
    assert_answers(merged, prompts, wanted)
    handle.remove()
    assert_answers(merged, prompts, unpruned, pruned=False)


class Int8Linear(torch.nn.Module):
    """A linear layer with weights like bitsandbytes': an integer parameter and a scale per row."""

    def __init__(self, linear: torch.nn.Linear) -> None:
        super().__init__()
        self.in_features, self.out_features = linear.in_features, linear.out_features
        scale = linear.weight.abs().amax(1, keepdim=True) / 127
        rounded = (linear.weight / scale).round().to(torch.int8)
        self.weight = torch.nn.Parameter(rounded, requires_grad=False)
        self.register_buffer("scale", scale)
        self.bias = linear.bias

    @property
    def dequantised(self) -> torch.Tensor:
        return self.weight * self.scale

    def forward(self, hidden: torch.Tensor) -> torch.Tensor:
        return torch.nn.functional.linear(hidden, self.dequantised.to(hidden.dtype), self.bias)


def quantised(model: Any) -> Any:
    for module in list(model.modules()):
        for name, child in module.named_children():
            if type(child) is torch.nn.Linear and child is not model.lm_head:
                setattr(module, name, Int8Linear(child))
    return model


@every_family
@orders_of_adapting
def test_linear_layers_of_integers(family: str, where: str, patch_first: bool) -> None:
    reference, prompts = build(family), batch(family)
    for name, module in quantised(build(family)).named_modules():
        if isinstance(module, Int8Linear):
            reference.get_submodule(name).weight.copy_(module.dequantised)
    unpruned = answers(reference, prompts, pruned=False)
    with patched(reference, where):
        wanted = answers(reference, prompts)
    model = build(family)
    handle = patched(model, where) if patch_first else None
    quantised(model)
    handle = handle or patched(model, where)
    assert_answers(model, prompts, wanted, atol=1e-5)
    handle.remove()
    assert_answers(model, prompts, unpruned, atol=1e-5, pruned=False)


@every_family
@orders_of_adapting
def test_torchao(family: str, where: str, patch_first: bool) -> None:
    torchao = pytest.importorskip("torchao.quantization", exc_type=ImportError)
    model = build(family)
    handle = patched(model, where) if patch_first else None
    torchao.quantize_(model.get_decoder(), torchao.Int8WeightOnlyConfig())
    handle = handle or patched(model, where)
    found = answers(model, batch(family))
    handle.remove()
    check_against_masking(model, where, oracle._generate)
    with patched(model, where):
        assert_answers(model, batch(family), found)


@every_family
@every_schedule
@pytest.mark.parametrize(
    "copied",
    [
        pytest.param(copy.deepcopy, id="deepcopy"),
        pytest.param(saved_and_loaded, id="torch.save"),
        pytest.param(lambda model: pickle.loads(pickle.dumps(model)), id="pickle", marks=deep),
    ],
)
def test_copies(family: str, where: str, copied: Any) -> None:
    model = build(family)  # a model that ran has hooks that cannot be pickled
    handle = patched(model, where)
    twin = copied(model)
    handle.remove()
    assert_as_it_was(model, family)
    assert_prunes(twin, family, where)
    another = copy.deepcopy(twin)
    remove_clasp(twin)
    assert_as_it_was(twin, family)
    for parameter in twin.parameters():
        parameter.zero_()
    assert_prunes(another, family, where)


@every_family
@every_schedule
def test_remove_leaves_nothing(family: str, where: str) -> None:
    model = build(family)
    assert_as_it_was(model, family)

    def everything() -> list[tuple[type, dict[str, Any]]]:
        return [
            (type(part), {k: dict(v) if k.endswith("hooks") else v for k, v in vars(part).items()})
            for part in model.modules()
        ]

    handle = patched(model, where)
    assert_prunes(model, family, where)
    handle.remove()
    before = everything()  # after the first forward, in which transformers installs its hooks
    handle = patched(model, where)
    assert_prunes(model, family, where)
    handle.remove()
    after = everything()
    assert [kind for kind, _ in after] == [kind for kind, _ in before]
    for (kind, now), (_, then) in zip(after, before, strict=True):
        assert not [name for name in now if "clasp" in name], kind
        assert now.keys() == then.keys(), kind
        changed = [name for name in now if now[name] is not then[name] and name != "rope_deltas"]
        assert all(isinstance(now[name], dict) and now[name] == then[name] for name in changed)
    assert_as_it_was(model, family)


def labels_of(model: Any, prompts: dict[str, torch.Tensor]) -> torch.Tensor:
    """Return the ids as labels, without placeholders, padding and the first token of each row."""
    ids, mask = prompts["input_ids"], prompts["attention_mask"]
    labels = ids.masked_fill((ids == model.config.image_token_id) | (mask == 0), -100)
    return labels.masked_fill(mask.cumsum(1) == 1, -100)


def gradients(model: Any) -> dict[str, torch.Tensor]:
    found = {
        name: parameter.grad.clone()
        for name, parameter in model.named_parameters()
        if parameter.grad is not None
    }
    model.zero_grad()
    return found


@every_family
@every_schedule
def test_a_training_step(family: str, where: str) -> None:
    """Loss and gradients equal those of the unpatched model with dropped tokens masked."""
    model, prompts = build(family).train(), batch(family)
    labels, ids = labels_of(model, prompts), prompts["input_ids"]
    positions = oracle._prompt_positions(model, prompts)
    with torch.enable_grad():
        with patched(model, where) as handle:
            frozen = list(handle._runtime.adapter.untrained(model).values())
            for module in frozen:
                module.requires_grad_(False)
            loss = model(**prompts, **CATEGORIES, labels=labels, position_ids=positions).loss
            loss.backward()
            record = last(handle)
        found = gradients(model)
        logits = oracle._oracle(model, prompts, ids, oracle._kept(record, prompts))
        predicted, wanted = [], []
        for row, columns in enumerate(record.columns.tolist()):
            for column, following in pairwise(at for at in columns if at >= 0):
                if labels[row, following] != -100:
                    predicted.append(logits[row, column])
                    wanted.append(labels[row, following])
        masked = torch.nn.functional.cross_entropy(torch.stack(predicted), torch.stack(wanted))
        masked.backward()
    torch.testing.assert_close(loss, masked, atol=1e-5, rtol=1e-5)
    reference = gradients(model)
    assert found.keys() == reference.keys()
    for name, gradient in found.items():
        torch.testing.assert_close(gradient, reference[name], atol=1e-5, rtol=1e-3, msg=name)
    decoder = model.get_decoder()
    assert all(parameter.grad is None for parameter in decoder.parameters())
    assert all(found[name].abs().sum() > 0 for name in found if ".layers." in name)


@every_family
@every_schedule
@pytest.mark.parametrize(
    "reentrant",
    [
        pytest.param(False, id="no reentry"),
        pytest.param(True, id="reentrant", marks=deep),
    ],
)
@pytest.mark.filterwarnings("ignore:parameters of .* require gradients, but none reach them")
@pytest.mark.filterwarnings("ignore:.*gradient_checkpointing:FutureWarning")
def test_gradient_checkpoints(family: str, where: str, reentrant: bool) -> None:
    model, prompts = build(family).train(), batch(family)
    labels = labels_of(model, prompts)
    found = []
    with patched(model, where), torch.enable_grad():
        for checkpoints in (False, True):
            if checkpoints:
                settings = {"use_reentrant": reentrant}
                model.gradient_checkpointing_enable(gradient_checkpointing_kwargs=settings)
                if reentrant:
                    model.enable_input_require_grads()
            model(**prompts, **CATEGORIES, labels=labels, use_cache=False).loss.backward()
            found.append(gradients(model))
    assert found[0].keys() == found[1].keys()
    for name, gradient in found[0].items():
        torch.testing.assert_close(found[1][name], gradient, msg=name)
    assert any(".layers." in name for name in found[0])
