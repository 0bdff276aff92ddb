"""Whether pruning is right with the transformers that is installed: the masking oracle.

A token that is dropped before the language model has the same effect as one that is there but
masked as a key in every layer. So the unpatched model, run by itself on the whole prompt with the
dropped columns masked, must give the logits that the pruned model gives: at every token that
survives, and at every step that is generated from the pruned cache. The oracle uses nothing of
this package but the list of columns that were kept.

A check also runs its control: the oracle with other tokens masked. A check whose control does not
differ could not have failed, and does not pass.
"""

from __future__ import annotations

import copy
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from functools import partial
from typing import Any

import torch

from clasp_kernels.models.apply import apply_clasp, remove_clasp, supported_model_types
from clasp_kernels.models.compat import (
    TESTED_RELEASES,
    is_tested,
    output_cache,
    require_transformers,
)
from clasp_kernels.models.handle import ClaspHandle
from clasp_kernels.models.patching import InstancePatches
from clasp_kernels.models.specimens import SPECIMENS
from clasp_kernels.policy import CategoryPolicy, Profile

# Of logits. Those of specimens are compared as they are, those of a user's model, which may be
# large, in units of the largest.
_TOLERANCE = {torch.float32: 1e-4, torch.bfloat16: 5e-2, torch.float16: 1e-2}
_SALIENCE_TOLERANCE = 1e-6
_STEPS = 3


@dataclass(frozen=True)
class Check:
    """One check of one family: a row of the report."""

    family: str
    name: str
    attention: str
    """The attention implementation of the language model."""
    passed: bool
    difference: float | None
    """The largest difference between the pruned model's logits and the oracle's; for "salience"
    by how much a token left out scored more than one that was kept."""
    tolerance: float | None
    """The largest difference that passes."""
    control: float | None
    """The difference where the oracle masks other tokens than were dropped."""
    problem: str
    """Why it did not pass; empty where it did."""
    seconds: float


@dataclass(frozen=True)
class Verification:
    """What ``verify`` found."""

    transformers: str
    torch: str
    tested: bool
    """Whether this transformers lies within the releases that the package was tested with."""
    dtype: str
    checks: tuple[Check, ...]

    @property
    def passed(self) -> bool:
        """Whether every check passed, and there was one."""
        return bool(self.checks) and all(check.passed for check in self.checks)

    def to_dict(self) -> dict[str, Any]:
        """All of it as JSON takes it."""
        return {
            "passed": self.passed,
            **asdict(self),
            "tested_releases": list(TESTED_RELEASES),
        }


def verify(model: Any | None = None, families: Sequence[str] | None = None) -> Verification:
    """Check that pruned models give what the same models give with dropped tokens masked.

    Without ``model``, on a tiny random model of each family, with SDPA and eager attention, in a
    few seconds. With one, on that model and the attention it uses, with prompts of a few random
    words and random images: in float32 on a copy if there is memory for it, else in its own dtype
    with a wider tolerance. The model is left as it was.

    Args:
        model: a model that ``apply_clasp`` takes, patched or not.
        families: ``config.model_type`` values to check; by default all that are supported.

    Raises:
        ValueError: an unknown family, both arguments given, or a model of no supported family.
        ImportError: transformers is missing or too old.

    >>> report = verify(families=["llava"])
    >>> report.passed, sorted({check.family for check in report.checks})
    (True, ['llava'])
    """
    require_transformers(warn=False)
    import transformers

    if model is not None and families is not None:
        raise ValueError("give model or families, not both: a model is of one family")
    with torch.no_grad(), torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        if model is not None:
            checks, dtype = _check_model(model)
        else:
            checks, dtype = _check_families(families), torch.float32
    return Verification(
        transformers=transformers.__version__,
        torch=torch.__version__,
        tested=is_tested(transformers.__version__),
        dtype=str(dtype).removeprefix("torch."),
        checks=tuple(checks),
    )


def _check_families(families: Sequence[str] | None) -> list[Check]:
    known = supported_model_types()
    if isinstance(families, str):
        raise ValueError(f"families must be a list of names, got {families!r}")
    unknown = [name for name in families or () if name not in known]
    if unknown:
        raise ValueError(f"families must be among {', '.join(known)}, got {', '.join(unknown)}")
    checks = []
    for family in known if families is None else families:
        for attention in ("sdpa", "eager"):
            build = partial(SPECIMENS[family].build, attn_implementation=attention)
            for subject in _SUBJECTS:
                compare = partial(_compare, family, build, subject, relative=False)
                checks.append(_run(family, subject.name, attention, compare))
            compare = partial(_compare_salience, family, attention)
            checks.append(_run(family, "salience", attention, compare))
    return checks


