"""Models pruned inside the decoder, with tools that wrap, copy, hook and compile layers."""

from __future__ import annotations

import copy
import functools
import gc
import threading
import weakref
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed
from accelerate import cpu_offload, dispatch_model
from accelerate.hooks import ModelHook, add_hook_to_module, remove_hook_from_module
from tiny_llava import IMAGE_TOKEN, images, prompts, saved_and_loaded, tiny_llava, tiny_profile
from torch.distributed.algorithms._checkpoint.checkpoint_wrapper import (
    CheckpointImpl,
    apply_activation_checkpointing,
    checkpoint_wrapper,
)
from torch.distributed.fsdp import FSDPModule, FullyShardedDataParallel, fully_shard
from torch.distributed.fsdp.wrap import ModuleWrapPolicy
from transformers.models.llama.modeling_llama import LlamaDecoderLayer

from clasp_kernels.models import ClaspHandle, apply_clasp, remove_clasp
from clasp_kernels.policy import Schedule

THREE = Schedule({1: 20, 2: 9, 4: 4})
PROMPT = {**prompts([1, 5, "image", 7, 8], [1, "image", 3, 2, 9, 4]), "pixel_values": images(2)}
CATEGORY = {"categories": "ocr"}
GREEDY = {"max_new_tokens": 4, "suppress_tokens": [IMAGE_TOKEN], "do_sample": False}
LABELS = PROMPT["input_ids"].masked_fill(
    (PROMPT["input_ids"] == IMAGE_TOKEN) | (PROMPT["attention_mask"] == 0), -100
)
pytestmark = pytest.mark.deep
before_and_after = pytest.mark.parametrize("patch_first", [True, False])


def unused() -> Any:
    return tiny_llava(decoder_layers=5)


@pytest.fixture
def model() -> Any:
    model = unused()
    model(**PROMPT)  # transformers installs its hooks in the first forward
    return model


def patched(model: Any) -> ClaspHandle:
    return apply_clasp(model, schedule=THREE, profile=tiny_profile())


def layers(model: Any) -> Any:
    return model.model.language_model.layers


@functools.cache
def expected(pruned: bool) -> tuple[torch.Tensor, torch.Tensor]:
    model = unused()
    if pruned:
        patched(model)
    category = CATEGORY if pruned else {}
    return model(**PROMPT, **category).logits, model.generate(**PROMPT, **category, **GREEDY)


def assert_prunes(model: Any, pruned: bool = True, atol: float = 0.0) -> None:
    logits, ids = expected(pruned)
    category = CATEGORY if pruned else {}
    given = model(**PROMPT, **category).logits
    torch.testing.assert_close(given, logits, atol=atol, rtol=0.0)
    assert torch.equal(model.generate(**PROMPT, **category, **GREEDY), ids)


def everything_in(model: Any) -> list[tuple[type, dict[str, Any]]]:
    return [
        (type(m), {k: dict(v) if k.endswith("hooks") else v for k, v in vars(m).items()})
        for m in model.modules()
    ]


def gradients(model: Any) -> dict[str, torch.Tensor]:
    model.model.vision_tower.requires_grad_(False)
    with torch.enable_grad():
        model(**PROMPT, **CATEGORY, labels=LABELS, use_cache=False).loss.backward()
    return {
        name.replace("_checkpoint_wrapped_module.", ""): parameter.grad
        for name, parameter in model.named_parameters()
        if parameter.grad is not None
    }


class Counting(ModelHook):
    def __init__(self) -> None:
        self.forwards = 0

    def pre_forward(self, module: Any, *args: Any, **kwargs: Any) -> Any:
        self.forwards += 1
        return args, kwargs


@before_and_after
@pytest.mark.parametrize("unhook_first", [True, False])
@pytest.mark.parametrize("which", [(0,), (1,), (3,), (0, 1, 2, 3, 4)])
def test_device_hooks_on_layers(
    model: Any, patch_first: bool, unhook_first: bool, which: tuple[int, ...]
) -> None:
    before, hook = everything_in(model), Counting()
    handle = patched(model) if patch_first else None
    for index in which:
        add_hook_to_module(layers(model)[index], hook)
    handle = handle or patched(model)
    assert_prunes(model)
    assert hook.forwards == 5 * len(which)
    if not unhook_first:
        handle.remove()
        assert_prunes(model, pruned=False)
        assert hook.forwards == 10 * len(which)
    for index in which:
        remove_hook_from_module(layers(model)[index])
    if unhook_first:
        assert_prunes(model)
        handle.remove()
        assert everything_in(model) == before
    assert_prunes(model, pruned=False)


