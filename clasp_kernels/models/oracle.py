"""The masking oracle: compare a pruned model with the unpatched model and a mask.

Dropping a token has the same effect as keeping it and masking it as a key in every later layer. So
the unpatched model, run on the whole prompt with the dropped columns masked layer by layer, must
give the same logits as the pruned model: for every remaining token, and for every decode step from
the pruned cache. The oracle only knows which columns were kept at each stage.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from itertools import pairwise
from typing import Any, NamedTuple

import torch

from clasp_kernels.models.apply import apply_clasp
from clasp_kernels.models.compat import (
    decoder_layers,
    layer_masks,
    output_cache,
    recurrent_kinds,
)
from clasp_kernels.models.decoder import refusal
from clasp_kernels.models.handle import ClaspHandle
from clasp_kernels.models.records import PrefillRecord
from clasp_kernels.models.specimens import SPECIMENS
from clasp_kernels.policy import CategoryPolicy, Profile, Schedule

# Largest accepted difference between logits.
_TOLERANCE = {torch.float32: 1e-4, torch.bfloat16: 5e-2, torch.float16: 1e-2}
_SALIENCE_TOLERANCE = 1e-6
_BUDGET = 0.25
_BY_COLUMN = ("input_ids", "attention_mask", "mm_token_type_ids", "token_type_ids")
_STEPS = 3


class Comparison(NamedTuple):
    """How far a pruned model is from the oracle."""

    difference: float
    tolerance: float
    """The largest accepted difference."""
    control: float
    """The difference from an oracle that masks other tokens than were dropped."""


@dataclass(frozen=True)
class Task:
    """Prompts, and what a pruned model does with them."""

    name: str
    rows: tuple[tuple[int, ...], ...]
    """For each prompt, the number of words before, between and after its images."""
    run: Callable[[Any, ClaspHandle, dict[str, torch.Tensor]], _Answer]
    schedule: Callable[[int], Schedule] = lambda num_layers: Schedule.input(_BUDGET)
    """Called with the number of decoder layers."""

    def fits(self, model: Any) -> bool:
        """Return False if the task prunes inside the decoder and the model does not support it."""
        config = model.config.get_text_config()
        return not refusal(config) or not any(self.schedule(config.num_hidden_layers).layers)


@dataclass(frozen=True)
class _Answer:
    """The output of the pruned model."""

    ids: torch.Tensor
    """[rows, columns]: the prompt and the generated tokens."""
    logits: Sequence[tuple[int, int, torch.Tensor]]
    """(row, column, logits) of every compared token."""


@dataclass(frozen=True)
class Prompts:
    """Prompts, and what the unpatched model makes of them."""

    batch: dict[str, torch.Tensor]
    tokens: list[int]
    """The number of visual tokens of each image."""
    logits: torch.Tensor


def make_prompts(family: str, model: Any, rows: tuple[tuple[int, ...], ...]) -> Prompts:
    batch = _batch(family, model, rows)
    return Prompts(batch, _tokens(model, batch), model(**batch).logits)


def compare_logits(
    family: str,
    build: Callable[[], Any],
    task: Task,
    relative: bool,
    prompts_for: Callable[[str, Any, tuple[tuple[int, ...], ...]], Prompts] = make_prompts,
) -> Comparison:
    """Run a task on the pruned model, then the oracle on the same model without the patches.

    With ``relative``, the tolerance is multiplied by the largest logit if that is above 1. Tasks on
    the same model can share their prompts, with a cached ``prompts_for``.

    Raises:
        AssertionError: the number of kept tokens is wrong, or ``remove()`` did not restore the
            model's own logits. Errors of the model itself pass through.
    """
    model = build()
    prompts = prompts_for(family, model, task.rows)
    batch = prompts.batch
    profile = _profile(family)
    schedule = task.schedule(model.config.get_text_config().num_hidden_layers)
    with apply_clasp(model, schedule=schedule, profile=profile, fuse_into="selection") as handle:
        answer = task.run(model, handle, batch)
        record = handle.last
    if record is None:
        raise AssertionError("the images were not pruned")
    if not torch.equal(model(**batch).logits, prompts.logits):
        raise AssertionError("remove() did not bring the model's own logits back")
    _check_counts(record, schedule, profile, batch, prompts.tokens)

    kept = _kept(record, batch)
    is_image = (batch["input_ids"] == model.config.image_token_id).cpu()
    expected = _oracle(model, batch, answer.ids, kept)
    tolerance = _TOLERANCE[model.dtype]
    if relative:
        largest = max(float(expected[row, at].abs().max()) for row, at, _ in answer.logits)
        tolerance *= max(1.0, largest)
    last = max(kept)
    exchanged = {**kept, last: _exchanged(kept[last], is_image, model.dtype)}
    other = _oracle(model, batch, answer.ids, exchanged)
    return Comparison(
        _largest_difference(answer, expected),
        tolerance,
        _largest_difference(answer, other),
    )


def _check_counts(
    record: PrefillRecord,
    schedule: Schedule,
    profile: Profile,
    batch: dict[str, torch.Tensor],
    tokens: Sequence[int],
) -> None:
    """Check that each image kept as many tokens as the schedule says.

    ``tokens`` has the number of visual tokens of each image.
    """
    content = int(batch["attention_mask"].sum())
    if [stage.layer or 0 for stage in record.stages] != list(schedule.layers):
        raise AssertionError(f"{schedule} has other stages than {record.stages}")
    names = [
        name
        for name, images in zip(record.categories, record.images_per_prompt, strict=True)
        for _ in range(images)
    ]
    for number, stage in enumerate(record.stages):
        expected = []
        for name, count in zip(names, tokens, strict=True):
            _, wanted = schedule.counts(count)[number]
            share = wanted * profile.categories[name].budget_scale
            expected.append(max(1, math.floor(share + 0.5)))
        dropped = sum(tokens) - sum(expected)
        if list(stage.counts) != expected or int((stage.columns >= 0).sum()) < content - dropped:
            raise AssertionError(
                f"{list(stage.counts)} tokens were kept of the images, {expected} asked for"
            )


def _features(model: Any, batch: dict[str, torch.Tensor]) -> list[torch.Tensor]:
    """Return the unpatched model's features of each image, [placeholders, text width]."""
    features = model.get_image_features(**_images(batch), return_dict=True).pooler_output
    return list(features)


