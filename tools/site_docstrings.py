"""Docstrings as the site shows them: a Griffe extension that `mkdocs.yml` names.

Docstrings are written for whoever reads the source or calls help(). Markdown would take a doctest for
quotations, so here it becomes a block of code; what is left of reStructuredText is turned into
Markdown likewise.
"""

from __future__ import annotations

import re
from typing import Any

import griffe

# A doctest, with what it prints, up to the next blank line or the end.
_DOCTEST = re.compile(r"(?:^|(?<=\n\n))(>>> .*?)(?=\n\n|\Z)", re.DOTALL)
_ROLE = re.compile(r":(?:func|class|meth|mod):`([^`]+)`")
_TERM = re.compile(r"^(``[^\n]+``)\n    (?=\S)", re.MULTILINE)


class MarkdownDocstrings(griffe.Extension):
    def on_instance(self, *, obj: Any, **kwargs: Any) -> None:
        if obj.docstring is not None:
            obj.docstring.value = as_markdown(obj.docstring.value)


def as_markdown(docstring: str) -> str:
    """
    >>> print(as_markdown("As :func:`f`::\\n\\n    x\\n\\n>>> f(1)\\n2"))
    As `f`:
    <BLANKLINE>
        x
    <BLANKLINE>
    ```pycon
    >>> f(1)
    2
    ```
    """
    text = _DOCTEST.sub(r"```pycon\n\1\n```", docstring)
    text = re.sub(r"::$", ":", text, flags=re.MULTILINE)
    text = _TERM.sub(r"\n\1\n:   ", text)
    return _ROLE.sub(r"`\1`", text)
