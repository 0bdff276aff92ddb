"""Options that several commands have."""

from __future__ import annotations

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