@before_and_after
@pytest.mark.parametrize("classes", [None, ["LlamaDecoderLayer"], ["LlamaAttention"]])
def test_offloaded_layers(model: Any, patch_first: bool, classes: list[str] | None) -> None:
    handle = patched(model) if patch_first else None
    cpu_offload(model, "cpu", preload_module_classes=classes)
    handle = handle or patched(model)
    assert_prunes(model)
    handle.remove()
    assert_prunes(model, pruned=False)


@before_and_after
def test_a_device_map_of_layers(model: Any, patch_first: bool, tmp_path: Path) -> None:
    handle = patched(model) if patch_first else None
    inner = ("vision_tower", "multi_modal_projector")
    text = ("embed_tokens", "norm", "rotary_emb")
    devices = {f"model.{name}": "cpu" for name in inner} | {"lm_head": "cpu"}
    devices |= {f"model.language_model.{name}": "cpu" for name in text}
    for index in range(5):
        devices[f"model.language_model.layers.{index}"] = ("cpu", "disk")[index % 2]
    dispatch_model(model, devices, main_device="cpu", offload_dir=tmp_path, force_hooks=True)
    handle = handle or patched(model)
    assert_prunes(model)
    handle.remove()
    assert_prunes(model, pruned=False)


@before_and_after
def test_a_forward_of_their_own_on_every_layer(model: Any, patch_first: bool) -> None:
    before = everything_in(model)
    handle = patched(model) if patch_first else None
    for layer in layers(model):
        own = layer.forward
        layer.forward = lambda *args, _own=own, **kwargs: _own(*args, **kwargs)
    handle = handle or patched(model)
    assert_prunes(model)
    handle.remove()
    assert_prunes(model, pruned=False)
    for layer in layers(model):
        del layer.forward
    assert everything_in(model) == before


@before_and_after
def test_hooks_of_layers_see_what_comes_and_goes(model: Any, patch_first: bool) -> None:
    before, seen = everything_in(model), []

    def named(layer: Any, args: Any, kwargs: Any) -> Any:
        return (), {**kwargs, "hidden_states": args[0]}

    def look(layer: Any, args: Any, kwargs: Any, output: torch.Tensor) -> None:
        seen.append((kwargs["hidden_states"].shape[1], output.shape[1]))

    handle = patched(model) if patch_first else None
    hooks = [x.register_forward_pre_hook(named, with_kwargs=True) for x in layers(model)]
    hooks += [x.register_forward_hook(look, with_kwargs=True) for x in layers(model)]
    handle = handle or patched(model)
    assert_prunes(model)
    assert seen[:5] == [(41, 41), (41, 25), (25, 14), (14, 14), (14, 9)]
    handle.remove()
    for hook in hooks:
        hook.remove()
    assert everything_in(model) == before


@before_and_after
def test_a_hook_that_steers(model: Any, patch_first: bool) -> None:
    logits = []
    for first in (True, False):
        twin = copy.deepcopy(model)
        if first == patch_first:
            patched(twin)
        layers(twin)[2].register_forward_hook(lambda layer, args, output: output + 0.1)
        if first != patch_first:
            patched(twin)
        logits.append(twin(**PROMPT, **CATEGORY).logits)
    assert torch.equal(*logits)
    assert not torch.equal(logits[0], expected(True)[0])


