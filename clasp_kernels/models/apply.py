"""``apply_clasp``: check everything, then patch one model instance."""

from __future__ import annotations

from numbers import Integral, Real
from pathlib import Path
from typing import Any

import torch

from clasp_kernels.models.categories import PromptCategories, tokenizer_on_disk
from clasp_kernels.models.compat import require_transformers
from clasp_kernels.models.families import ADAPTERS
from clasp_kernels.models.handle import ClaspHandle
from clasp_kernels.models.patching import MethodPatches
from clasp_kernels.models.prefill import check_dtype
from clasp_kernels.models.runtime import ClaspRuntime
from clasp_kernels.models.selection import TokenSelector, rules_of
from clasp_kernels.policy import Profile, Router, RouterLike, Schedule
from clasp_kernels.rules import Rule, rule_names

_FUSE_INTO = ("projector", "selection")
_POSITIONS = ("original", "compact")
_SALIENCE_ROWS = ("last", "instruction")
_COMPLETION_ON = ("hidden", "fused")
_DEFAULT_BUDGET = 0.25
_PROFILE_FILE = "clasp_profile.json"


def supported_model_types() -> tuple[str, ...]:
    """Return the ``config.model_type`` values that ``apply_clasp`` supports.

    >>> supported_model_types()
    ('llava', ...)
    """
    return tuple(ADAPTERS)


