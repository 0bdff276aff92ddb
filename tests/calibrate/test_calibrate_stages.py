"""The schedules of a calibration's budgets."""

from __future__ import annotations

import pytest

from clasp_kernels.calibrate.stages import BEFORE_LLM, Stages
from clasp_kernels.policy import Schedule


@pytest.mark.parametrize("budget", [40, 0.5])
@pytest.mark.parametrize("layers", [(2,), (0, 3), (1, 2, 5)])
def test_the_budget_is_the_mean_over_decoder_layers(
    layers: tuple[int, ...], budget: int | float
) -> None:
    schedule = Stages(layers, 6).schedule(budget, (72, 72))
    assert schedule.layers == layers
    wanted = budget * 72 if isinstance(budget, float) else budget
    assert abs(schedule.average(72, 6) - wanted) <= 0.5
    schedule.check_fits(72, 6)


def test_before_the_llm_a_budget_may_exceed_an_image() -> None:
    assert BEFORE_LLM.schedule(40, (72, 9)) == Schedule.input(40)


def test_images_of_one_prompt_that_differ_take_fractions_alone() -> None:
    stages = Stages((2,), 6)
    assert stages.schedule(0.5, (72, 36)) == stages.schedule(0.5, (36,))
    with pytest.raises(ValueError, match=r"must be a fraction for images .* here 36, 72, got 30"):
        stages.schedule(30, (72, 36))


@pytest.mark.parametrize("layers", [(0,), (3,), (0, 2, 4)])
def test_a_schedule_to_patch_with_has_the_stages(layers: tuple[int, ...]) -> None:
    assert Stages(layers, 6).some_schedule.layers == layers
