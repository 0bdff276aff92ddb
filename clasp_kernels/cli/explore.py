"""``clasp explore``: prepare the prompt, have every selection computed, and make the page."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from clasp_kernels.cli.comparison import categorise
from clasp_kernels.cli.errors import CommandError, applying_clasp, refusing_as
from clasp_kernels.cli.loading import LoadedModel
from clasp_kernels.cli.picture import NoPicture, placed_tokens
from clasp_kernels.cli.prompt import prepare
from clasp_kernels.policy import Profile, Schedule

if TYPE_CHECKING:
    from PIL import Image

    from clasp_kernels.explore import Plan, PromptTokens

#: Asked if the user asks nothing. The router finds no category for it but "general".
ANY_QUESTION = "Look at this image."


def explore_page(
    loaded: LoadedModel,
    image: Image.Image,
    name: str,
    question: str,
    *,
    rules: Sequence[str],
    profile: Profile | None = None,
    progressive: bool = True,
    on_done: Callable[[int, int], None] = lambda done, total: None,
) -> str:
    """Return the HTML of the page.

    ``name`` is the path of the image. Without ``progressive``, the LLM runs at most once.
    ``on_done`` is told how many selections are done, of how many.

    Raises a UsageError if ``question`` is invalid, and a CommandError if the model cannot be
    pruned, or the places of its tokens are not known.
    """
    from clasp_kernels.explore import PromptTokens, explore, input_plan, progressive_plan
    from clasp_kernels.explore.page import PageText, page
    from clasp_kernels.models import apply_clasp

    with (
        applying_clasp(loaded.name),
        apply_clasp(loaded.model, profile=profile, processor=loaded.processor) as handle,
    ):
        category, reason = categorise(question, None, handle.profile)
        prompt = prepare(loaded, handle.adapter, image, question)
    try:
        seen, _, placed = placed_tokens(loaded, prompt.views)
    except NoPicture as error:
        raise CommandError(f"there can be no page for {loaded.name}: {error}") from None
    tokens = PromptTokens(loaded.model, loaded.processor, prompt.inputs, prompt.counts, profile)
    most = max(prompt.counts)
    plans = [input_plan(most)]
    num_layers: int = loaded.model.config.get_text_config().num_hidden_layers
    inside = progressive_plan(most, num_layers) if progressive else None
    missing = _why_not_inside(tokens, inside, num_layers, progressive)
    if inside is not None and not missing:
        plans.append(inside)
    with refusing_as(f"{loaded.name} cannot be explored"):
        exploration = explore(tokens, plans, rules, on_done)
    text = PageText(
        question=question,
        image=os.fsencode(Path(name).name).decode(errors="replace"),
        model=_shown_name(loaded.name),
        category=category,
        reason=reason,
        no_progressive=missing,
    )
    return page(exploration, seen, placed, text)


def _shown_name(model: str) -> str:
    """Return a model's name without the folders above it: the page may be sent to others.

    >>> _shown_name("/"), _shown_name("llava-hf/llava-1.5-7b-hf")
    ('/', 'llava-hf/llava-1.5-7b-hf')
    """
    return Path(model).resolve().name or model if Path(model).is_dir() else model


def _why_not_inside(tokens: PromptTokens, plan: Plan | None, num_layers: int, wanted: bool) -> str:
    """Return why the page has no progressive schedule; empty if it can have one."""
    if not wanted:
        return "Left out by --input-only."
    if plan is None:
        return f"The LLM has only {num_layers} layers, too few for stages between them."
    try:
        tokens.applied(Schedule(dict(plan.schedules[0].stages)), "clasp").remove()
    except (TypeError, ValueError, RuntimeError) as error:
        return f"Not with this model: {error}."
    return ""