def _is_token(model: Any, features: torch.Tensor) -> torch.Tensor:
    """Return which of an image's features are visual tokens, not newlines, [placeholders] bool."""
    newline = getattr(model.base_model, "image_newline", None)
    if newline is None:
        return torch.ones(len(features), dtype=torch.bool, device=features.device)
    return (features != newline).any(-1)


def _tokens(model: Any, batch: dict[str, torch.Tensor]) -> list[int]:
    """Return the number of visual tokens of each image in the unpatched model."""
    features = _features(model, batch)
    return [int(_is_token(model, of_image).sum()) for of_image in features]


def _kept(record: PrefillRecord, batch: dict[str, torch.Tensor]) -> dict[int, torch.Tensor]:
    """Return the remaining columns, [prompts, columns] bool, by the first layer that has them."""
    prompts, columns = batch["input_ids"].shape
    kept = {0: torch.ones(prompts, columns, dtype=torch.bool)}
    for stage in record.stages:
        left = torch.zeros(prompts, columns + 1, dtype=torch.bool)
        left.scatter_(1, torch.where(stage.columns < 0, columns, stage.columns).cpu(), True)
        kept[stage.layer or 0] = left[:, :columns]
    return kept


def compare_salience(
    family: str, build: Callable[[], Any], build_eager: Callable[[], Any]
) -> Comparison:
    """Compare the pivots with the tokens that get the most attention in an eager model."""
    specimen = SPECIMENS[family]
    model = build()
    batch = _batch(family, model, _PADDED)
    indices = _pivots(family, model, batch, Schedule.input(_BUDGET))
    eager, images = build_eager(), _images(batch)
    assert specimen.salience is not None
    return Comparison(
        _overlooked(specimen.salience(eager, images, 0), indices),
        _SALIENCE_TOLERANCE,
        _overlooked(specimen.salience(eager, images, 1), indices),
    )


