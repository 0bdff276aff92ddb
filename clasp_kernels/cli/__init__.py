"""The ``clasp`` command."""

from __future__ import annotations

import sys


def main() -> None:
    """Run ``clasp``; without the [cli] extra, say how to get it."""
    try:
        from clasp_kernels.cli.app import app
    except ModuleNotFoundError as error:
        if error.name not in ("typer", "rich"):
            raise
        sys.exit(
            f"clasp: {error.name} is not installed; the command line needs the [cli] extra: "
            'pip install "clasp-kernels[cli]"'
        )
    app(prog_name="clasp")