def _check_model(model: Any) -> tuple[list[Check], torch.dtype]:
    family = getattr(getattr(model, "config", None), "model_type", None)
    if family not in supported_model_types():
        raise ValueError(
            f"model must have a supported config.model_type, "
            f"{' or '.join(map(repr, supported_model_types()))}; got {family!r} "
            f"({type(model).__name__})"
        )
    subject = _in_float32(model)
    if InstancePatches.of(subject) is not None:
        subject = copy.deepcopy(subject) if subject is model else subject
        remove_clasp(subject)
    attention = subject.config.get_text_config()._attn_implementation
    with _evaluating(subject):
        checks = [
            _run(
                family,
                entry.name,
                attention,
                partial(_compare, family, lambda: subject, entry, relative=True),
            )
            for entry in _SUBJECTS
        ]
    return checks, subject.dtype


def _in_float32(model: Any) -> Any:
    """A float32 copy of the model if it fits beside it, else the model itself."""
    if model.dtype == torch.float32 or getattr(model, "is_quantized", False):
        return model
    if len(set(getattr(model, "hf_device_map", {}).values())) > 1:
        return model  # a copy of what is spread over devices and disk is no plain matter
    needed = 4 * sum(parameter.numel() for parameter in model.parameters())
    if needed > 0.8 * _free_memory(model.device):
        return model
    return copy.deepcopy(model).float()


def _free_memory(device: torch.device) -> float:
    if device.type == "cuda":
        return float(torch.cuda.mem_get_info(device)[0])
    try:
        with open("/proc/meminfo", encoding="ascii") as lines:
            sizes = {name: value.split() for name, _, value in (ln.partition(":") for ln in lines)}
        return 1024.0 * int(sizes["MemAvailable"][0])
    except (OSError, KeyError):
        return 0.0


@contextmanager
def _evaluating(model: Any) -> Iterator[None]:
    """Dropout off; at the end every module's own setting is back, and what was added is gone."""
    training = [module for module in model.modules() if module.training]
    own = set(vars(model))
    model.eval()
    try:
        yield
    finally:
        for module in training:
            module.training = True
        for name in set(vars(model)) - own:  # generate notes the length of static caches
            delattr(model, name)


@dataclass(frozen=True)
class _Subject:
    """What a check tries: prompts, and what the pruned model is asked to do with them."""

    name: str
    rows: tuple[tuple[int, ...], ...]
    """Prompts as runs of text: so many words, then an image, then so many words, and so on."""
    run: Callable[[Any, ClaspHandle, dict[str, torch.Tensor]], _Answer]


@dataclass(frozen=True)
class _Answer:
    """What the pruned model said, and where."""

    ids: torch.Tensor
    """[rows, columns]: the prompt, and what was generated after it."""
    logits: Sequence[tuple[int, int, torch.Tensor]]
    """Row, column and logits, of every token compared."""


def _run(
    family: str, name: str, attention: str, compare: Callable[[], tuple[float, float, float]]
) -> Check:
    started = time.perf_counter()
    difference = tolerance = control = None
    try:
        difference, tolerance, control = compare()
        problem = _judge(difference, tolerance, control)
    except Exception as error:  # whatever fails here fails in the user's hands too
        problem = f"{type(error).__name__}: {' '.join(str(error).split())}"
    return Check(
        family=family,
        name=name,
        attention=attention,
        passed=not problem,
        difference=difference,
        tolerance=tolerance,
        control=control,
        problem=problem,
        seconds=time.perf_counter() - started,
    )


def _judge(difference: float, tolerance: float, control: float) -> str:
    if not difference <= tolerance:  # NaN too
        return f"differs by {difference:.1e}, at most {tolerance:.1e} is allowed"
    if not control > 3 * tolerance:
        return f"nothing is proved: with other tokens the difference is {control:.1e} only"
    return ""


