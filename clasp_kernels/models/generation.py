"""The images and categories of one ``generate`` call, on their way to its first forward.

Images and categories go through ``generate`` in one object that transformers can neither expand
for beams, encode ahead of the prefill, move nor copy; each image is encoded and pruned once.
"""

from __future__ import annotations

import inspect
from dataclasses import dataclass
from typing import Any

#: The keyword under which the object travels, from ``generate`` to ``forward``.
GENERATION = "clasp_generation"


@dataclass(eq=False)
class Generation:
    """The images of one ``generate`` call and the category of each of its prompts."""

    visuals: dict[str, Any]
    """The arguments of forward that hold images and videos, and what belongs to them."""
    categories: tuple[str, ...]
    columns: int
    """Of the prompts, as ``generate`` was given them."""
    appended: int = 0
    """How many columns have been generated, or drafted, before the forward that comes next."""
    reached: bool = False
    """Whether a forward of ours has seen it."""

    def check_reached(self) -> None:
        """
        Raises:
            RuntimeError: the first forward was not ours, so the images were never seen.
        """
        if not self.reached:
            raise RuntimeError(
                "the model's forward was replaced after apply_clasp by one that does not lead to "
                "it, so the images were not seen; undo that, or remove() the handle and apply again"
            )

    def repeats(self, rows: int) -> int:
        """Rows per prompt: beams or returned sequences."""
        repeats, rest = divmod(rows, len(self.categories))
        if rest:
            raise ValueError(
                f"generate was called with {len(self.categories)} prompts, but forward has "
                f"{rows} rows, which is not a multiple of them"
            )
        return repeats

    def __deepcopy__(self, memo: dict[int, Any]) -> Generation:
        return self  # what drafts tokens copies every keyword of the model that it drafts for


class ImageDrafter:
    """An assistant model as ``generate`` sees it; the assistant itself is not touched.

    The assistant gets the images as every unpruned model does, if it takes images at all.
    """

    def __init__(self, assistant: Any, generation: Generation) -> None:
        self._assistant = assistant
        self._images = generation.visuals

    def __getattr__(self, name: str) -> Any:
        return getattr(vars(self)["_assistant"], name)

    def generate(self, *args: Any, **kwargs: Any) -> Any:
        """The assistant's own ``generate``, with images in place of the travelling object."""
        # Encodings are kept in a dictionary that both models would write to.
        for of_the_other_model in (GENERATION, "mm_encoder_outputs"):
            kwargs.pop(of_the_other_model, None)
        takes = inspect.signature(self._assistant.forward).parameters
        images = {name: value for name, value in self._images.items() if name in takes}
        # Some releases hand on what belongs to images and holds no pixels.
        return self._assistant.generate(*args, **{**kwargs, **images})
