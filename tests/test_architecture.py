"""Imports and includes point one way: from the user-facing code to the kernels."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]

# The folders of csrc/ that each folder may include from.
ROOMS = {
    "shared": set(),
    "simd": {"shared"},
    "algorithms": {"simd", "shared"},
    "binding": {"shared"},
    "cpu": {"algorithms", "simd", "shared", "binding"},
    "cuda": {"shared", "binding"},
}
# The parts of the package that each part may import at its own import.
PARTS = {
    "triton": set(),
    "reference": set(),
    "backends": {"triton"},
    "ops": {"backends", "reference", "triton", "upload"},
    "policy": set(),
    "rules": {"ops", "upload"},
    "models": {"ops", "backends", "policy", "rules", "upload"},
    "explore": {"models", "policy", "rules", "bundled"},
    "calibrate": {"models", "policy"},
    "batch": set(),
    "integrations": {"batch", "models", "policy"},
}
# Modules without further imports, which any part may import.
LEAVES = {"_integers", "_run_folder", "_version", "_warn", "_with_torch"}


@pytest.mark.parametrize("room", ROOMS)
def test_includes_point_one_way(room: str) -> None:
    files = [path for path in (ROOT / "csrc" / room).iterdir() if path.suffix != ".md"]
    assert files
    for path in files:
        included = set(re.findall(r'#\s*include "(\w+)/', path.read_text()))
        assert included <= ROOMS[room] | {room}, path


def test_every_room_is_known() -> None:
    assert {path.name for path in (ROOT / "csrc").iterdir()} == ROOMS.keys()


@pytest.mark.parametrize("part", PARTS)
def test_imports_point_one_way(part: str) -> None:
    package = ROOT / "clasp_kernels"
    files = sorted((package / part).rglob("*.py")) or [package / f"{part}.py"]
    for path in files:
        imported = set(parts_imported_by(path))
        assert imported <= PARTS[part] | LEAVES | {part}, path


def test_nothing_imports_an_integration() -> None:
    package = ROOT / "clasp_kernels"
    own = package / "integrations"
    for path in package.rglob("*.py"):
        assert own in path.parents or "integrations" not in parts_imported_by(path), path


def parts_imported_by(path: Path) -> Iterator[str]:
    """Yield the parts of the package that a module imports anywhere, except for type checking."""
    package = path.relative_to(ROOT).with_suffix("").parts[:-1]
    tree = ast.parse(path.read_text())
    for_types = {
        id(inner)
        for node in ast.walk(tree)
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test)
        for inner in ast.walk(node)
    }
    for node in ast.walk(tree):
        if id(node) in for_types:
            continue
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            base = package[: len(package) - node.level + 1] if node.level else ()
            module = ".".join([*base, *([node.module] if node.module else [])])
            names = [f"{module}.{alias.name}" for alias in node.names]
        else:
            continue
        for name in names:
            first, _, rest = name.partition(".")
            if first == "clasp_kernels" and rest:
                yield PUBLIC.get(rest.split(".")[0], rest.split(".")[0])


# The parts that the names exported by the package come from.
PUBLIC = {
    **dict.fromkeys(
        [
            *("Selection", "attention_salience", "complete_tokens", "cover_tokens"),
            "fuse_layers",
            *("gather_tokens", "merge_tokens", "prune_tokens", "select_pivots", "select_tokens"),
        ],
        "ops",
    ),
    **dict.fromkeys(["backend_report", "use_backend"], "backends"),
    "__version__": "_version",
}
