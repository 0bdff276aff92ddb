"""When Triton recompiles kernels for the launchers, tested without a GPU.

`make compile-check` compiles every case for every architecture. These tests only ask Triton which
compilations a call needs, and compile one case. They run in other processes, because this process
may have loaded the kernels for the interpreter, and then they cannot be compiled.
"""

from __future__ import annotations

import importlib.util
import json
import os
from pathlib import Path
from typing import Any

import pytest
from interpreter import python

ROOT = Path(__file__).resolve().parent.parent

pytestmark = [
    pytest.mark.deep,
    pytest.mark.skipif(
        importlib.util.find_spec("triton") is None, reason="triton is not installed"
    ),
]


def answer(code: str, **environment: str) -> Any:
    """Run ``code`` in an interpreter that compiles kernels; return the JSON that it prints."""
    path = os.pathsep.join(str(folder) for folder in (ROOT, ROOT / "tools"))
    done = python(code, PYTHONPATH=path, TRITON_INTERPRET="0", **environment)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


# Groups of calls that share their compilations, by launcher and reason.
CLASSES: dict[str, dict[str, list[dict[str, Any]]]] = {
    "fuse_layers": {
        "any number of tokens and categories": [{}, {"N": 577}, {"N": 1}, {"categories": 1}],
        "no categories": [{"categories": 0}, {"categories": 0, "N": 30}],
        "another number of layers": [{"L": 24}, {"L": 24, "N": 30}],
        "another D, layers that are aligned to no more than 2 bytes": [
            {"D": 1001},
            {"D": 1001, "N": 30},
        ],
        "norms": [{"normalize": "l2"}, {"normalize": "l2", "N": 30}],
    },
    "attention_salience": {
        "513 to 1024 keys": [{}, {"S": 577}, {"S": 1000, "T": 40}],
        "257 to 512 keys": [{"S": 300}, {"S": 300, "T": 1}, {"S": 500, "T": 33}],
        "more keys, more than 32 rows": [
            {"S": 4096},
            {"S": 20000, "T": 48},
            {"S": 4096, "start": 35},
        ],
        "more keys, up to 16 rows": [{"S": 4096, "T": 1}, {"S": 9000, "T": 3}],
        "a mask": [{"masked": True}, {"masked": True, "S": 624}],
        "a mask at a stride that 16 does not divide": [
            {"masked": True, "S": 1000},
            {"masked": True, "S": 577},
        ],
    },
    "merge_tokens": {
        "any number of tokens": [{}, {"N": 577}, {"N": 2880, "R": 320}],
        "indices at a stride that 16 does not divide": [{"R": 58}, {"R": 50}],
        "a mask": [{"masked": True}, {"masked": True, "N": 592}],
        "a mask at a stride that 16 does not divide": [
            {"masked": True, "N": 577},
            {"masked": True, "N": 1000},
        ],
    },
    "gather_tokens": {
        "strides that 16 divides": [{}, {"N": 577}, {"N": 2880, "R": 320}, {"N": 1, "R": 16}],
        "indices at a stride that 16 does not divide": [{"R": 58}, {"R": 321}],
        "another D": [{"D": 1001}, {"D": 1001, "N": 2880}],
        "another dtype": [{"scalar": "float32"}, {"scalar": "float32", "N": 300}],
    },
    "select_pivots": {
        "few tokens or too many to sort": [{}, {"K": 1}, {"K": 320}, {"N": 20000}],
        "rows at a stride that 16 does not divide": [{"N": 577}, {"N": 1000}, {"N": 8}],
        "up to 4096 tokens, up to 64 pivots": [{"N": 2880}, {"N": 4096, "K": 20}],
        "up to 4096 tokens, up to 512 pivots": [{"N": 2880, "K": 320}, {"N": 3200, "K": 500}],
        "a mask": [{"masked": True}, {"masked": True, "N": 64}],
    },
    "complete_tokens": {
        "up to 1024 tokens": [{}, {"N": 577}, {"N": 1000}, {"P": 64}, {"M": 320}, {"M": 1}],
        "up to 512 tokens": [{"N": 300}, {"N": 512, "M": 7}],
        "too many tokens for all similarities": [{"N": 8193}, {"N": 16384}, {"N": 16384, "M": 1}],
        "selected tokens at a stride that 16 does not divide": [{"P": 33}, {"P": 7, "N": 1024}],
        "a mask": [{"masked": True}, {"masked": True, "N": 1024}],
        "weights": [{"weighted": True}, {"weighted": True, "N": 1024, "M": 7}],
        "weights at a stride that 16 does not divide": [
            {"weighted": True, "N": 577},
            {"weighted": True, "N": 1000},
        ],
    },
    "cover_tokens": {
        "513 to 1024 tokens": [{}, {"N": 577}, {"N": 1000}, {"P": 64}, {"M": 320}, {"M": 1}],
        "257 to 512 tokens": [{"N": 300}, {"N": 512, "M": 7}],
        "too many tokens for all similarities": [{"N": 8193}, {"N": 16384}, {"N": 16384, "M": 7}],
        "a mask": [{"masked": True}, {"masked": True, "N": 1024}],
        "weights": [{"weighted": True}, {"weighted": True, "N": 1024, "M": 7}],
        "a preference": [{"preferred": True}, {"preferred": True, "N": 1024, "M": 7}],
        "a count for each image": [{"ragged": True}, {"ragged": True, "M": 7}],
    },
    "select_tokens": {
        "up to 1024 tokens": [{}, {"N": 1024}, {"R": 320}, {"R": 58, "P": 7}],
        "up to 512 tokens": [{"N": 304}, {"N": 512, "R": 7}],
        "too many tokens for all similarities": [{"N": 8208}, {"N": 16384, "R": 7}],
        "salience at a stride that 16 does not divide": [{"N": 577}, {"N": 1000, "R": 7}],
        "a budget for each image": [{"ragged": True}, {"ragged": True, "R": 7}],
        "weights": [{"weighted": True}, {"weighted": True, "N": 1024, "R": 7}],
    },
}