def test_an_error_in_a_layer_leaves_nothing_behind(model: Any) -> None:
    handle = patched(model)
    hook = layers(model)[3].register_forward_pre_hook(lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        model(**PROMPT, **CATEGORY)
    hook.remove()
    assert_prunes(model)
    handle.remove()
    assert_prunes(model, pruned=False)


@pytest.fixture
def process_group(tmp_path: Path) -> Iterator[None]:
    torch.distributed.init_process_group(
        "gloo", init_method=f"file://{tmp_path / 'store'}", rank=0, world_size=1
    )
    yield
    torch.distributed.destroy_process_group()


@pytest.mark.usefixtures("process_group")
@before_and_after
@pytest.mark.parametrize("root", [True, False])
def test_layers_sharded_by_fsdp_2(model: Any, patch_first: bool, root: bool) -> None:
    handle = patched(model) if patch_first else None
    for module in (*layers(model), *([model] if root else [])):
        fully_shard(module)
    handle = handle or patched(model)
    for _ in range(2):
        assert_prunes(model)
        handle.remove()
        assert_prunes(model, pruned=False)
        assert all(isinstance(layer, FSDPModule) for layer in layers(model))
        handle = patched(model)


@pytest.mark.usefixtures("process_group")
def test_layers_sharded_by_fsdp_1(model: Any) -> None:
    handle = patched(model)
    wrapper = FullyShardedDataParallel(
        model,
        device_id=torch.device("cpu"),
        auto_wrap_policy=ModuleWrapPolicy({LlamaDecoderLayer}),
    )
    assert isinstance(layers(model)[1], FullyShardedDataParallel)
    assert torch.equal(wrapper(**PROMPT, **CATEGORY).logits, expected(True)[0])
    handle.remove()
    assert torch.equal(wrapper(**PROMPT).logits, expected(False)[0])


@pytest.mark.usefixtures("process_group")
@before_and_after
def test_distributed_data_parallel(model: Any, patch_first: bool) -> None:
    model.model.vision_tower.requires_grad_(False)
    handle = patched(model) if patch_first else None
    wrapper = torch.nn.parallel.DistributedDataParallel(model)
    handle = handle or patched(model)
    assert torch.equal(wrapper(**PROMPT, **CATEGORY).logits, expected(True)[0])
    with torch.enable_grad():
        for _ in range(2):
            wrapper(**PROMPT, **CATEGORY, labels=LABELS).loss.backward()
    handle.remove()
    assert torch.equal(wrapper(**PROMPT).logits, expected(False)[0])


@pytest.mark.usefixtures("process_group")
@before_and_after
def test_tensor_parallel_layers(model: Any, patch_first: bool) -> None:
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.tensor.parallel import (
        ColwiseParallel,
        RowwiseParallel,
        parallelize_module,
    )

    handle = patched(model) if patch_first else None
    mesh = init_device_mesh("cpu", (1,))
    columns = ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj", "mlp.up_proj")
    rows = ("self_attn.o_proj", "mlp.down_proj")
    for layer in layers(model):
        plan = {name: ColwiseParallel() for name in (*columns, "mlp.gate_proj")}
        parallelize_module(layer, mesh, {**plan, **{name: RowwiseParallel() for name in rows}})
    handle = handle or patched(model)
    assert_prunes(model, atol=1e-5)
    handle.remove()
    assert_prunes(model, pruned=False, atol=1e-5)


@pytest.mark.parametrize("kind", list(CheckpointImpl))
def test_layers_in_checkpoint_wrappers(model: Any, kind: CheckpointImpl) -> None:
    reference = copy.deepcopy(model)
    patched(reference)
    handle = patched(model)
    apply_activation_checkpointing(
        model,
        checkpoint_wrapper_fn=functools.partial(checkpoint_wrapper, checkpoint_impl=kind),
        check_fn=lambda part: isinstance(part, LlamaDecoderLayer),
    )
    assert_prunes(model)
    wanted, found = gradients(reference), gradients(model)
    assert found.keys() == wanted.keys()
    for name, gradient in wanted.items():
        torch.testing.assert_close(found[name], gradient, msg=name)
    handle.remove()
    assert_prunes(model, pruned=False)


def layers_by_method(model: Any) -> None:
    for layer in layers(model):
        layer.compile(backend="eager")


def layers_replaced(model: Any) -> None:
    for index, layer in enumerate(layers(model)):
        layers(model)[index] = torch.compile(layer, backend="eager")


def decoder_replaced(model: Any) -> None:
    model.model.language_model = torch.compile(model.model.language_model, backend="eager")


def decoder_by_method(model: Any) -> None:
    model.model.language_model.compile(backend="eager")


@pytest.mark.parametrize(
    ("compiles", "patch_first"),
    [
        (layers_by_method, True),
        (layers_replaced, False),
        (decoder_replaced, True),
        (decoder_by_method, False),
    ],
)
def test_compiled_layers_and_decoders(model: Any, compiles: Any, patch_first: bool) -> None:
    torch._dynamo.reset()
    handle = patched(model) if patch_first else None
    compiles(model)
    handle = handle or patched(model)
    assert_prunes(model, atol=1e-4)
    handle.remove()
    torch.testing.assert_close(model(**PROMPT).logits, expected(False)[0], atol=1e-4, rtol=0)


@before_and_after
@pytest.mark.parametrize("extra", [{}, {"use_dora": True}])
def test_lora_on_a_layer_that_is_listened_to(
    model: Any, patch_first: bool, extra: dict[str, Any]
) -> None:
    from peft import LoraConfig, get_peft_model

    before = [type(module) for module in model.modules()]
    handle = patched(model) if patch_first else None
    config = LoraConfig(
        target_modules=r".*language_model.*(q_proj|k_proj|down_proj)|lm_head",
        task_type="CAUSAL_LM",
        **extra,
    )
    adapted = get_peft_model(model, config)
    handle = handle or patched(adapted.get_base_model())
    assert_prunes(adapted, atol=1e-4)
    for name, parameter in adapted.named_parameters():
        if "lora_B" in name:
            parameter.fill_(0.05)
    changed = adapted(**PROMPT, **CATEGORY).logits
    merged = adapted.merge_and_unload()
    torch.testing.assert_close(merged(**PROMPT, **CATEGORY).logits, changed, atol=1e-4, rtol=1e-3)
    fresh = unused()
    fresh.load_state_dict(merged.state_dict())
    handle.remove()
    assert torch.equal(merged(**PROMPT).logits, fresh(**PROMPT).logits)
    assert [type(module) for module in merged.modules()] == before


@before_and_after
def test_attention_that_is_changed_and_changed_back(model: Any, patch_first: bool) -> None:
    eager = unused()
    eager.set_attn_implementation("eager")
    patched(eager)
    handle = patched(model) if patch_first else None
    model.set_attn_implementation("eager")
    handle = handle or patched(model)
    wanted = eager(**PROMPT, **CATEGORY).logits
    assert torch.equal(model(**PROMPT, **CATEGORY).logits, wanted)
    model.set_attn_implementation("sdpa")
    assert_prunes(model)
    handle.remove()
    assert_prunes(model, pruned=False)


def test_a_functional_call_reaches_a_layer_that_is_listened_to(model: Any) -> None:
    name = "model.language_model.layers.1.self_attn.q_proj.weight"
    tripled = {name: 3 * model.get_parameter(name)}
    reference = copy.deepcopy(model)
    reference.get_parameter(name).mul_(3)
    for each in (model, reference):
        patched(each)
    out = torch.func.functional_call(model, tripled, args=(), kwargs={**PROMPT, **CATEGORY})
    assert torch.equal(out.logits, reference(**PROMPT, **CATEGORY).logits)


def test_copies_of_copies() -> None:
    model = unused()  # a model that ran has hooks that cannot be pickled
    handle = patched(model)
    twins = [saved_and_loaded(model), copy.deepcopy(model)]
    twins += [copy.deepcopy(twin) for twin in twins]
    handle.remove()
    for twin in twins:
        assert_prunes(twin)
        remove_clasp(twin)
        assert_prunes(twin, pruned=False)
        assert all(type(layer) is LlamaDecoderLayer for layer in layers(twin))
        assert len({id(layer.self_attn.config) for layer in layers(twin)}) == 1


def test_replicas_in_threads(model: Any) -> None:
    handle = patched(model)

    def replicate(module: Any) -> Any:
        replica = module._replicate_for_data_parallel()
        for name, parameter in module._parameters.items():
            setattr(replica, name, None if parameter is None else parameter.detach())
        for name, child in module._modules.items():
            replica._modules[name] = None if child is None else replicate(child)
        return replica

    found: list[torch.Tensor] = []

    def call(replica: Any) -> None:
        with torch.no_grad():
            found.append(replica(**PROMPT, **CATEGORY).logits)

    threads = [threading.Thread(target=call, args=(replicate(model),)) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(found) == 2
    assert all(torch.equal(logits, expected(True)[0]) for logits in found)
    handle.remove()
    assert_prunes(model, pruned=False)


def test_applying_again_and_again_leaves_nothing() -> None:
    model = unused()
    before = everything_in(model)
    patched(model).remove()
    gc.collect()
    classes = len(LlamaDecoderLayer.__subclasses__())
    for _ in range(50):
        patched(model).remove()
    gc.collect()
    assert everything_in(model) == before
    assert len(LlamaDecoderLayer.__subclasses__()) <= classes


@pytest.mark.usefixtures("no_collector")
@pytest.mark.parametrize("used", [False, True])
def test_layers_are_freed_with_the_model(used: bool) -> None:
    model = unused()
    alive = [weakref.ref(layer) for layer in layers(model)]
    alive += [weakref.ref(layer.self_attn) for layer in layers(model)]
    handle = patched(model)
    if used:
        model(**PROMPT, **CATEGORY)
    del model, handle
    assert all(reference() is None for reference in alive)


def test_a_decoder_that_an_unpatched_model_shares(model: Any) -> None:
    other = unused()
    other.model.language_model = model.model.language_model
    handle = patched(model)
    assert_prunes(other, pruned=False)
    assert_prunes(model)
    handle.remove()
    assert_prunes(other, pruned=False)


@pytest.mark.parametrize("number", [2, 3, 4])
def test_layers_taken_away_are_told(model: Any, number: int) -> None:
    handle = patched(model)
    every = layers(model)
    model.model.language_model.layers = every[:number]
    with pytest.raises(RuntimeError, match="decoder layers, of which"):
        model(**PROMPT, **CATEGORY)
    handle.remove()
    model.model.language_model.layers = every
    assert_prunes(model, pruned=False)
    assert all(type(layer) is LlamaDecoderLayer for layer in every)