def _compare(
    family: str, build: Callable[[], Any], subject: _Subject, relative: bool
) -> tuple[float, float, float]:
    """The largest difference from the oracle, the largest allowed, and that of the control."""
    model = build()
    batch = _batch(family, model, subject.rows)
    before = model(**batch).logits
    profile = _profile(family, model)
    with apply_clasp(model, budget=0.25, profile=profile, fuse_into="selection") as handle:
        answer = subject.run(model, handle, batch)
        record = handle.last
    assert record is not None
    if not torch.equal(model(**batch).logits, before):
        raise AssertionError("remove() did not bring the model's own logits back")

    prompts, columns = batch["input_ids"].shape
    kept = torch.zeros(prompts, columns + 1, dtype=torch.bool)
    kept.scatter_(1, torch.where(record.columns < 0, columns, record.columns).cpu(), True)
    kept = kept[:, :columns]
    is_image = (batch["input_ids"] == model.config.image_token_id).cpu()
    expected = _oracle(model, batch, answer.ids, kept)
    tolerance = _TOLERANCE[model.dtype]
    if relative:
        largest = max(float(expected[row, at].abs().max()) for row, at, _ in answer.logits)
        tolerance *= max(1.0, largest)
    other = _oracle(model, batch, answer.ids, _exchanged(kept, is_image, model.dtype))
    return (
        _largest_difference(answer, expected),
        tolerance,
        _largest_difference(answer, other),
    )


def _compare_salience(family: str, attention: str) -> tuple[float, float, float]:
    """Whether pivots are the tokens that get most of the attention an eager model returns."""
    specimen = SPECIMENS[family]
    model = specimen.build(attn_implementation=attention)
    batch = _batch(family, model, _PADDED)
    pivots_only = Profile(
        name="verification",
        model_type=family,
        layers=(1.0,),
        source="pivots only",
        categories={"general": CategoryPolicy((1.0,), 1.0)},
    )
    with apply_clasp(model, budget=0.25, profile=pivots_only) as handle:
        model(**batch, categories="general")
        record = handle.last
    assert record is not None
    eager = specimen.build(attn_implementation="eager")
    images = {name: batch[name] for name in batch if name not in ("input_ids", "attention_mask")}
    indices = record.stages[0].indices

    def overlooked(salience: torch.Tensor) -> float:
        kept = torch.zeros_like(salience, dtype=torch.bool).scatter_(1, indices, True)
        worst_kept = salience.masked_fill(~kept, torch.inf).amin(1)
        best_dropped = salience.masked_fill(kept, -torch.inf).amax(1)
        return float((best_dropped - worst_kept).clamp_min(0).max())

    return (
        overlooked(specimen.salience(eager, images, 0)),
        _SALIENCE_TOLERANCE,
        overlooked(specimen.salience(eager, images, 1)),
    )


def _largest_difference(answer: _Answer, expected: torch.Tensor) -> float:
    differences = [
        (logits.float() - expected[row, column].float()).abs().max()
        for row, column, logits in answer.logits
    ]
    return float(torch.stack(differences).max())