# Prints the keys of the compilations that a call of a launcher needs.
KEYS = """
import importlib, json, torch, triton_cases
from triton_stub import StubDriver, specializations

def launcher_of(op):
    return getattr(importlib.import_module(f"clasp_kernels.triton.{op}"), op)

def keys(op, build, batch, options):
    return sorted(specializations(lambda: launcher_of(op)(*build(batch, **options))))
"""
EVERY_CASE = """
print(json.dumps([
    (f"{op}({case})", [keys(op, case.build, batch, case.options) for batch in (0, 1, 2, 3, 64)])
    for op, cases in triton_cases.CASES.items()
    for case in cases
]))
"""
EVERY_CLASS = """
def from_text(options):
    return {
        key: getattr(torch, value) if key == "scalar" else value for key, value in options.items()
    }

print(json.dumps([
    (f"{op}, {reason}", [
        keys(op, getattr(triton_cases, op)().build, 2, from_text(options)) for options in calls
    ])
    for op, classes in CLASSES.items()
    for reason, calls in classes.items()
]))
"""


def test_no_batch_size_has_anything_compiled_again() -> None:
    calls = answer(KEYS + EVERY_CASE)
    assert calls
    for call, (empty, first, *others) in calls:
        assert empty == [], f"{call} launches a kernel for an empty batch"
        assert first, f"{call} launches nothing"
        assert all(other == first for other in others), call


def test_sizes_have_kernels_compiled_again_for_the_reasons_listed_alone() -> None:
    seen: dict[str, str] = {}
    for reason, calls in answer(f"CLASSES = {CLASSES!r}{KEYS}{EVERY_CLASS}"):
        first = calls[0]
        assert all(call == first for call in calls), f"{reason}: not one class"
        assert seen.setdefault(str(first), reason) == reason, f"{reason}: no class of its own"


def test_a_kernel_is_compiled_once_for_all_batches(tmp_path: Path) -> None:
    """Really compile, to confirm the keys that the other tests rely on."""
    code = """
driver = StubDriver(90)
case = triton_cases.gather_tokens()
with driver.active():
    for batch in (1, 2, 3, 8, 64):
        launcher_of("gather_tokens")(*case.arguments(batch))
print(json.dumps([len(driver.launches), len(driver.seconds)]))
"""
    assert answer(KEYS + code, TRITON_CACHE_DIR=str(tmp_path)) == [5, 1]
