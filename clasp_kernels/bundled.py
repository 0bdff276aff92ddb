"""Paths of the data that ships with the package."""

from __future__ import annotations

from importlib import resources
from pathlib import Path


def bundled_path(*parts: str) -> Path:
    """The path of a file or folder under ``clasp_kernels/assets``.

    >>> bundled_path("profiles", "llava.json").name
    'llava.json'
    """
    # The package is never imported from an archive, because its compiled library could not be
    # loaded.
    path = Path(str(resources.files("clasp_kernels"))).joinpath("assets", *parts)
    if not path.exists():
        raise FileNotFoundError(
            f"{path} is missing from this installation of clasp_kernels; reinstall the package"
        )
    return path


def tiny_vlm_path() -> Path:
    """The path of the bundled tiny LLaVA, for ``from_pretrained``."""
    return bundled_path("tiny_vlm")
