"""Every script in examples/ runs and prints correct numbers."""

from __future__ import annotations

import re
import runpy
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from forking import python_with_torch

from clasp_kernels.bundled import tiny_vlm_path

EXAMPLES = Path(__file__).resolve().parent.parent / "examples"
OTHERS = {"custom_profile", "custom_rule", "ops_only"}
# For each family: the tokens that each image or video keeps by default, the total number of visual
# tokens, and the number of other columns (text, tokens around images, newlines, timestamps).
FAMILIES = {
    "llava": ([9], 36, 6),
    "llava_next": ([21], 84, 6 + 4),
    "llava_onevision": ([21], 84, 6 + 4),
    "video_llava": ([9, 74], 36 + 8 * 37, 6),
    "qwen2_vl": ([4, 12], 16 + 3 * 16, 6 + 2 + 2),
    "qwen2_5_vl": ([4, 12], 16 + 3 * 16, 6 + 2 + 2),
    "qwen3_vl": ([4, 12], 16 + 3 * 16, 6 + 2 + 3 * 3),
    "internvl": ([2], 9, 6),
    "gemma3": ([2], 9, 6 + 2),
    "paligemma": ([9], 36, 6),
    "qwen3_5": ([4, 12], 16 + 3 * 16, 6 + 2 + 3 * 3),
    "mistral3": ([3], 12, 6),
    "idefics3": ([2], 9, 6),
    "smolvlm": ([2], 9, 6),
}
# KiB of a column: keys and values of 2 heads of width 8 in 4 layers, in float32.
KIB_A_COLUMN = 2 * 2 * 8 * 4 * 4 / 1024


@pytest.fixture
def run(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Callable[..., list[str]]:
    """Return a function that runs a script in this process and returns its output lines."""

    def run(name: str, *options: str) -> list[str]:
        monkeypatch.syspath_prepend(EXAMPLES)
        monkeypatch.setattr(sys, "argv", [f"{name}.py", *options])
        runpy.run_path(str(EXAMPLES / f"{name}.py"), run_name="__main__")
        return capsys.readouterr().out.splitlines()

    return run


def test_every_script_is_tested_and_listed() -> None:
    scripts = {path.stem for path in EXAMPLES.glob("[!_]*.py")}
    assert scripts == OTHERS | set(FAMILIES)
    listed = re.findall(r"^(?:\||-) \[(\w+)\.py\]", (EXAMPLES / "README.md").read_text(), re.M)
    assert sorted(listed) == sorted(scripts)


@pytest.mark.parametrize("family", FAMILIES)
def test_a_family_is_pruned_to_a_quarter(run: Callable[..., list[str]], family: str) -> None:
    kept, total, others = FAMILIES[family]
    tokens, prompt, cache, times, note = run(family)
    said = re.fullmatch(
        r"kept ([\d +]+) of (\d+) visual tokens, (\d+) of them pivots \(category 'general'\)",
        tokens,
    )
    assert said is not None, tokens
    assert list(map(int, said[1].split(" + "))) == kept
    assert int(said[2]) == total
    assert 1 <= int(said[3]) < sum(kept)
    before, after = total + others, sum(kept) + others
    assert prompt == f"prompt: {before} columns, pruned {after}"
    # Every other layer of Qwen3.5 is recurrent and has no keys and values.
    each = KIB_A_COLUMN / 2 if family == "qwen3_5" else KIB_A_COLUMN
    sizes = (f"{columns * each:.1f} KiB" for columns in (before, after))
    assert cache == "KV cache after the prompt: {}, pruned {}".format(*sizes)
    assert all(float(time) > 0 for time in re.findall(r"\d+\.\d+", times))
    assert "random" in note


def test_a_model_of_ones_own_is_asked_through_its_chat_template(
    run: Callable[..., list[str]],
) -> None:
    lines = run("llava", "--model", str(tiny_vlm_path()), "--device", "cpu", "--budget", "72")
    assert lines[0].startswith("kept 72 of 144 visual tokens")
    assert lines[0].endswith("(category 'counting')")
    assert lines[-2:] == ["answer: 3", "answer, pruned: 3"]


def test_a_question_without_a_model_is_refused(
    run: Callable[..., list[str]], capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit):
        run("llava", "--budget", "4", "--question", "How many?")
    assert "--question needs --model" in capsys.readouterr().err


def test_a_profile_and_a_router_of_ones_own(run: Callable[..., list[str]]) -> None:
    assert run("custom_profile") == [
        "What does the sign say? 7K",
        "  signs: 32 tokens kept, 24 of them pivots",
        "Describe the scene. snow",
        "  places: 8 tokens kept, 1 of them pivots",
        "What color is the ring? orange",
        "  general: 16 tokens kept, 8 of them pivots",
    ]


@pytest.mark.usefixtures("own_rules")
def test_a_rule_of_ones_own_beside_the_others(run: Callable[..., list[str]]) -> None:
    question, *lines = run("custom_rule")
    assert question == "What does the sign say?"
    answers = {line.split()[0]: line.split()[1] for line in lines}
    assert {"clasp", "attention", "divprune", "dart", "uniform", "centred"} <= answers.keys()
    assert answers["clasp"] == "7K"
    assert all(len(re.findall(r"\d+", line.partition("[")[2])) == 16 for line in lines)


def test_the_ops_need_no_transformers() -> None:
    code = f"""
import runpy, sys
runpy.run_path({str(EXAMPLES / "ops_only.py")!r}, run_name="__main__")
assert "transformers" not in sys.modules
"""
    done = python_with_torch(code)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines() == [
        "fused: [3, 576, 256]",
        "salience: [3, 576]",
        "kept of each image: [64, 128, 32]",
        "pivots of each image: [48, 64, 8]",
        "tokens: [3, 576, 256] -> [3, 128, 256]",
        "filled with zeros: 160 rows",
    ]