def compare_stage_salience(
    family: str, build: Callable[[], Any], build_eager: Callable[[], Any]
) -> Comparison:
    """Do the same inside the decoder, with the attention of the prompt's last token."""
    model = build()
    batch = _batch(family, model, _PADDED)
    indices = _pivots(family, model, batch, Schedule({2: _BUDGET}))
    positions = _prompt_positions(model, batch)
    attentions = build_eager()(**batch, position_ids=positions, output_attentions=True).attentions
    is_image = batch["input_ids"] == model.config.image_token_id
    is_token = [_is_token(model, features) for features in _features(model, batch)]

    def salience(layer: int) -> torch.Tensor:
        of_last_token = attentions[layer].mean(1)[:, -1]
        by_image = of_last_token[is_image].split([len(image) for image in is_token])
        of_tokens = [image[which] for image, which in zip(by_image, is_token, strict=True)]
        return torch.nn.utils.rnn.pad_sequence(of_tokens, batch_first=True)

    return Comparison(
        _overlooked(salience(1), indices),
        _SALIENCE_TOLERANCE,
        _overlooked(salience(0), indices),
    )


def _pivots(
    family: str, model: Any, batch: dict[str, torch.Tensor], schedule: Schedule
) -> torch.Tensor:
    """Return the kept tokens, [images, R], of a profile that selects pivots only."""
    pivots_only = Profile(
        name="verification",
        model_type=family,
        layers=(1.0,),
        source="pivots only",
        categories={"general": CategoryPolicy((1.0,), 1.0)},
    )
    with apply_clasp(
        model, schedule=schedule, profile=pivots_only, fuse_into="selection"
    ) as handle:
        positions = _prompt_positions(model, batch)
        model(**batch, position_ids=positions, categories="general")
        record = handle.last
    if record is None:
        raise AssertionError("the images were not pruned")
    return record.stages[-1].indices


def _overlooked(salience: torch.Tensor, indices: torch.Tensor) -> float:
    """Return how much the best dropped token scores above the worst kept one, at least 0."""
    kept = torch.zeros_like(salience, dtype=torch.bool)
    kept.scatter_(1, indices.where(indices >= 0, indices[:, :1]), True)
    worst_kept = salience.masked_fill(~kept, torch.inf).amin(1)
    best_dropped = salience.masked_fill(kept, -torch.inf).amax(1)
    return float((best_dropped - worst_kept).clamp_min(0).max())


def _largest_difference(answer: _Answer, expected: torch.Tensor) -> float:
    differences = [
        (logits.float() - expected[row, column].float()).abs().max()
        for row, column, logits in answer.logits
    ]
    return float(torch.stack(differences).max())


