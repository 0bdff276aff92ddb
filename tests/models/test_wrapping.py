"""Patched models with tools that copy, re-bind, wrap and unwrap methods of an instance."""

from __future__ import annotations

import copy
import functools
import types
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed
from accelerate import Accelerator, cpu_offload
from accelerate.hooks import ModelHook, add_hook_to_module, remove_hook_from_module
from tiny_llava import images, prompts, tiny_llava, tiny_profile
from torch.distributed.fsdp import FSDPModule, FullyShardedDataParallel, fully_shard
from torch.distributed.fsdp.wrap import ModuleWrapPolicy
from transformers import GenerationConfig, LlavaForConditionalGeneration
from transformers.generation.configuration_utils import ContinuousBatchingConfig

from clasp_kernels.bundled import tiny_vlm_path
from clasp_kernels.models import ClaspHandle, apply_clasp, remove_clasp
from clasp_kernels.models.patching import MethodPatches

PROMPT = {**prompts([1, 5, "image", 7, 8], [1, "image", 3, 2, 9, 4]), "pixel_values": images(2)}
CATEGORY = {"categories": "ocr"}


def patched(model: Any) -> ClaspHandle:
    return apply_clasp(model, budget=5, profile=tiny_profile())


@functools.cache
def expected(pruned: bool) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the logits and generated ids of a fresh model, with or without pruning."""
    model = tiny_llava()
    category = CATEGORY if pruned else {}
    if pruned:
        patched(model)
    logits = model(**PROMPT, **category).logits
    return logits, model.generate(**PROMPT, **category, max_new_tokens=4)


def assert_prunes(model: Any, pruned: bool = True, atol: float = 0.0) -> None:
    logits, ids = expected(pruned)
    category = CATEGORY if pruned else {}
    given = model(**PROMPT, **category).logits.float()
    torch.testing.assert_close(given, logits, atol=atol, rtol=0.0)
    assert torch.equal(model.generate(**PROMPT, **category, max_new_tokens=4), ids)


def assert_as_it_was(model: Any) -> None:
    assert_prunes(model, pruned=False)
    assert type(model) is LlavaForConditionalGeneration
    assert "_clasp_patches" not in vars(model)


@pytest.mark.parametrize("patch_first", [True, False])
@pytest.mark.parametrize("keep_fp32_wrapper", [True, False])
def test_accelerates_prepare_and_unwrap(
    model: LlavaForConditionalGeneration, patch_first: bool, keep_fp32_wrapper: bool
) -> None:
    accelerator = Accelerator(cpu=True, mixed_precision="bf16")
    handle = patched(model) if patch_first else None
    model = accelerator.prepare(model)
    handle = handle or patched(model)
    assert model(**PROMPT, **CATEGORY).logits.shape == expected(True)[0].shape
    model = accelerator.unwrap_model(model, keep_fp32_wrapper=keep_fp32_wrapper)
    if not keep_fp32_wrapper:
        assert_prunes(model)
    handle.remove()
    remove_clasp(model)
    assert model(**PROMPT).logits.shape == expected(False)[0].shape
    if not keep_fp32_wrapper:
        assert_as_it_was(model)


class Counting(ModelHook):
    """A device hook that only counts forwards."""

    def __init__(self) -> None:
        self.forwards = 0

    def pre_forward(self, module: Any, *args: Any, **kwargs: Any) -> Any:
        self.forwards += 1
        return args, kwargs


@pytest.mark.parametrize("order", ["hook apply", "apply hook"])
@pytest.mark.parametrize("unhook_first", [True, False])
def test_device_hooks_come_and_go(
    model: LlavaForConditionalGeneration, order: str, unhook_first: bool
) -> None:
    hook = Counting()
    if order == "hook apply":
        add_hook_to_module(model, hook)
        handle = patched(model)
    else:
        handle = patched(model)
        add_hook_to_module(model, hook)
    assert_prunes(model)
    assert hook.forwards == 5  # one plain forward, four in generate
    if unhook_first:
        remove_hook_from_module(model)
        assert_prunes(model)
        handle.remove()
        assert_as_it_was(model)
        assert hook.forwards == 5
    else:
        handle.remove()
        assert_as_it_was(model)
        assert hook.forwards == 10
        remove_hook_from_module(model)
        assert_as_it_was(model)


def test_a_wrapper_of_ours_reaches_the_hook_below_when_ours_is_gone(
    model: LlavaForConditionalGeneration,
) -> None:
    hook = Counting()
    add_hook_to_module(model, hook)
    handle = patched(model)
    ours = model.forward
    model.forward = functools.wraps(ours)(lambda *args, **kwargs: ours(*args, **kwargs))
    handle.remove()
    assert_prunes(model, pruned=False)
    assert hook.forwards == 5
    with patched(model):
        assert_prunes(model)
    assert hook.forwards == 10
    del model.forward
    assert_prunes(model, pruned=False)


def test_a_hook_is_removed_from_a_copy(model: LlavaForConditionalGeneration) -> None:
    handle = patched(model)
    add_hook_to_module(model, Counting())
    twin = copy.deepcopy(model)
    remove_hook_from_module(twin)
    assert "forward" not in vars(twin)
    assert_prunes(twin)
    remove_clasp(twin)
    assert_as_it_was(twin)
    handle.remove()


@pytest.mark.parametrize("wrapped", [True, False])
def test_the_original_put_back_over_ours(
    model: LlavaForConditionalGeneration, wrapped: bool
) -> None:
    """Code that saved the forward before ``apply_clasp`` may set it again to clean up."""
    original = model.forward
    if wrapped:
        bound = model.forward
        original = functools.wraps(bound)(lambda *args, **kwargs: bound(*args, **kwargs))
        model.forward = original
    handle = patched(model)
    model.forward = original
    assert_prunes(model)
    handle.remove()
    assert_as_it_was(model)
    assert vars(model).get("forward") is (original if wrapped else None)


@pytest.mark.parametrize("shows_arguments", [True, False])
def test_a_forward_that_does_not_lead_to_ours(
    model: LlavaForConditionalGeneration, shows_arguments: bool
) -> None:
    handle = patched(model)
    ours, other = model.forward, tiny_llava()

    def elsewhere(*args: Any, **kwargs: Any) -> Any:
        kwargs.pop("clasp_generation", None)
        return other(*args, **kwargs)

    model.forward = functools.wraps(ours)(elsewhere) if shows_arguments else elsewhere
    for new_tokens in (1, 3):
        with pytest.raises(RuntimeError, match="forward was replaced after apply_clasp by one"):
            model.generate(**PROMPT, **CATEGORY, max_new_tokens=new_tokens)
    handle.remove()
    del model.forward
    assert_as_it_was(model)


def test_methods_bound_by_hand(model: LlavaForConditionalGeneration) -> None:
    handle = patched(model)
    for name in ("forward", "generate", "prepare_inputs_for_generation"):
        setattr(model, name, types.MethodType(getattr(model, name).__func__, model))
    assert_prunes(model)
    handle.remove()
    assert_as_it_was(model)


def with_another_head(model: Any) -> Any:
    torch.manual_seed(5)
    model._modules = dict(model._modules)
    model._modules["lm_head"] = torch.nn.Linear(32, 64, bias=False)
    return model


@pytest.mark.parametrize("twin_of", [lambda m: m._replicate_for_data_parallel(), copy.copy])
def test_shallow_copies_run_on_their_own_parts(
    model: LlavaForConditionalGeneration, twin_of: Any
) -> None:
    handle = patched(model)
    twin = with_another_head(twin_of(model))
    reference = with_another_head(tiny_llava())
    with patched(reference):
        wanted = reference(**PROMPT, **CATEGORY).logits
    assert torch.equal(twin(**PROMPT, **CATEGORY).logits, wanted)
    assert_prunes(model)
    unpatched = copy.copy(model)
    remove_clasp(unpatched)
    with pytest.raises(RuntimeError, match=r"pixels were passed to LlavaModel\.forward directly"):
        unpatched(**PROMPT)  # it shares its inner model with the patched model
    assert_prunes(model)
    handle.remove()
    for released in (model, unpatched):
        assert_as_it_was(released)
    assert torch.equal(twin(**PROMPT).logits, reference(**PROMPT).logits)


def test_a_functional_call(model: LlavaForConditionalGeneration) -> None:
    doubled = {"lm_head.weight": 2 * model.lm_head.weight}
    with patched(model):
        arguments = {**PROMPT, **CATEGORY}
        out = torch.func.functional_call(model, doubled, args=(), kwargs=arguments)
    assert torch.equal(out.logits, 2 * expected(True)[0])


@pytest.mark.parametrize("patch_first", [True, False])
def test_lora(model: LlavaForConditionalGeneration, patch_first: bool) -> None:
    from peft import LoraConfig, get_peft_model

    handle = patched(model) if patch_first else None
    config = LoraConfig(target_modules=r".*language_model.*(q_proj|v_proj)", task_type="CAUSAL_LM")
    adapted = get_peft_model(model, config)
    handle = handle or patched(adapted.get_base_model())
    assert_prunes(adapted)
    with torch.enable_grad():
        labels = PROMPT["input_ids"].masked_fill(PROMPT["input_ids"] == 60, -100)
        adapted(**PROMPT, **CATEGORY, labels=labels).loss.backward()
    gradients = [p.grad for name, p in adapted.named_parameters() if "lora_B" in name]
    assert all(gradient is not None and gradient.abs().sum() > 0 for gradient in gradients)
    merged = adapted.merge_and_unload()
    assert_prunes(merged)
    handle.remove()
    assert_as_it_was(merged)


def test_quantised_weights() -> None:
    torchao = pytest.importorskip("torchao.quantization", exc_type=ImportError)
    model = tiny_llava()
    torchao.quantize_(model.model.language_model, torchao.Int8WeightOnlyConfig())
    logits = model(**PROMPT).logits
    assert not torch.equal(logits, expected(False)[0])
    with apply_clasp(model, budget=36, profile=tiny_profile(), fuse_into="selection"):
        assert torch.equal(model(**PROMPT, **CATEGORY).logits, logits)
    with patched(model):
        assert model.generate(**PROMPT, **CATEGORY, max_new_tokens=4).shape == (2, 45)
    assert torch.equal(model(**PROMPT).logits, logits)


@pytest.mark.parametrize("classes", [None, ["CLIPEncoderLayer", "LlamaDecoderLayer"]])
def test_weights_that_are_only_there_while_their_module_runs(
    model: LlavaForConditionalGeneration, classes: list[str] | None
) -> None:
    cpu_offload(model, "cpu", preload_module_classes=classes)
    handle = patched(model)
    assert_prunes(model)
    handle.remove()
    assert_prunes(model, pruned=False)


@pytest.fixture
def process_group(tmp_path: Path) -> Iterator[None]:
    """Initialise a process group with this process only."""
    torch.distributed.init_process_group(
        "gloo", init_method=f"file://{tmp_path / 'store'}", rank=0, world_size=1
    )
    yield
    torch.distributed.destroy_process_group()


def blocks(model: Any) -> list[torch.nn.Module]:
    return [*model.model.language_model.layers, *model.model.vision_tower.encoder.layers]


@pytest.mark.usefixtures("process_group")
def test_distributed_data_parallel(model: LlavaForConditionalGeneration) -> None:
    handle = patched(model)
    wrapper = torch.nn.parallel.DistributedDataParallel(model)
    assert torch.equal(wrapper(**PROMPT, **CATEGORY).logits, expected(True)[0])
    handle.remove()
    assert torch.equal(wrapper(**PROMPT).logits, expected(False)[0])


@pytest.mark.usefixtures("process_group")
def test_sharded_by_fsdp_1(model: LlavaForConditionalGeneration) -> None:
    handle = patched(model)
    wrapper = FullyShardedDataParallel(
        model,
        device_id=torch.device("cpu"),
        auto_wrap_policy=ModuleWrapPolicy({type(block) for block in blocks(model)}),
    )
    assert torch.equal(wrapper(**PROMPT, **CATEGORY).logits, expected(True)[0])
    handle.remove()
    assert torch.equal(wrapper(**PROMPT).logits, expected(False)[0])


@pytest.mark.usefixtures("process_group")
@pytest.mark.parametrize("patch_first", [True, False])
def test_sharded_by_fsdp_2(model: LlavaForConditionalGeneration, patch_first: bool) -> None:
    handle = patched(model) if patch_first else None
    for block in (*blocks(model), model):
        fully_shard(block)
    handle = handle or patched(model)
    for _ in range(2):
        assert_prunes(model)
        patches = MethodPatches.of(model)
        assert patches is not None
        with patches.lifted():
            assert_prunes(model, pruned=False)
        assert isinstance(model, FSDPModule)
        assert_prunes(model)
        handle.remove()
        assert_prunes(model, pruned=False)
        handle = patched(model)  # if we patched first, our class is still below FSDP's


@pytest.mark.usefixtures("process_group")
def test_tensor_parallel(model: LlavaForConditionalGeneration) -> None:
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.tensor.parallel import (
        ColwiseParallel,
        RowwiseParallel,
        parallelize_module,
    )

    mesh = init_device_mesh("cpu", (1,))
    plan = {"up_proj": ColwiseParallel(), "gate_proj": ColwiseParallel()}
    for layer in model.model.language_model.layers:
        parallelize_module(layer.mlp, mesh, {**plan, "down_proj": RowwiseParallel()})
    with patched(model):
        assert_prunes(model, atol=1e-5)


def test_images_past_the_patched_forward(model: LlavaForConditionalGeneration) -> None:
    """Some trainers replace forward by one that calls the inner model and the head."""
    handle = patched(model)
    for call in (
        lambda: model.model(**PROMPT),
        lambda: model.base_model(PROMPT["input_ids"], PROMPT["pixel_values"]),
    ):
        with pytest.raises(
            RuntimeError, match=r"pixels were passed to LlavaModel\.forward directly"
        ):
            call()
    text = prompts([1, 2, 3])
    assert torch.isfinite(model.model(**text).last_hidden_state).all()
    handle.remove()
    assert model.model(**PROMPT).last_hidden_state.shape[1] == 41


def patched_and_offloaded(model: Any, whole: str, patch_first: bool) -> ClaspHandle:
    """Offload the model with hooks that load class ``whole`` at once, before or after patching."""
    handle = patched(model) if patch_first else None
    cpu_offload(model, "cpu", preload_module_classes=[whole])
    return handle or patched(model)


@pytest.mark.parametrize("patch_first", [True, False])
def test_a_hook_that_brings_in_the_whole_model(
    model: LlavaForConditionalGeneration, patch_first: bool
) -> None:
    handle = patched_and_offloaded(model, "LlavaForConditionalGeneration", patch_first)
    assert torch.equal(model(**PROMPT, **CATEGORY).logits, expected(True)[0])
    handle.remove()
    assert torch.equal(model(**PROMPT).logits, expected(False)[0])


@pytest.mark.parametrize("patch_first", [True, False])
def test_a_hook_that_brings_in_what_we_reach_past(
    model: LlavaForConditionalGeneration, patch_first: bool
) -> None:
    handle = patched_and_offloaded(model, "LlavaModel", patch_first)
    with pytest.raises(RuntimeError, match=r"are on the meta device, .* offload \w+ separately"):
        model(**PROMPT, **CATEGORY)
    handle.remove()
    assert torch.equal(model(**PROMPT).logits, expected(False)[0])


def test_what_cannot_be_traced_whole(model: LlavaForConditionalGeneration) -> None:
    patched(model)

    class Logits(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.model = model

        def forward(self, ids: torch.Tensor, pixels: torch.Tensor) -> torch.Tensor:
            return self.model(input_ids=ids, pixel_values=pixels, categories="ocr").logits

    inputs = (PROMPT["input_ids"], PROMPT["pixel_values"])
    with pytest.raises(RuntimeError, match="cannot be traced or exported as a whole"):
        torch.jit.trace(Logits(), inputs)
    with pytest.raises(RuntimeError, match="cannot be traced or exported as a whole"):
        torch.export.export(Logits(), inputs, strict=False)


def test_continuous_batching_of_text() -> None:
    model = LlavaForConditionalGeneration.from_pretrained(tiny_vlm_path()).eval()
    config = GenerationConfig(max_new_tokens=3, do_sample=False, eos_token_id=-1, pad_token_id=0)
    # By default the cache would take all free memory.
    small = ContinuousBatchingConfig(num_blocks=16, max_batch_tokens=16)

    def answers() -> list[Any]:
        out = model.generate_batch(
            [[1, 4, 5, 6]],
            generation_config=config,
            continuous_batching_config=small,
            progress_bar=False,
        )
        return [answer.generated_tokens for answer in out.values()]

    expected = answers()
    with apply_clasp(model):
        assert answers() == expected
    assert len(expected[0]) == 3


def test_verifying_a_model_whose_forward_was_wrapped(model: LlavaForConditionalGeneration) -> None:
    handle = patched(model)
    ours = model.forward
    model.forward = functools.wraps(ours)(lambda *args, **kwargs: ours(*args, **kwargs))
    patches = MethodPatches.of(model)
    assert patches is not None
    for _ in range(2):
        with patches.lifted():
            assert_prunes(model, pruned=False)
        assert_prunes(model)
    handle.remove()
    assert_prunes(model, pruned=False)


def test_activations_that_are_computed_again(model: LlavaForConditionalGeneration) -> None:
    """FSDP users wrap blocks so. The recomputation extends a cache that is pruned by then."""
    from torch.distributed.algorithms._checkpoint.checkpoint_wrapper import (
        apply_activation_checkpointing,
    )

    handle = patched(model)
    layers = type(model.model.language_model.layers[0])
    prompt = {**prompts([1, "image", 5, 6]), "pixel_values": images(1), **CATEGORY}
    labels = prompt["input_ids"].masked_fill(prompt["input_ids"] == 60, -100)
    model.model.vision_tower.requires_grad_(False)
    with torch.enable_grad():
        model(**prompt, labels=labels).loss.backward()
        wanted = model.lm_head.weight.grad.clone()
        model.zero_grad()
        apply_activation_checkpointing(model, check_fn=lambda part: isinstance(part, layers))
        model(**prompt, labels=labels).loss.backward()
    torch.testing.assert_close(model.lm_head.weight.grad, wanted)
    handle.remove()


def test_a_forward_of_text_compiles_and_exports(model: LlavaForConditionalGeneration) -> None:
    text = prompts([1, 2, 3])["input_ids"]
    with patched(model):
        expected = model(input_ids=text, use_cache=False).logits
        whole = torch.compile(model, backend="eager", fullgraph=True)
        assert torch.equal(whole(input_ids=text, use_cache=False).logits, expected)


def test_a_model_inside_that_was_compiled_before(model: LlavaForConditionalGeneration) -> None:
    model.model = torch.compile(model.model, backend="eager")
    handle = patched(model)
    torch.testing.assert_close(model(**PROMPT, **CATEGORY).logits, expected(True)[0])
    with pytest.raises(RuntimeError, match=r"pixels were passed to LlavaModel\.forward directly"):
        model.model(**PROMPT)
    handle.remove()
    torch.testing.assert_close(model(**PROMPT).logits, expected(False)[0])