def apply_clasp(
    model: Any,
    *,
    budget: int | float | None = None,
    profile: Profile | None = None,
    router: RouterLike | None = None,
    processor: Any | None = None,
    schedule: Schedule | None = None,
    fuse_into: str | None = None,
    positions: str = "original",
    merge: bool = False,
    salience_rows: str = "last",
    completion_on: str = "hidden",
    rule: str | None = None,
) -> ClaspHandle:
    """Patch a Hugging Face multimodal model so that it keeps ``budget`` visual tokens per image.

    Only this model instance is patched: its class becomes a subclass of the class it had. Weights
    and other models are not touched, and ``handle.remove()`` undoes the patch. A patched model can
    be copied, compiled, wrapped and unwrapped (PEFT, accelerate, DataParallel, DDP, FSDP). It can
    be pickled until its first prefill; after that, the hooks with which transformers records hidden
    states cannot be pickled. ``generate`` is called as before, with greedy search, sampling or
    beams, dynamic or static caches, padded batches and several images per prompt. The ids that it
    returns hold the whole prompt. Each prompt is routed to a category. The category decides how
    vision layers are fused and how the budget is split (CLASP, arXiv 2604.12767).

    Args:
        model: a model whose ``config.model_type`` is among ``supported_model_types()``.
        budget: visual tokens kept per image: an int, or a float in (0, 1] for a fraction. The
            default is 0.25 if there is no ``schedule``. The category's ``budget_scale`` multiplies
            the budget. An image with no more tokens than the budget keeps all of them. A video
            counts as one image, and so do tiles that are adjacent in the prompt. Some processors
            put text between the tiles (Idefics 3, SmolVLM, and Gemma 3 with crops): there each
            tile counts as an image, so use a fraction. Together with a ``schedule``, the budget
            must equal the schedule's average over the decoder layers, within half a token.
        profile: the settings of each category. The default is the ``clasp_profile.json`` in the
            folder the model was loaded from, else the profile bundled for its family.
        router: a callable that takes prompts and returns a category name for each; by default
            ``Router()``.
        processor: the model's processor or tokenizer, which decodes prompts for the router. The
            default is the tokenizer on disk that belongs to the model's weights. If there is none,
            a warning is given once and every prompt is "general". ``generate`` and ``forward`` also
            take ``categories=``, one name or one per prompt, which overrides the router.
        schedule: where tokens are dropped and how many stay: by default before the decoder, or
            between its layers, as in ``Schedule({2: 128, 6: 64, 15: 32})``. Inside the decoder, the
            pivots are the visual tokens that get the most attention from the instruction in the
            layer that has just run. Hidden states, masks and the KV cache of later layers shrink;
            position ids stay.
        fuse_into: "projector" feeds the fused layers to the projector, as in the paper;
            "selection" uses them only to choose tokens. The default is the profile's setting, else
            "projector".
        positions: "original" keeps each token's position id; "compact" renumbers what remains.
        merge: replace each kept token by the mean of itself and the dropped tokens most similar to
            it. Only possible before the decoder, and not with a rule that averages tokens itself.
        salience_rows: the queries whose attention scores tokens inside the decoder: "last" is the
            prompt's last token, "instruction" is every token after the prompt's last image.
        completion_on: the features that compare tokens during completion inside the decoder:
            "hidden" is the hidden states there, "fused" the fused features of the vision tower.
        rule: the name of a selection rule (``clasp_kernels.rules``), at every stage, for every
            category. The default is the rule of each category in the profile, else "clasp". With
            any other rule, the category decides how layers are fused, and not how the budget is
            split. "pool", average pooling, is only possible before the decoder.

    A plain ``forward`` returns logits of the pruned length; ``handle.last.columns`` maps them to
    prompt columns. ``labels``, ``shift_labels`` and token types are pruned too. Any other argument
    with one entry per column is refused. Samples packed into one row (position ids that restart)
    stay separate, or are refused if the decoder cannot keep them separate; they share the row's
    category. If a prompt ends with an image, generation continues from the last kept token.

    A loss computed outside the model from its logits and the unpruned labels (label smoothing) does
    not work. No gradient reaches the vision tower; a warning says so once if its parameters require
    gradients. Each layer of a static cache that ``generate`` creates is as long as needed for the
    tokens kept there; a static cache from the caller keeps its length. The cache object and its
    deep copies record what was dropped; a new cache built from its keys and values does not. If
    layers have a sliding window, prompt and answer together must not exceed the window.

    Raises:
        ValueError, TypeError: an argument is invalid, or the model is already patched.
        ImportError: transformers is not installed, or older than the oldest supported release.
        RuntimeError: transformers has changed in a way that this package does not support.

    If an error is raised, the model is unchanged. A transformers newer than every tested release
    gives one UserWarning.

    >>> from PIL import Image
    >>> from transformers import AutoProcessor, LlavaForConditionalGeneration
    >>> from clasp_kernels.bundled import tiny_vlm_path
    >>> model = LlavaForConditionalGeneration.from_pretrained(tiny_vlm_path())
    >>> processor = AutoProcessor.from_pretrained(tiny_vlm_path())
    >>> prompt = "USER: <image>\\nHow many circles are there? ASSISTANT:"
    >>> inputs = processor(images=Image.new("RGB", (96, 96)), text=prompt, return_tensors="pt")
    >>> with apply_clasp(model, budget=16) as handle:
    ...     ids = model.generate(**inputs, max_new_tokens=4)
    >>> handle.last.categories, handle.last.stages[0].indices.shape
    (('counting',), torch.Size([1, 16]))
    >>> handle.last.prompt_length - handle.last.pruned_length
    128
    """
    require_transformers()
    model_type = supported_type(model)
    if MethodPatches.of(model) is not None:
        raise ValueError(
            "model is patched already; remove() its handle before applying again, or call "
            "remove_clasp(model), which needs no handle and serves copies and loaded models too"
        )
    budget = check_budget(budget)
    if schedule is not None and not isinstance(schedule, Schedule):
        raise TypeError(
            f"schedule must be a clasp_kernels.policy.Schedule, got {type(schedule).__name__}"
        )
    if fuse_into is not None:
        _check_choice("fuse_into", fuse_into, _FUSE_INTO)
    _check_choice("positions", positions, _POSITIONS)
    if not isinstance(merge, bool):
        raise TypeError(f"merge must be True or False, got {merge!r}")
    _check_choice("salience_rows", salience_rows, _SALIENCE_ROWS)
    _check_choice("completion_on", completion_on, _COMPLETION_ON)
    if rule is not None:
        _check_choice("rule", rule, rule_names())
    if profile is None:
        profile = default_profile(getattr(model, "name_or_path", ""), model_type)
    if not isinstance(profile, Profile):
        raise TypeError(
            f"profile must be a clasp_kernels.policy.Profile, got {type(profile).__name__}; "
            f"Profile.load(path) reads one"
        )
    if profile.model_type != model_type:
        raise ValueError(
            f"profile {profile.name!r} is for {profile.model_type!r} models, but this one is "
            f"{model_type!r}"
        )
    if router is None:
        router = Router()
    if not callable(router) or isinstance(router, type):
        raise TypeError(
            f"router must be callable with a list of prompts, such as Router(), got {router!r}"
        )
    tokenizer = _find_tokenizer(processor, model)
    if fuse_into is None:
        fuse_into = profile.fuse_into or "projector"
    rules = rules_of(profile, rule)
    for each in dict.fromkeys(rules.values()):
        if each is not None:
            _check_rule(each, schedule, merge)
    adapter = ADAPTERS[model_type](model, profile, fuse_into)
    check_dtype(model.dtype)
    num_layers = adapter.text_config.num_hidden_layers
    if schedule is None:
        schedule = Schedule.input(_DEFAULT_BUDGET if budget is None else budget)
    else:
        _check_schedule(schedule, budget, adapter.tokens_per_image(), num_layers)
    if positions == "compact" and adapter.position_axes:
        raise ValueError(
            f"positions must be 'original' for {model_type!r} models, whose visual tokens have "
            f"places in two or three dimensions, got 'compact'"
        )
    if any(schedule.layers):
        _check_inside(positions, merge)
    if salience_rows == "instruction" and adapter.sees_prompts_whole:
        raise ValueError(
            f"salience_rows must be 'last' for {model_type!r} models, in which every token of the "
            f"instruction also sees those after it, got 'instruction'"
        )
    selector = TokenSelector(
        adapter,
        profile,
        schedule,
        fuse_into,
        merge,
        salience_rows,
        completion_on,
        rules,
    )
    runtime = ClaspRuntime(
        model,
        selector,
        PromptCategories(profile, router, tokenizer, adapter.token_ids),
        compact_positions=positions == "compact",
    )
    return ClaspHandle(model, runtime, profile)


