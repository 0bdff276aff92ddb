"""``clasp calibrate --stages``: check it against the model, and say what it was."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import TYPE_CHECKING

from clasp_kernels.cli.calibrate_options import Settings
from clasp_kernels.cli.errors import UsageError, applying_clasp
from clasp_kernels.cli.loading import LoadedModel
from clasp_kernels.policy import STRATEGIES, Profile

if TYPE_CHECKING:
    from clasp_kernels.calibrate import Stages, Sweep
    from clasp_kernels.models import ClaspHandle
    from clasp_kernels.models.adapter import Adapter
    from clasp_kernels.policy import Schedule


def applied(
    loaded: LoadedModel, profile: Profile | None, schedule: Schedule | None = None
) -> ClaspHandle:
    """Prune the model and restore it. Raises a CommandError if it cannot be pruned."""
    from clasp_kernels.models import apply_clasp

    with applying_clasp(loaded.name):
        handle: ClaspHandle = apply_clasp(
            loaded.model, profile=profile, processor=loaded.processor, schedule=schedule
        )
    handle.remove()
    return handle


def strategies_to_try(settings: Settings, fuse_into: str) -> tuple[str, ...]:
    """Return the strategies to try: only the profile's own mixtures where no mixture is used.

    Inside the decoder, hidden states are compared, and its own attention scores the tokens. Raises
    a UsageError for strategies that would change nothing.
    """
    from clasp_kernels.calibrate.grid import OWN

    if 0 in settings.stages or fuse_into == "projector":
        return tuple(STRATEGIES) if settings.strategies is None else settings.strategies
    if settings.strategies is not None:
        raise UsageError(
            f"--strategies must be left out with --stages {_listed(settings.stages)}, where the "
            f"mixture of vision layers changes nothing: the profile fuses them into "
            f"{fuse_into!r}, and no token is dropped before the LLM; got "
            f"{','.join(settings.strategies)}"
        )
    return (OWN,)


def _listed(stages: Sequence[int]) -> str:
    return ",".join(map(str, stages))


def checked_stages(
    loaded: LoadedModel, settings: Settings, profile: Profile, adapter: Adapter
) -> Stages:
    """Return the stages, if the model can drop tokens there.

    ``profile`` has all that is tried. Raises a CommandError if the model or a rule cannot, and a
    UsageError for stages that it does not have, and for budgets that no image can have there.
    """
    from clasp_kernels.calibrate import Stages

    stages = Stages(settings.stages, adapter.text_config.num_hidden_layers)
    if stages.layers[-1] >= stages.num_layers:
        raise UsageError(
            f"--stages must be in 0..{stages.num_layers - 1}, as {loaded.name} has "
            f"{stages.num_layers} decoder layers and nothing runs after the last, got "
            f"{stages.layers[-1]}"
        )
    if not stages.are_inside:
        return stages
    applied(loaded, profile, stages.some_schedule)
    num_tokens = adapter.tokens_per_image()
    for budget in settings.budgets:
        if isinstance(budget, float) or num_tokens is not None:
            schedule_of(stages, budget, (num_tokens or 1,))
    return stages


def schedule_of(stages: Stages, budget: int | float, counts: Sequence[int]) -> Schedule:
    """Return the schedule of a prompt whose images have ``counts`` visual tokens.

    Raises a UsageError if there is none with this mean.
    """
    try:
        return stages.schedule(budget, counts)
    except ValueError as error:
        where = _listed(stages.layers)
        raise UsageError(f"--budgets {budget} with --stages {where}: {error}") from None


def schedules_in_words(
    sweep: Sweep, schedules_of: Mapping[int | float, Collection[Schedule]]
) -> list[str]:
    """Return where tokens were dropped, and the schedule of each budget as --schedule takes it."""
    from clasp_kernels.calibrate.grid import OWN

    lines = [f"Tokens were dropped {sweep.stages}. A budget is the mean over the layers."]
    for budget, schedules in schedules_of.items():
        of_some = min(map(str, schedules))
        if len(schedules) == 1:
            lines.append(f"Budget {budget} is --schedule {of_some}")
        else:
            lines.append(
                f"Budget {budget} is another schedule for other images, {len(schedules)} in all, "
                f"such as --schedule {of_some}"
            )
    if sweep.grid.strategies == (OWN,):
        lines.append("Mixtures of vision layers are not used there, and stay those of the profile.")
    return lines
