"""The default categories of prompts. A profile may define its own set."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType

CATEGORIES: Mapping[str, str] = MappingProxyType(
    {
        "ocr": "reading text, numbers, signs, documents, charts",
        "attribute": "what a thing is or looks like: identity, colour, material, state, presence",
        "counting": "how many there are",
        "spatial": "where things are: relations, positions, grounding",
        "scene": "the image as a whole: describe, caption, setting, activity, mood",
        "knowledge": "facts or reasoning beyond what is seen: why, explain, compute, infer",
        "general": "nothing else fits",
    }
)
"""Category name -> what it covers."""

FALLBACK_CATEGORY = "general"
"""The category of a prompt that matches nothing. Every profile must have it."""
