"""The stages of a calibration: it drops tokens before the LLM, or after some of its layers."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from clasp_kernels.policy import Schedule


@dataclass(frozen=True)
class Stages:
    """The stages of a calibration. A budget is the mean of an image's tokens over decoder layers.

    >>> Stages((2, 4), num_layers=6).schedule(81, [144])
    Schedule({2: 67, 4: 32})
    >>> Stages().schedule(81, [144])
    Schedule({0: 81})
    """

    layers: tuple[int, ...] = (0,)
    """Decoder layers that have run when tokens are dropped, ascending. 0 is before the LLM."""
    num_layers: int = 1
    """The decoder layers of the model."""

    @property
    def are_inside(self) -> bool:
        """Whether tokens are dropped inside the decoder."""
        return self.layers != (0,)

    @property
    def some_schedule(self) -> Schedule:
        """A schedule of these stages, to patch a model for them. It is replaced for each budget."""
        return Schedule({layer: 0.5**stage for stage, layer in enumerate(self.layers, start=1)})

    def schedule(self, budget: int | float, num_tokens: Sequence[int]) -> Schedule:
        """Return the schedule of a budget, for a prompt whose images have ``num_tokens`` tokens.

        Inside the decoder it is ``Schedule.progressive``: counts fall by one ratio from stage to
        stage. Before the LLM an image with no more tokens than the budget keeps all of them.

        Raises:
            ValueError: no schedule of these stages has the mean, or the images of the prompt differ
                and would need several schedules.
        """
        if not self.are_inside:
            return Schedule.input(budget)
        counts = sorted(set(num_tokens))
        if isinstance(budget, int) and len(counts) > 1:
            raise ValueError(
                f"average must be a fraction for images with different numbers of visual tokens in "
                f"one prompt, here {', '.join(map(str, counts))}, got {budget}"
            )
        return Schedule.progressive(budget, self.layers, self.num_layers, counts[0])

    def __str__(self) -> str:
        """Say where tokens are dropped.

        >>> print(Stages(), "|", Stages((0, 4), 6), "|", Stages((2, 6, 15), 32))
        before the LLM | before the LLM and after layer 4 of 6 | after layers 2, 6 and 15 of 32
        """
        inside = [str(layer) for layer in self.layers if layer > 0]
        places = ["before the LLM"] if 0 in self.layers else []
        if inside:
            *others, last = inside
            listed = f"layers {', '.join(others)} and {last}" if others else f"layer {last}"
            places.append(f"after {listed} of {self.num_layers}")
        return " and ".join(places)


BEFORE_LLM = Stages()