def _exchanged(kept: torch.Tensor, is_image: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """Swap kept and dropped visual tokens in each row: one in float32, else as many as possible."""
    kept = kept.clone()
    for row in range(len(kept)):
        inside = (kept[row] & is_image[row]).nonzero().flatten()
        outside = (~kept[row] & is_image[row]).nonzero().flatten()
        count = min(len(inside), len(outside), 1 if dtype == torch.float32 else len(inside))
        kept[row, inside[:count]] = False
        kept[row, outside[:count]] = True
    return kept


def _oracle(
    model: Any,
    batch: dict[str, torch.Tensor],
    ids: torch.Tensor,
    kept: dict[int, torch.Tensor],
) -> torch.Tensor:
    """Return the unpatched model's logits [rows, columns, vocabulary] with dropped columns masked.

    ``kept`` has the remaining columns, [prompts, columns] bool, by the first layer that has them.
    """
    prompts, length = batch["input_ids"].shape
    repeats = len(ids) // prompts
    new = ids.shape[1] - length
    was_there = batch["attention_mask"].repeat_interleave(repeats, dim=0)
    later = was_there.new_ones(len(ids), new)
    seen = {
        layer: torch.cat(
            [was_there * left.to(ids.device).repeat_interleave(repeats, dim=0), later], 1
        )
        for layer, left in kept.items()
    }
    images = _repeat_images(model, batch, repeats)
    specimen = SPECIMENS[model.config.model_type]
    kinds = specimen.columns(model, ids)
    for name, kind in specimen.generated.items():
        kinds[name][:, length:] = kind
    if recurrent_kinds(model.config.get_text_config()):
        return _cut(model, ids, {**kinds, **images}, seen[0], torch.cat([was_there, later], 1))
    with _masked_from(model, {layer: mask for layer, mask in seen.items() if layer > 0}, kinds):
        logits: torch.Tensor = model(
            input_ids=ids,
            attention_mask=seen[0],
            position_ids=_positions(model, images, ids, torch.cat([was_there, later], 1)),
            use_cache=False,
            **kinds,
            **images,
        ).logits
    return logits


def _cut(
    model: Any,
    ids: torch.Tensor,
    arguments: dict[str, torch.Tensor],
    seen: torch.Tensor,
    attention_mask: torch.Tensor,
) -> torch.Tensor:
    """Do the same for a decoder with recurrent layers, in which no token can be masked.

    Each row runs by itself, without padding, on the embeddings and position ids of its remaining
    columns.
    """
    positions = _positions(model, arguments, ids, attention_mask)
    given: list[torch.Tensor] = []
    hook = model.get_decoder().register_forward_pre_hook(
        lambda _, args, kwargs: given.append(kwargs["inputs_embeds"]), with_kwargs=True
    )
    whole = model(
        input_ids=ids,
        attention_mask=attention_mask,
        position_ids=positions,
        use_cache=False,
        **arguments,
    ).logits
    hook.remove()
    [embeds] = given
    logits = whole.clone()  # dropped columns are never compared
    for row in range(len(ids)):
        [columns] = seen[row].nonzero(as_tuple=True)
        logits[row, columns] = model(
            inputs_embeds=embeds[row : row + 1, columns],
            position_ids=positions[..., row : row + 1, columns],
            use_cache=False,
        ).logits[0]
    return logits


@contextmanager
def _masked_from(
    model: Any, seen: dict[int, torch.Tensor], kinds: dict[str, torch.Tensor]
) -> Iterator[None]:
    """Give decoder layers the masks in ``seen``, [rows, columns], by the first layer of each.

    For prompts without a cache. ``kinds`` has their token types by argument of forward.
    """
    layers = decoder_layers(model) if seen else []
    firsts = sorted(seen)

    def mask(first: int, number: int) -> Callable[..., Any]:
        def hook(_: Any, args: Any, kwargs: dict[str, Any]) -> Any:
            hidden = args[0] if args else kwargs["hidden_states"]
            layer = range(number, number + 1)
            [made] = layer_masks(model, hidden, seen[first], None, layer, kinds)
            return args, {**kwargs, "attention_mask": made}

        return hook

    with ExitStack() as hooks:
        for first, stop in pairwise([*firsts, len(layers)]):
            for number in range(first, stop):
                hook = layers[number].register_forward_pre_hook(
                    mask(first, number), with_kwargs=True
                )
                hooks.callback(hook.remove)
        yield


def _images(batch: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Return the image arguments of a batch."""
    return {name: batch[name] for name in batch if name not in _BY_COLUMN}


def _repeat_images(
    model: Any, batch: dict[str, torch.Tensor], repeats: int
) -> dict[str, torch.Tensor]:
    """Repeat each prompt's images ``repeats`` times."""
    images = _images(batch)
    if repeats == 1:
        return images
    lengths = iter(map(len, _features(model, batch)))
    sizes = images["image_grid_thw"].prod(1).tolist() if "image_grid_thw" in images else None
    prompts = []  # the numbers of each prompt's images
    number = 0
    for count in (batch["input_ids"] == model.config.image_token_id).sum(1).tolist():
        inside = []
        while count > 0:
            count -= next(lengths)
            inside.append(number)
            number += 1
        prompts.append(inside)
    order = [image for inside in prompts for _ in range(repeats) for image in inside]
    repeated = {}
    for name, value in images.items():
        # Some families pack pixels, with a row for each patch.
        parts = value.split(sizes if sizes and len(value) != number else 1)
        repeated[name] = torch.cat([parts[image] for image in order])
    return repeated


def _profile(family: str) -> Profile:
    """Return a profile whose categories keep different numbers of tokens, so rows are ragged."""
    return Profile(
        name="verification",
        model_type=family,
        layers=(0.5, 1.0),
        source="made to be told apart, not to be good",
        categories={
            "general": CategoryPolicy((0.5, 0.5), 0.5),
            "ocr": CategoryPolicy((0.0, 1.0), 0.75, budget_scale=0.5),
            "counting": CategoryPolicy((1.0, 0.0), 0.25, budget_scale=1.5),
        },
    )


def _categories(batch: dict[str, torch.Tensor]) -> list[str]:
    names = ("general", "ocr", "counting")
    return [names[row % len(names)] for row in range(len(batch["input_ids"]))]


def _batch(family: str, model: Any, rows: tuple[tuple[int, ...], ...]) -> dict[str, torch.Tensor]:
    """Make left-padded prompts of random words and random images."""
    generator = torch.Generator().manual_seed(1)
    config = model.config
    num_images = sum(len(runs) - 1 for runs in rows)
    device = input_device(model)
    images = {
        name: value.to(device, model.dtype if value.is_floating_point() else value.dtype)
        for name, value in SPECIMENS[family].images(model, num_images, generator).items()
    }
    lengths = iter(map(len, _features(model, images)))
    vocabulary = config.get_text_config().vocab_size

    ordinary = torch.tensor(sorted(set(range(vocabulary)) - _no_words(config)))

    def words(count: int) -> list[int]:
        drawn = torch.randint(len(ordinary), (count,), generator=generator)
        return ordinary[drawn].tolist()

    prompts = []
    for runs in rows:
        ids: list[int] = []
        for number, count in enumerate(runs):
            if number:
                before, after = SPECIMENS[family].around(config)
                ids += [*before, *[config.image_token_id] * next(lengths), *after]
            ids += words(count)
        prompts.append(ids)
    width = max(map(len, prompts))
    padded = [words(width - len(ids)) + ids for ids in prompts]
    mask = [[0] * (width - len(ids)) + [1] * len(ids) for ids in prompts]
    input_ids = torch.tensor(padded, device=device)
    return {
        "input_ids": input_ids,
        "attention_mask": torch.tensor(mask, device=device),
        **SPECIMENS[family].columns(model, input_ids),
        **images,
    }


def _no_words(config: Any) -> set[int]:
    """Return the ids of image and video placeholders and of the tokens around them."""
    kinds = ("image", "video", "vision_start", "vision_end")
    names = [f"{kind}_token_id" for kind in kinds]
    ids = (getattr(config, name, None) for name in names)
    return {token_id for token_id in ids if token_id is not None}


def input_device(model: Any) -> torch.device:
    """Return the device for a model's inputs: the execution device of its hook if offloaded."""
    if model.device.type != "meta":
        return torch.device(model.device)
    hook = getattr(model, "_hf_hook", None)
    hooks = [hook, *getattr(hook, "hooks", ())]
    devices = [getattr(hook, "execution_device", None) for hook in hooks]
    return torch.device(next((device for device in devices if device is not None), "cpu"))


def _positions(
    model: Any, images: dict[str, torch.Tensor], ids: torch.Tensor, attention_mask: torch.Tensor
) -> torch.Tensor:
    """Return position ids [..., rows, columns] of prompts and answers. Padding is not counted."""
    specimen = SPECIMENS[model.config.model_type]
    if specimen.positions is None:
        return (attention_mask.cumsum(1) - 1).clamp_min(0)
    by_column = specimen.columns(model, ids)
    batch = {"input_ids": ids, "attention_mask": attention_mask, **by_column, **images}
    return specimen.positions(model, batch)


def _prompt_positions(model: Any, batch: dict[str, torch.Tensor]) -> torch.Tensor:
    return _positions(model, _images(batch), batch["input_ids"], batch["attention_mask"])


def _prefill(model: Any, handle: ClaspHandle, batch: dict[str, torch.Tensor]) -> _Answer:
    """Run a plain forward and compare every remaining token."""
    logits = model(
        **batch,
        position_ids=_prompt_positions(model, batch),
        categories=_categories(batch),
    ).logits
    columns_of = [] if handle.last is None else handle.last.columns.tolist()
    compared = [
        (row, column, logits[row, at])
        for row, columns in enumerate(columns_of)
        for at, column in enumerate(columns)
        if column >= 0 and batch["attention_mask"][row, column]
    ]
    return _Answer(batch["input_ids"], compared)


def _generate(
    model: Any, handle: ClaspHandle, batch: dict[str, torch.Tensor], **settings: Any
) -> _Answer:
    """Run ``generate`` and compare every step."""
    out = model.generate(
        **batch,
        categories=_categories(batch),
        **{"do_sample": False, **settings},
        max_new_tokens=_STEPS,
        min_new_tokens=_STEPS,
        suppress_tokens=sorted(_no_words(model.config)),
        disable_compile=True,
        output_logits=True,
        return_dict_in_generate=True,
    )
    length = batch["input_ids"].shape[1]
    compared = [
        (row, length - 1 + step, logits[row])
        for step, logits in enumerate(out.logits)
        for row in range(len(out.sequences))
    ]
    return _Answer(out.sequences, compared)


def _decode_by_hand(
    keyword: str, model: Any, handle: ClaspHandle, batch: dict[str, torch.Tensor]
) -> _Answer:
    """Decode with plain forwards and the cache passed as ``keyword``, and compare every step.

    A single prompt is run without mask and position ids, which the model then derives from the
    cache.
    """
    ids, mask = batch["input_ids"], batch["attention_mask"]
    alone = len(ids) == 1

    def columns(mask: torch.Tensor, new: int) -> dict[str, torch.Tensor]:
        if alone:
            return {}
        positions = _positions(model, _images(batch), ids, mask)
        return {"attention_mask": mask, "position_ids": positions[..., -new:]}

    inputs = {**batch, **columns(mask, ids.shape[1])}
    out = model(**inputs, categories=_categories(batch), use_cache=True)
    compared = []
    for _ in range(_STEPS):
        last = out.logits[:, -1]
        compared += [(row, ids.shape[1] - 1, last[row]) for row in range(len(ids))]
        words = last.clone()
        words[:, sorted(_no_words(model.config))] = -torch.inf
        ids = torch.cat([ids, words.argmax(-1, keepdim=True)], 1)
        mask = torch.cat([mask, mask.new_ones(len(mask), 1)], 1)
        out = model(input_ids=ids[:, -1:], **columns(mask, 1), **{keyword: output_cache(out)})
    return _Answer(ids, compared)


def _inside(num_layers: int) -> Schedule:
    """Return up to three stages inside the decoder, as many as it has layers for."""
    layers = sorted({num_layers * quarter // 4 for quarter in (1, 2, 3)} - {0})
    shares = (0.5, 0.25, 0.125)
    return Schedule(dict(zip(layers, shares, strict=False)) or {0: _BUDGET})


def _before_and_inside(num_layers: int) -> Schedule:
    """Return one stage before the decoder and one in its middle."""
    return Schedule({0: 0.5, **({num_layers // 2: 0.125} if num_layers > 1 else {})})


_ONE = ((2, 4),)
_PADDED = ((2, 3), (1, 2, 5), (4, 6))

TASKS = (
    Task("prefill, one prompt", _ONE, _prefill),
    Task("prefill, padded batch", _PADDED, _prefill),
    Task("generate, one prompt", _ONE, _generate),
    Task("generate, padded batch", _PADDED, _generate),
    Task("generate, static cache", _PADDED, partial(_generate, cache_implementation="static")),
    Task(
        "generate, two samples",
        _PADDED,
        partial(_generate, do_sample=True, num_return_sequences=2),
    ),
    Task("decode, cache", _PADDED, partial(_decode_by_hand, "cache")),
    Task("decode, past_key_values", _ONE, partial(_decode_by_hand, "past_key_values")),
    Task("stages, prefill", _PADDED, _prefill, _inside),
    Task("stages, generate, one prompt", _ONE, _generate, _inside),
    Task("stages, generate, padded batch", _PADDED, _generate, _before_and_inside),
    Task(
        "stages, static cache",
        _PADDED,
        partial(_generate, cache_implementation="static"),
        _inside,
    ),
)
