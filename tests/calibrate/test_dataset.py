"""Reading the questions of a calibration, and refusing what cannot be used."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from clasp_kernels.calibrate.dataset import Question, distinct, limited, read_questions, routed


def written(folder: Path, *rows: Any) -> Path:
    """Write a JSONL file; strings are written as they are."""
    (folder / "a.png").write_bytes(b"one image")
    (folder / "b.png").write_bytes(b"another")
    lines = [row if isinstance(row, str) else json.dumps(row) for row in rows]
    path = folder / "data.jsonl"
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return path


def row(**changes: Any) -> dict[str, Any]:
    return {"image": "a.png", "question": "What?", "answer": "this", **changes}


def test_fields_are_read_and_others_ignored(tmp_path: Path) -> None:
    path = written(
        tmp_path,
        row(answer=3, id=17),
        "",
        row(image=str(tmp_path / "b.png"), answer=["x", 2.5], category="ocr", score="anls"),
    )
    first, second = read_questions(path)
    assert (first.line, first.text, first.answers) == (1, "What?", ("3",))
    assert first.image == tmp_path / "a.png"
    assert first.category is None and first.scorer is None
    assert (second.line, second.answers) == (3, ("x", "2.5"))
    assert (second.category, second.scorer) == ("ocr", "anls")


@pytest.mark.parametrize(
    ("bad", "said"),
    [
        ("{", "it is not valid JSON"),
        ("[1]", "it must be a JSON object, got list"),
        ({"image": "a.png", "question": "What?"}, "the field 'answer' is missing"),
        (row(answer=""), "answer must be a string that is not blank.*got ''"),
        (row(answer=[]), r"answer must be .* got \[\]"),
        (row(answer=["x", " "]), "answer must be a string that is not blank"),
        (row(answer=True), "answer must be .* got True"),
        (row(answer=None), "answer must be .* got None"),
        (row(question=" "), "question must be a string that is not blank, got ' '"),
        (row(question=3), "question must be a string that is not blank, got 3"),
        (row(image=""), "image must be a string that is not blank"),
        (row(image="none.png"), "the image .*none.png cannot be read: No such file"),
        (row(image="."), "the image .* cannot be read: Is a directory"),
        (row(category=""), "category must be a string"),
        (row(score="bleu"), "score must be one of exact, vqa, relaxed, anls, got 'bleu'"),
    ],
)
def test_a_line_that_cannot_be_used_is_named(tmp_path: Path, bad: Any, said: str) -> None:
    with pytest.raises(ValueError, match=f"line 2: {said}"):
        read_questions(written(tmp_path, row(), bad))


def test_several_bad_lines_are_named_and_the_others_counted(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"line 1: .*line 5: .*and 4 more lines like these"):
        read_questions(written(tmp_path, *["{"] * 9))


def test_a_file_without_questions_or_in_another_encoding_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="it has no questions"):
        read_questions(written(tmp_path, "", " "))
    path = tmp_path / "latin.jsonl"
    path.write_bytes(b"{\xe9}")
    with pytest.raises(ValueError, match="it is not UTF-8 text"):
        read_questions(path)


def test_the_key_is_of_the_content(tmp_path: Path) -> None:
    path = written(tmp_path, row(), row(image="b.png"), row(question="Who?"), row(category="ocr"))
    keys = [question.key for question in read_questions(path)]
    assert len(set(keys)) == 4
    (tmp_path / "copy.png").write_bytes(b"one image")
    again = written(tmp_path, "", row(image="copy.png", answer="that"))
    assert read_questions(again)[0].key == keys[0]  # neither its place nor its right answer


def questions(count: int, category: str | None = "ocr") -> list[Question]:
    return [
        Question(n, Path("a.png"), "hash", f"question {n}", ("x",), category) for n in range(count)
    ]


def test_only_questions_without_a_category_are_routed() -> None:
    some = [*questions(2, None), *questions(1, "scene"), replace(questions(1, None)[0], text="q")]
    asked: list[list[str]] = []

    def route(prompts: list[str]) -> list[str]:
        asked.append(prompts)
        return ["counting", "spatial", "ocr"]

    names = [question.category for question in routed(some, route)]
    assert names == ["counting", "spatial", "scene", "ocr"]
    assert asked == [["question 0", "question 1", "q"]]
    assert routed(questions(2), route) == questions(2)
    assert len(asked) == 1


def test_repeated_questions_are_asked_once() -> None:
    some = questions(3)
    assert distinct([*some, replace(some[1], line=9)]) == some
    with pytest.raises(
        ValueError, match="line 9: it asks what line 1 asks, but has another answer"
    ):
        distinct([*some, replace(some[1], line=9, answers=("x", "y"))])


def test_the_limit_is_of_each_category_and_the_draw_of_the_seed() -> None:
    some = [*questions(20, "ocr"), *questions(3, "scene")]
    drawn = limited(some, 5, seed=1)
    assert [question.category for question in drawn] == ["ocr"] * 5 + ["scene"] * 3
    assert drawn == [question for question in some if question in drawn]  # in the given order
    assert set(limited(some[::-1], 5, seed=1)) == set(drawn)
    assert limited(some, 5, seed=2) != drawn
    assert limited(some, None, seed=1) == some
