"""Options that several commands have."""

from __future__ import annotations

import re
from typing import Annotated

import typer

ModelName = Annotated[
    str | None,
    typer.Option(
        metavar="PATH_OR_ID",
        help="Model folder or Hugging Face id; the bundled tiny LLaVA if left out.",
        show_default=False,
    ),
]
ProfileFile = Annotated[
    str | None,
    typer.Option(
        metavar="FILE",
        help="Profile JSON; the model's own or its family's if left out.",
        show_default=False,
    ),
]
Device = Annotated[
    str, typer.Option(metavar="NAME", help="auto, cpu, cuda, cuda:1, ...; auto prefers a GPU.")
]


def count_or_fraction(text: str) -> int | float:
    """Return a number of tokens, or a fraction, which has a point; 0 if the text is neither.

    >>> count_or_fraction("64"), count_or_fraction("0.25"), count_or_fraction("many")
    (64, 0.25, 0)
    """
    try:
        return int(text) if re.fullmatch(r"\d+", text) else float(text)
    except ValueError:
        return 0
