"""Verify that pruning is correct with the installed transformers.

Every check compares a pruned model with the oracle (``oracle.py``) and with a control, the oracle
with other tokens masked. A check whose control does not differ could not have failed, so it does
not pass.
"""

from __future__ import annotations

import copy
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass
from functools import cache, partial
from typing import Any

import torch

from clasp_kernels.models.apply import apply_clasp, supported_model_types, supported_type
from clasp_kernels.models.compat import TESTED_RELEASES, is_tested, require_transformers
from clasp_kernels.models.decoder import refusal
from clasp_kernels.models.oracle import (
    TASKS,
    Comparison,
    compare_logits,
    compare_salience,
    compare_stage_salience,
    input_device,
    make_prompts,
)
from clasp_kernels.models.patching import MethodPatches
from clasp_kernels.models.specimens import SPECIMENS

# The implementations that tiny models are checked with.
_ATTENTIONS = ("sdpa", "eager")


@dataclass(frozen=True)
class Check:
    """One check of one family, a row of the report."""

    family: str
    name: str
    attention: str
    """The attention implementation of the language model."""
    passed: bool
    difference: float | None
    """The largest difference between the logits of the pruned model and of the oracle. For
    "salience", how much the best dropped token scored above the worst kept one."""
    tolerance: float | None
    """The largest difference that passes."""
    control: float | None
    """The difference from an oracle that masks other tokens than were dropped."""
    problem: str
    """Why the check did not pass; empty if it did."""
    seconds: float


@dataclass(frozen=True)
class Verification:
    """The result of ``verify``."""

    transformers: str
    torch: str
    tested: bool
    """Whether this transformers is within the range of tested releases."""
    dtype: str
    device: str
    checks: tuple[Check, ...]

    @property
    def passed(self) -> bool:
        """Whether there was at least one check and every check passed."""
        return bool(self.checks) and all(check.passed for check in self.checks)

    def to_dict(self) -> dict[str, Any]:
        """Return a dictionary that can be written as JSON."""
        return {
            "passed": self.passed,
            **asdict(self),
            "tested_releases": list(TESTED_RELEASES),
        }


def verify(
    model: Any | None = None,
    families: Iterable[str] | None = None,
    *,
    device: torch.device | str = "cpu",
) -> Verification:
    """Check that a pruned model gives the logits of the same model with dropped tokens masked.

    Without ``model``, tiny random models of each family are checked with SDPA and eager attention
    in about a minute, and so are the scores that pivots are selected by. With ``model``, that model
    is checked with its own attention implementation, on prompts of a few random words and random
    images. A float32 copy is used if it fits in memory, else the model in its own dtype with a
    wider tolerance. The model is left unchanged; do not use it while the checks run.

    Args:
        model: a model that ``apply_clasp`` supports, patched or not.
        families: ``config.model_type`` values to check; by default all supported ones.
        device: the device of the tiny models. A given model runs on its own device.

    Raises:
        ValueError, TypeError: an unknown family, both ``model`` and ``families`` given, or a model
            that ``apply_clasp`` refuses.
        ImportError: transformers is missing or too old.

    >>> report = verify(families=["llava"])
    >>> report.passed, sorted({check.family for check in report.checks})
    (True, ['llava'])
    """
    require_transformers(warn=False)
    import transformers

    if model is not None and families is not None:
        raise ValueError("give model or families, not both: a model is of one family")
    names = _check_names(families)
    if model is not None:
        supported_type(model)
    on = torch.device(device) if model is None else input_device(model)
    with _undisturbed(on):
        if model is not None:
            checks, dtype = _check_model(model)
        else:
            checks, dtype = _check_families(names, on), torch.float32
    return Verification(
        transformers=transformers.__version__,
        torch=torch.__version__,
        tested=is_tested(transformers.__version__),
        dtype=str(dtype).removeprefix("torch."),
        device=str(on),
        checks=tuple(checks),
    )


@contextmanager
def _undisturbed(device: torch.device) -> Iterator[None]:
    """Use full precision and a fixed seed within a ``with`` block, then restore the settings."""
    precision = torch.get_float32_matmul_precision()
    with ExitStack() as stack:
        stack.enter_context(torch.no_grad())
        for device_type in {"cpu", device.type}:
            stack.enter_context(torch.autocast(device_type, enabled=False))
        # Only this device's generator is forked: forking those of other GPUs would initialise them.
        stack.enter_context(torch.random.fork_rng([device] if device.type == "cuda" else []))
        torch.default_generator.manual_seed(0)
        stack.callback(torch.set_float32_matmul_precision, precision)
        torch.set_float32_matmul_precision("highest")
        yield