def remove_clasp(model: Any) -> None:
    """Restore the original methods of a model that ``apply_clasp`` patched, without its handle.

    Use this if the handle is lost or the model never had one: a deep copy of a patched model is
    patched too, and so is a model that was saved whole with ``torch.save`` and loaded again. A
    model without patches is left unchanged.

    Raises:
        TypeError: ``model`` is not a module.
        ValueError: ``model`` only wraps a patched model; the message names the inner model.
        RuntimeError: ``generate`` is running and would continue unpatched.

    >>> import copy
    >>> from transformers import LlavaForConditionalGeneration
    >>> from clasp_kernels.bundled import tiny_vlm_path
    >>> model = LlavaForConditionalGeneration.from_pretrained(tiny_vlm_path())
    >>> with apply_clasp(model, budget=16):
    ...     twin = copy.deepcopy(model)
    >>> remove_clasp(twin)
    """
    if not isinstance(model, torch.nn.Module):
        raise TypeError(f"model must be a torch.nn.Module, got {type(model).__name__}")
    patches = MethodPatches.of(model)
    if patches is not None:
        patches.remove(model)
        return
    for name, module in model.named_modules():
        if MethodPatches.of(module) is not None:
            raise ValueError(
                f"model is a {type(model).__name__} that wraps the patched model; pass the inner "
                f"model: model.get_submodule({name!r})"
            )


def supported_type(model: Any) -> str:
    """Return ``config.model_type``, or raise a ValueError that lists the supported types."""
    model_type = getattr(getattr(model, "config", None), "model_type", None)
    if model_type not in ADAPTERS:
        raise ValueError(
            f"model must have a supported config.model_type, {_names(supported_model_types())}; "
            f"got {model_type!r} ({type(model).__name__})"
        )
    return str(model_type)