def _exchanged(kept: torch.Tensor, is_image: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """Other tokens kept in each row's images: one exchanged, or every one in low precision."""
    kept = kept.clone()
    for row in range(len(kept)):
        inside = (kept[row] & is_image[row]).nonzero().flatten()
        outside = (~kept[row] & is_image[row]).nonzero().flatten()
        count = min(len(inside), len(outside), 1 if dtype == torch.float32 else len(inside))
        kept[row, inside[:count]] = False
        kept[row, outside[:count]] = True
    return kept


def _oracle(
    model: Any, batch: dict[str, torch.Tensor], ids: torch.Tensor, kept: torch.Tensor
) -> torch.Tensor:
    """[rows, columns, vocabulary]: the unpatched model's logits, what was not kept masked."""
    prompts, length = batch["input_ids"].shape
    repeats = len(ids) // prompts
    new = ids.shape[1] - length
    was_there = batch["attention_mask"].repeat_interleave(repeats, dim=0)
    hidden = was_there * kept.to(ids.device).repeat_interleave(repeats, dim=0)
    later = was_there.new_ones(len(ids), new)
    images = {
        name: _repeat_images(value, batch, model, repeats)
        for name, value in batch.items()
        if name not in ("input_ids", "attention_mask")
    }
    logits: torch.Tensor = model(
        input_ids=ids,
        attention_mask=torch.cat([hidden, later], 1),
        position_ids=(torch.cat([was_there, later], 1).cumsum(1) - 1).clamp_min(0),
        **images,
    ).logits
    return logits


def _repeat_images(
    images: torch.Tensor, batch: dict[str, torch.Tensor], model: Any, repeats: int
) -> torch.Tensor:
    """Each prompt's images ``repeats`` times."""
    if repeats == 1:
        return images
    in_prompt = (batch["input_ids"] == model.config.image_token_id).sum(1)
    per_image = int(in_prompt.sum()) // len(images)
    parts = images.split((in_prompt // per_image).tolist())
    return torch.cat([part for part in parts for _ in range(repeats)])


def _profile(family: str, model: Any) -> Profile:
    """Categories that keep different numbers of tokens, so that rows are ragged."""
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
    """Prompts of random words and images, padded on the left."""
    generator = torch.Generator().manual_seed(1)
    config = model.config
    num_images = sum(len(runs) - 1 for runs in rows)
    images = {
        name: value.to(model.device, model.dtype if value.is_floating_point() else value.dtype)
        for name, value in SPECIMENS[family].images(model, num_images, generator).items()
    }
    features = model.get_image_features(**images, return_dict=True).pooler_output
    lengths = iter([len(tokens) for tokens in features])
    vocabulary = config.get_text_config().vocab_size

    def words(count: int) -> list[int]:
        others = torch.randint(vocabulary - 1, (count,), generator=generator)
        return (others + (others >= config.image_token_id)).tolist()

    prompts = []
    for runs in rows:
        ids: list[int] = []
        for number, count in enumerate(runs):
            if number:
                ids += [config.image_token_id] * next(lengths)
            ids += words(count)
        prompts.append(ids)
    width = max(map(len, prompts))
    padded = [words(width - len(ids)) + ids for ids in prompts]
    mask = [[0] * (width - len(ids)) + [1] * len(ids) for ids in prompts]
    return {
        "input_ids": torch.tensor(padded, device=model.device),
        "attention_mask": torch.tensor(mask, device=model.device),
        **images,
    }


def _positions(attention_mask: torch.Tensor) -> torch.Tensor:
    return (attention_mask.cumsum(1) - 1).clamp_min(0)


def _prefill(model: Any, handle: ClaspHandle, batch: dict[str, torch.Tensor]) -> _Answer:
    """A plain forward: every token that survives."""
    logits = model(
        **batch,
        position_ids=_positions(batch["attention_mask"]),
        categories=_categories(batch),
    ).logits
    assert handle.last is not None
    compared = [
        (row, column, logits[row, at])
        for row, columns in enumerate(handle.last.columns.tolist())
        for at, column in enumerate(columns)
        if column >= 0 and batch["attention_mask"][row, column]
    ]
    return _Answer(batch["input_ids"], compared)


def _generate(
    model: Any, handle: ClaspHandle, batch: dict[str, torch.Tensor], **settings: Any
) -> _Answer:
    """``generate``: every step."""
    out = model.generate(
        **batch,
        categories=_categories(batch),
        **{"do_sample": False, **settings},
        max_new_tokens=_STEPS,
        min_new_tokens=_STEPS,
        suppress_tokens=[model.config.image_token_id],
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
    """Forwards with a cache that the caller hands on, under either of its names.

    A prompt alone may do without mask and positions, which are then counted by the cache.
    """
    ids, mask = batch["input_ids"], batch["attention_mask"]
    alone = len(ids) == 1

    def columns(mask: torch.Tensor, new: int) -> dict[str, torch.Tensor]:
        if alone:
            return {}
        return {"attention_mask": mask, "position_ids": _positions(mask)[:, -new:]}

    inputs = {**batch, **columns(mask, ids.shape[1])}
    out = model(**inputs, categories=_categories(batch), use_cache=True)
    compared = []
    for _ in range(_STEPS):
        last = out.logits[:, -1]
        compared += [(row, ids.shape[1] - 1, last[row]) for row in range(len(ids))]
        words = last.clone()
        words[:, model.config.image_token_id] = -torch.inf
        ids = torch.cat([ids, words.argmax(-1, keepdim=True)], 1)
        mask = torch.cat([mask, mask.new_ones(len(mask), 1)], 1)
        out = model(input_ids=ids[:, -1:], **columns(mask, 1), **{keyword: output_cache(out)})
    return _Answer(ids, compared)


_ONE = ((2, 4),)
_PADDED = ((2, 3), (1, 2, 5), (4, 6))

_SUBJECTS = (
    _Subject("prefill, one prompt", _ONE, _prefill),
    _Subject("prefill, padded batch", _PADDED, _prefill),
    _Subject("generate, one prompt", _ONE, _generate),
    _Subject("generate, padded batch", _PADDED, _generate),
    _Subject("generate, static cache", _PADDED, partial(_generate, cache_implementation="static")),
    _Subject(
        "generate, two samples",
        _PADDED,
        partial(_generate, do_sample=True, num_return_sequences=2),
    ),
    _Subject("decode, cache", _PADDED, partial(_decode_by_hand, "cache")),
    _Subject("decode, past_key_values", _ONE, partial(_decode_by_hand, "past_key_values")),
)
