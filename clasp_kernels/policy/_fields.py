"""Shared by the policy files: rounding, and checks that name the field and what it may be."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from numbers import Real
from pathlib import Path
from typing import Any


def finite_number(field: str, value: object, allowed: str) -> float:
    """``value`` as a float, or a ValueError that names ``field``."""
    if isinstance(value, bool) or not isinstance(value, Real) or not math.isfinite(value):
        raise ValueError(f"{field} must be {allowed}, got {value!r}")
    return float(value)


def listed(value: Any) -> object:
    """A row of an array as a list; anything else as it is."""
    return value.tolist() if getattr(value, "ndim", 0) == 1 else value


def round_half_up(value: float) -> int:
    """The nearest integer, halves upwards, so that 2.5 and 3.5 round in the same direction."""
    # Python's round() goes to even.
    return math.floor(value + 0.5)


def known_fields(where: str, data: Mapping[str, Any], known: tuple[str, ...]) -> None:
    """Refuse fields that nothing reads: they are most often a typing slip."""
    unknown = [name for name in data if name not in known]
    if unknown:
        raise ValueError(
            f"{where} has unknown field(s) {', '.join(map(repr, unknown))}; "
            f"allowed: {', '.join(known)}"
        )


def as_mapping(field: str, value: object) -> Mapping[str, Any]:
    """``value`` as a JSON object, or a ValueError that names ``field``."""
    if not isinstance(value, Mapping):
        raise ValueError(f"{field} must be a JSON object, got {type(value).__name__}")
    return value


def read_json(path: str | Path) -> Any:
    """The JSON in ``path``; a syntax error names the file and the line."""
    try:
        text = Path(path).read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise ValueError(
            f"{path} is not UTF-8 text: {error.reason} at byte {error.start}"
        ) from None
    try:
        return json.loads(text)
    except json.JSONDecodeError as error:
        raise ValueError(
            f"{path} is not valid JSON: {error.msg} at line {error.lineno}, column {error.colno}"
        ) from None


def write_json(path: str | Path, data: Mapping[str, Any]) -> None:
    """Write ``data`` so that a person can read and diff it."""
    text = json.dumps(data, indent=2, ensure_ascii=False)
    Path(path).write_text(text + "\n", encoding="utf-8")
