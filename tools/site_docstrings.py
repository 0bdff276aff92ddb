"""A Griffe extension for mkdocs.yml that converts docstrings to Markdown."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import griffe

# Griffe runs this file by its path, so its folder is not on sys.path.
sys.path.insert(0, str(Path(__file__).parent))
from site_hooks import docstring_as_markdown


class MarkdownDocstrings(griffe.Extension):
    def on_instance(self, *, obj: Any, **kwargs: Any) -> None:
        if obj.docstring is not None:
            obj.docstring.value = docstring_as_markdown(obj.docstring.value)
