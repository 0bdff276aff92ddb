"""Shared by the policy modules: rounding, and checks whose errors name the field."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from numbers import Real
from pathlib import Path
from typing import Any


def finite_number(field: str, value: object, allowed: str) -> float:
    """Return ``value`` as a float, or raise a ValueError that names ``field``."""
    if isinstance(value, bool) or not isinstance(value, Real) or not math.isfinite(value):
        raise ValueError(f"{field} must be {allowed}, got {value!r}")
    return float(value)


def category_name(field: str, value: object) -> str:
    """Return ``value`` if it can name a category, or raise a ValueError that names ``field``."""
    if not isinstance(value, str) or not value:
        raise ValueError(f"{field} must be a category name, got {value!r}")
    return value


def listed(value: Any) -> object:
    """Convert a 1D array to a list; return anything else unchanged."""
    return value.tolist() if getattr(value, "ndim", 0) == 1 else value


def round_half_up(value: float) -> int:
    """Round to the nearest integer, halves up. Python's ``round`` would round halves to even."""
    return math.floor(value + 0.5)


def known_fields(where: str, data: Mapping[str, Any], known: tuple[str, ...]) -> None:
    """Raise a ValueError for unknown fields, which are most often typos."""
    unknown = [name for name in data if name not in known]
    if unknown:
        raise ValueError(
            f"{where} has unknown field(s) {', '.join(map(repr, unknown))}; "
            f"allowed: {', '.join(known)}"
        )


def as_mapping(field: str, value: object) -> Mapping[str, Any]:
    """Return ``value`` if it is a mapping, or raise a ValueError that names ``field``."""
    if not isinstance(value, Mapping):
        raise ValueError(f"{field} must be a JSON object, got {type(value).__name__}")
    return value


def read_json(path: str | Path) -> Any:
    """Load JSON from ``path``. A syntax error raises a ValueError with the file and line."""
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
    """Write ``data`` as indented JSON that is easy to read and diff."""
    text = json.dumps(data, indent=2, ensure_ascii=False)
    Path(path).write_text(text + "\n", encoding="utf-8")
