"""Carry the images and categories of one ``generate`` call to its first forward.

Both are wrapped in one object that transformers does not expand for beams, encode before the
prefill, move or copy. So each image is encoded and pruned once.
"""

from __future__ import annotations

import inspect
from dataclasses import dataclass
from typing import Any

#: The keyword argument that passes the object from ``generate`` to ``forward``.
GENERATION = "clasp_generation"

#: Arguments of ``generate`` for greedy search, whatever the model's own generation config says.
GREEDY = {
    "do_sample": False,
    "num_beams": 1,
    "num_return_sequences": 1,
    "return_dict_in_generate": False,
    "use_cache": True,
}


@dataclass(eq=False)
class Generation:
    """The images of one ``generate`` call and the category of each of its prompts."""

    visuals: dict[str, Any]
    """Forward's arguments that hold images and videos, with their sizes and the like."""
    categories: tuple[str, ...]
    columns: int
    """Columns of the prompts that ``generate`` was given."""
    appended: int = 0
    """Columns that were generated or drafted before the next forward."""
    reached: bool = False
    """Whether the patched forward has received this object."""

    def check_reached(self) -> None:
        """
        Raises:
            RuntimeError: the first forward was not the patched one, so the images were not used.
        """
        if not self.reached:
            raise RuntimeError(
                "the model's forward was replaced after apply_clasp by one that does not call it, "
                "so the images were not used; undo that, or remove() the handle and apply again"
            )

    def repeats(self, rows: int) -> int:
        """Return the rows per prompt (beams or returned sequences)."""
        repeats, rest = divmod(rows, len(self.categories))
        if rest:
            raise ValueError(
                f"generate was called with {len(self.categories)} prompts, but forward has "
                f"{rows} rows, which is not a multiple of them"
            )
        return repeats

    def __deepcopy__(self, memo: dict[int, Any]) -> Generation:
        return self  # assisted generation deep-copies the model's keyword arguments


class ImageDrafter:
    """Wrap the assistant model of ``generate``; the assistant itself is not changed.

    The wrapper passes the plain image arguments to an assistant that takes images.
    """

    def __init__(self, assistant: Any, generation: Generation) -> None:
        self._assistant = assistant
        self._images = generation.visuals

    def __getattr__(self, name: str) -> Any:
        return getattr(vars(self)["_assistant"], name)

    def generate(self, *args: Any, **kwargs: Any) -> Any:
        """Call the assistant's ``generate`` with plain images instead of the ``Generation``."""
        # Without the pop, both models would write their encodings to one dictionary.
        for of_the_other_model in (GENERATION, "mm_encoder_outputs"):
            kwargs.pop(of_the_other_model, None)
        takes = inspect.signature(self._assistant.forward).parameters
        images = {name: value for name, value in self._images.items() if name in takes}
        # Some releases pass image arguments other than pixels themselves; ours replace them.
        return self._assistant.generate(*args, **{**kwargs, **images})
