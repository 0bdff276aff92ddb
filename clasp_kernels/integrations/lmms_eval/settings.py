"""Reads the settings of pruning in ``--model_args`` as arguments of ``apply_clasp``."""

from __future__ import annotations

from typing import Any

from clasp_kernels.policy import Profile, Schedule


def parse_settings(
    *,
    budget: object,
    schedule: object,
    rule: object,
    profile: object,
    positions: object,
    merge: object,
) -> dict[str, Any]:
    """Return the arguments of ``apply_clasp``.

    The harness has made numbers and booleans of the texts that look like them. It splits
    ``--model_args`` at commas, so the stages of a schedule have ``/`` between them.

    Args:
        budget: visual tokens kept per image, an int, or a float for a fraction. None for no budget.
        schedule: stages as ``layer:tokens``. None for none.
        profile: the path of a profile. None for the profile of the weights.
        rule, positions, merge: passed on as they are; ``apply_clasp`` checks them.

    Raises:
        ValueError, TypeError, OSError: the schedule or profile cannot be read, or neither budget
            nor schedule is given.

    >>> settings = parse_settings(budget=None, schedule="2:334/6:194/15:112", rule=None,
    ...                           profile=None, positions="original", merge=False)
    >>> settings["schedule"]
    Schedule({2: 334, 6: 194, 15: 112})
    """
    if budget is None and schedule is None:
        raise ValueError(
            "budget or schedule must be in model_args, so that the results say what was kept: "
            "budget=192 (tokens), budget=0.25 (a fraction) or schedule=2:334/6:194/15:112"
        )
    return {
        "budget": budget,
        "schedule": None if schedule is None else _schedule(schedule),
        "rule": rule,
        "profile": None if profile is None else _profile(profile),
        "positions": positions,
        "merge": merge,
    }


def _schedule(value: object) -> Schedule:
    if not isinstance(value, str) or "," in value:
        raise ValueError(
            f"schedule must be layer:tokens with / between stages, like 2:334/6:194/15:112, got "
            f"{value!r}"
        )
    return Schedule.parse(value.replace("/", ","))


def _profile(value: object) -> Profile:
    if not isinstance(value, str):
        raise TypeError(f"profile must be the path of a JSON file, got {value!r}")
    return Profile.load(value)