def _check_names(families: Iterable[str] | None) -> list[str]:
    known = supported_model_types()
    if families is None:
        return list(known)
    if isinstance(families, str) or not isinstance(families, Iterable):
        raise TypeError(f"families must be a list of names, got {families!r}")
    names = list(families)
    unknown = [str(name) for name in names if name not in known]
    if unknown:
        raise ValueError(f"families must be among {', '.join(known)}, got {', '.join(unknown)}")
    return names


def _check_families(families: list[str], device: torch.device) -> list[Check]:
    checks = []
    for family in families:
        has_reference = SPECIMENS[family].salience is not None

        # All checks share a model, as those of a given model do: building takes longer than they.
        @cache
        def build(attention: str, family: str = family) -> Any:
            return SPECIMENS[family].build(attn_implementation=attention).to(device)

        for attention in _ATTENTIONS:
            specimen = partial(build, attention)
            model = specimen()
            compare_with = partial(
                compare_logits, family, specimen, relative=False, prompts_for=cache(make_prompts)
            )
            for task in TASKS:
                if not task.fits(model):
                    continue
                checks.append(_run(family, task.name, attention, partial(compare_with, task)))
            for name, compare_pivots in (
                ("salience", compare_salience),
                ("stages, salience", compare_stage_salience),
            ):
                inside = compare_pivots is compare_stage_salience
                if refusal(model.config.get_text_config()) if inside else not has_reference:
                    continue
                compare = partial(compare_pivots, family, specimen, partial(build, "eager"))
                checks.append(_run(family, name, attention, compare))
    return checks


def _check_model(model: Any) -> tuple[list[Check], torch.dtype]:
    patches = MethodPatches.of(model)
    with ExitStack() as stack:
        if patches is not None:
            stack.enter_context(patches.lifted())
        with apply_clasp(model):  # raises here if the model is not supported at all
            pass
        subject = _in_float32(model)
        stack.enter_context(_plain(subject))
        family = subject.config.model_type
        attention = subject.config.get_text_config()._attn_implementation
        checks = []
        compare_with = partial(
            compare_logits, family, lambda: subject, relative=True, prompts_for=cache(make_prompts)
        )
        for task in TASKS:
            if not task.fits(subject):
                continue
            checks.append(_run(family, task.name, attention, partial(compare_with, task)))
        return checks, subject.dtype


def _in_float32(model: Any) -> Any:
    """Return a float32 copy of the model if it fits in memory, else the model itself."""
    parameters = list(model.parameters())
    if model.dtype == torch.float32 or getattr(model, "is_quantized", False):
        return model
    if len({parameter.device for parameter in parameters}) > 1 or model.device.type == "meta":
        return model  # device hooks move the parts of such a model, and a copy does not get them
    if 4 * sum(parameter.numel() for parameter in parameters) > 0.8 * _free_memory(model.device):
        return model
    return copy.deepcopy(model).float()


def _free_memory(device: torch.device) -> float:
    """Return the free bytes, or 0 if unknown."""
    if device.type == "cuda":
        return float(torch.cuda.mem_get_info(device)[0])
    if device.type != "cpu":
        return 0.0
    try:
        with open("/proc/meminfo", encoding="ascii") as lines:
            sizes = {name: value.split() for name, _, value in (ln.partition(":") for ln in lines)}
        return 1024.0 * int(sizes["MemAvailable"][0])
    except (OSError, KeyError):
        return 0.0


@contextmanager
def _plain(model: Any) -> Iterator[None]:
    """Turn off dropout and the model's generation config within a ``with`` block."""
    from transformers import GenerationConfig

    training = [module for module in model.modules() if module.training]
    attributes = dict(vars(model))  # generate stores the static cache length in an attribute
    model.eval()
    model.generation_config = GenerationConfig(pad_token_id=0)
    try:
        yield
    finally:
        vars(model).clear()
        vars(model).update(attributes)
        for module in training:
            module.training = True


def _run(family: str, name: str, attention: str, compare: Callable[[], Comparison]) -> Check:
    started = time.perf_counter()
    found = None
    try:
        found = compare()
        problem = _judge(found)
    except Exception as error:  # any failure here is one that a user would hit too
        problem = f"{type(error).__name__}: {' '.join(str(error).split())}"
    return Check(
        family=family,
        name=name,
        attention=attention,
        passed=not problem,
        difference=None if found is None else found.difference,
        tolerance=None if found is None else found.tolerance,
        control=None if found is None else found.control,
        problem=problem,
        seconds=time.perf_counter() - started,
    )


def _judge(found: Comparison) -> str:
    if not found.difference <= found.tolerance:  # NaN too
        return f"differs by {found.difference:.1e}, at most {found.tolerance:.1e} is allowed"
    if not found.control > 3 * found.tolerance:
        return (
            f"the check proves nothing: with other tokens masked, the difference is only "
            f"{found.control:.1e}"
        )
    return ""