def default_profile(name: str, model_type: str) -> Profile:
    """Return the profile in the folder ``name`` of weights, else the one bundled for the family."""
    beside_the_weights = Path(name) / _PROFILE_FILE
    if name and beside_the_weights.is_file():
        return Profile.load(beside_the_weights)
    return Profile.for_model_type(model_type)


def _find_tokenizer(processor: Any | None, model: Any) -> Any | None:
    if processor is None:
        return tokenizer_on_disk(model)
    tokenizer = getattr(processor, "tokenizer", processor)
    if not hasattr(tokenizer, "decode"):
        raise TypeError(
            f"processor must be the model's processor or tokenizer, got {type(processor).__name__}"
        )
    return tokenizer


def _check_choice(name: str, value: object, allowed: tuple[str, ...]) -> None:
    if value not in allowed:
        raise ValueError(f"{name} must be {_names(allowed)}, got {value!r}")


def check_budget(budget: object) -> int | float | None:
    """Check ``budget`` and return it as a Python int or float, or None if it was not given."""
    if budget is None:
        return None
    if isinstance(budget, bool) or not isinstance(budget, Real):
        raise TypeError(
            f"budget must be an int, the visual tokens kept per image, or a float, the fraction "
            f"of them, got {budget!r}"
        )
    budget = int(budget) if isinstance(budget, Integral) else float(budget)
    if isinstance(budget, int) and budget < 1:
        raise ValueError(f"budget must be at least 1 visual token per image, got {budget}")
    if isinstance(budget, float) and not 0.0 < budget <= 1.0:
        raise ValueError(
            f"budget as a float is the fraction of visual tokens kept, above 0 and at most 1, got "
            f"{budget}; for a number of tokens give an int"
        )
    return budget


def _check_schedule(
    schedule: Schedule, budget: int | float | None, num_tokens: int | None, num_layers: int
) -> None:
    """Raise a ValueError if the schedule does not fit the model or contradicts the budget."""
    schedule.check_fits(num_tokens, num_layers)
    if budget is None:
        return
    if num_tokens is None:
        raise ValueError(
            "budget must be left out beside a schedule, as this model's images differ in tokens, "
            "and with them what a schedule keeps on average"
        )
    mean = schedule.average(num_tokens, num_layers)
    wanted = budget * num_tokens if isinstance(budget, float) else min(budget, num_tokens)
    if abs(mean - wanted) > 0.5:
        raise ValueError(
            f"schedule {schedule!r} keeps {mean:.4g} of {num_tokens} visual tokens on average over "
            f"{num_layers} decoder layers, but budget is {budget}; they must agree within half a "
            f"token, or budget may be left out"
        )


def _check_inside(positions: str, merge: bool) -> None:
    """Raise a ValueError for settings that do not work with pruning inside the decoder."""
    if positions != "original":
        raise ValueError(
            f"positions must be 'original' if a schedule drops tokens inside the decoder, because "
            f"earlier layers have used the original position ids, got {positions!r}"
        )
    if merge:
        raise ValueError(
            "merge must be False if a schedule drops tokens inside the decoder: hidden states "
            "there also encode positions, so they cannot be averaged"
        )


def _check_rule(rule: Rule, schedule: Schedule | None, merge: bool) -> None:
    """Raise a ValueError for settings that do not work with a rule."""
    if schedule is not None and any(schedule.layers) and rule.only_before_llm:
        why = "averages tokens, and hidden states inside the decoder also encode positions"
        if not rule.pools:
            why = "uses the places of tokens, which it is only given before the decoder"
        raise ValueError(
            f"schedule must prune only before the decoder, as Schedule({{0: 64}}) does, with "
            f"rule={rule.name!r}, which {why}; got {schedule!r}"
        )
    if merge and rule.pools:
        raise ValueError(
            f"merge must be False with rule={rule.name!r}, which averages tokens itself: every "
            f"token is in a mean already"
        )


def _names(allowed: tuple[object, ...]) -> str:
    return " or ".join(map(repr, allowed))
