"""The ``clasp`` command."""

from __future__ import annotations

import os
import sys


def main() -> None:
    """Run ``clasp``. Without the [cli] extra, print how to install it; ``clasp doctor`` still
    prints its report as plain text."""
    try:
        _keep_docstrings()
        from clasp_kernels.cli.terminal import prepared_terminal

        with prepared_terminal():
            try:
                from clasp_kernels.cli.app import app
            except ModuleNotFoundError as error:
                if error.name not in ("typer", "rich"):
                    raise
                missing = (
                    f"clasp: {error.name} is not installed; the command line needs the [cli] "
                    'extra: pip install "clasp-kernels[cli]"'
                )
                if sys.argv[1:] != ["doctor"]:
                    sys.exit(missing)
                # The report for bug reports must work wherever the ops are installed.
                from clasp_kernels.cli.environment import print_report

                print_report()
                print(missing, file=sys.stderr)
                return
            app(prog_name="clasp")
    except KeyboardInterrupt:  # Typer's own handling begins only inside a command
        sys.exit(130)


def _keep_docstrings() -> None:
    """Restart with ``-O`` if Python runs with ``-OO``, which removes docstrings.

    transformers reads its own docstrings at import, and the help of the commands is docstrings.
    """
    if sys.flags.optimize < 2:
        return
    last = len(sys.orig_argv) - len(sys.argv) + 1  # the interpreter's own arguments end here
    given = sys.orig_argv[1:last]
    options = [option for option in given if option not in ("-O", "-OO")]
    if options == given and os.environ.get("PYTHONOPTIMIZE") == "1":
        return  # -OO came from elsewhere; restarting again would loop forever
    command = [sys.executable, *options, *sys.orig_argv[last:]]
    os.execve(sys.executable, command, {**os.environ, "PYTHONOPTIMIZE": "1"})
