"""Every kind of picture: reproducible, split by content, drawn as it says, with true answers."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import numpy as np
import pytest
from kinds import CATEGORIES_OF, KINDS, sample
from pictures import SIDE, Picture
from words import COLORS, PATTERNS, SETTINGS, SHAPES

from clasp_kernels.policy import Router

SEEDS = range(60)
PICTURES = {
    kind: [sample(kind, seed, split) for split in ("train", "heldout") for seed in SEEDS]
    for kind in KINDS
}
NEW = [kind for kind in KINDS if kind != "objects"]
every_kind = pytest.mark.parametrize("kind", KINDS)


@every_kind
def test_a_seed_gives_one_picture(kind: str) -> None:
    first, second = sample(kind, 3, "train"), sample(kind, 3, "train")
    assert first == second and first.kind == kind
    assert np.array_equal(np.asarray(first.render()), np.asarray(second.render()))
    assert first.questions(5) == second.questions(5)
    assert sample(kind, 4, "train") != first


def test_unknown_kinds_and_splits_are_named() -> None:
    with pytest.raises(ValueError, match=r"kind must be one of objects, .*, got 'maps'"):
        sample("maps", 0, "train")
    for kind in KINDS:
        with pytest.raises(ValueError, match='split must be "train" or "heldout", got \'test\''):
            sample(kind, 0, "test")


@every_kind
def test_train_and_heldout_pictures_share_no_content(kind: str) -> None:
    train, heldout = PICTURES[kind][: len(SEEDS)], PICTURES[kind][len(SEEDS) :]
    assert {picture.split for picture in train} == {"train"}
    assert {picture.split for picture in heldout} == {"heldout"}
    assert not {picture.content for picture in train} & {picture.content for picture in heldout}


@every_kind
def test_content_is_what_answers_depend_on(kind: str) -> None:
    """Two pictures of one content answer alike, so held-out answers cannot be remembered."""
    for picture in PICTURES[kind]:
        for question in picture.questions(0):
            if question.category in ("ocr", "scene"):
                assert question.answer in picture.content.replace("/", "|").split("|")


@every_kind
@pytest.mark.parametrize("size", [96, 384])
def test_marks_are_drawn_where_the_picture_says(kind: str, size: int) -> None:
    """Each mark stands out from the same picture without it."""
    for picture in PICTURES[kind][:12]:
        pixels = np.asarray(picture.render(size)).astype(int)
        for mark in picture.marks():
            left, top, right, bottom = mark.box
            assert left >= -1 and top >= -1 and right <= SIDE + 1 and bottom <= SIDE + 1
            left, top, right, bottom = (round(max(edge, 0) * size / SIDE) for edge in mark.box)
            inside = pixels[top:bottom, left:right].reshape(-1, 3)
            if mark.shape:
                assert np.abs(inside - COLORS[mark.color]).max(-1).min() < 12, mark
            else:  # dark ink on a light board or page
                assert inside.sum(-1).max() - inside.sum(-1).min() > 200, mark


@every_kind
def test_marks_do_not_overlap(kind: str) -> None:
    for picture in PICTURES[kind]:
        boxes = [mark.box for mark in picture.marks()]
        for index, (left, top, right, bottom) in enumerate(boxes):
            for other in boxes[:index]:
                apart_x = right <= other[0] + 1e-9 or other[2] <= left + 1e-9
                apart_y = bottom <= other[1] + 1e-9 or other[3] <= top + 1e-9
                assert apart_x or apart_y, picture


def test_patterns_look_different() -> None:
    """Stripes vary along their own axis only; dots and checks along both."""
    from drawing import draw_shape
    from PIL import Image
    from things import SceneObject

    variation = {}
    for pattern in PATTERNS:
        image = Image.new("RGB", (192, 192))
        draw_shape(image, SceneObject("square", "red", (0, 0), (48, 48), 40, pattern), 2.0)
        inner = np.asarray(image.convert("L")).astype(float)[64:128, 64:128]
        variation[pattern] = (
            np.abs(np.diff(inner, axis=0)).mean(),
            np.abs(np.diff(inner, axis=1)).mean(),
        )
    down, right = zip(*variation.values(), strict=True)
    assert down[0] > 10 and right[0] == 0  # horizontal stripes
    assert down[1] == 0 and right[1] > 10  # vertical stripes
    assert min(*down[2:], *right[2:]) > 5


def answer_of(picture: Any, text: str) -> str:
    """The answer by reading the question, independently of how it was made."""
    words = text.rstrip("?.").split()
    if picture.kind == "documents":
        return answer_of_document(picture, words)
    colors = [word for word in words if word in COLORS]
    if "sign" in words or "signs" in words:
        signs = [sign for sign in picture.signs if not colors or sign.color == colors[0]]
        if words[0] == "How":
            return str(len(signs))
        if words[0] == "Is":
            return "yes" if signs else "no"
        [sign] = signs
        return place_of(sign.box) if words[0] in ("Where", "In") else sign.text
    if {"scene", "setting"} & set(words):
        return picture.setting
    singular = [word if word in SHAPES else word.removesuffix("s") for word in words]
    shapes = [word for word in singular if word in SHAPES] or ["cross"] * ("crosses" in words)
    patterns = [pattern for pattern in PATTERNS if text.rstrip("?.").endswith(pattern)]
    chosen = [
        item
        for item in picture.objects
        if (not colors or item.color == colors[0])
        and (not shapes or item.shape == shapes[0])
        and (not patterns or item.pattern == patterns[0])
    ]
    if words[0] == "How":
        return str(len(chosen))
    if words[0] == "Is":
        return "yes" if chosen else "no"
    [item] = chosen
    if words[0] in ("Where", "In"):
        return place_of(item.box)
    if "pattern" in words:
        return str(item.pattern)
    return str(item.color if "color" in words else item.shape)


def place_of(box: tuple[float, float, float, float]) -> str:
    left, top, right, bottom = box
    across = "left" if left + right < SIDE else "right"
    return f"{'top' if top + bottom < SIDE else 'bottom'} {across}"


def answer_of_document(picture: Any, words: list[str]) -> str:
    lines = {line.label: line for line in picture.lines}
    if words[:3] == ["How", "many", "lines"]:
        return str(len(lines))
    if words[0] == "How":
        return str(sum(line.value.startswith(words[-1]) for line in lines.values()))
    if words[0] == "Is":
        return "yes" if words[-1] in lines else "no"
    line = lines[words[-1]]
    if words[0] in ("Where", "In"):
        row, column = line.cell
        return f"{'top' if row < 6 else 'bottom'} {'left' if column < 6 else 'right'}"
    return str(line.value)


@pytest.mark.parametrize("kind", NEW)
def test_answers_are_true(kind: str) -> None:
    asked = 0
    for seed, picture in enumerate(PICTURES[kind]):
        for question in picture.questions(seed):
            assert question.answer == answer_of(picture, question.text), (picture, question)
            asked += 1
    assert asked > 500


@every_kind
def test_every_question_is_routed_to_its_category(kind: str) -> None:
    asked = {
        (question.text, question.category)
        for seed, picture in enumerate(PICTURES[kind])
        for question in picture.questions(seed)
    }
    texts, categories = zip(*sorted(asked), strict=True)
    assert Router().route(list(texts)) == list(categories)
    assert set(categories) == set(CATEGORIES_OF[kind])


@every_kind
def test_counts_presence_and_settings_need_the_whole_picture(kind: str) -> None:
    needs = {
        question.text.split()[0]: question.needs
        for picture in PICTURES[kind]
        for question in picture.questions(1)
    }
    assert needs["How"] == needs["Is"] == "whole" or kind == "objects"
    assert needs["What"] == needs["Where"] == "spot" or kind != "documents"
    for picture in PICTURES[kind]:
        for question in picture.questions(2):
            whole = question.category in ("counting", "scene") or question.kind == "presence"
            assert question.needs == ("whole" if whole else "spot"), question


@pytest.mark.parametrize("kind", ["objects", "documents", "signs"])
def test_texts_run_from_left_to_right(kind: str) -> None:
    for picture in PICTURES[kind]:
        glyphs = [mark for mark in picture.marks() if mark.glyph]
        for before, after in pairwise(glyphs):
            if (before.role, after.role) in (("label", "first"), ("first", "second")):
                assert before.box[0] < after.box[0], picture
                assert before.box[1] == after.box[1], picture


def test_only_patterns_in_a_corner_are_asked_for_their_place() -> None:
    asked = 0
    for picture in PICTURES["textures"]:
        for question in picture.questions(3):
            if question.kind == "place":
                [item] = [o for o in picture.objects if question.text.endswith(f"{o.pattern}?")]
                assert min(abs(edge - SIDE / 2) for edge in item.center) > 10, question
                asked += 1
    assert asked > 50


def answers_by_template(kind: str) -> dict[str, list[str]]:
    found: dict[str, list[str]] = {}
    for seed in range(200):
        for question in sample(kind, seed, "train").questions(seed):
            found.setdefault(question.kind, []).append(question.answer)
    return found


@pytest.mark.parametrize("kind", NEW)
def test_no_answer_dominates_its_template(kind: str) -> None:
    for template, given in answers_by_template(kind).items():
        share = max(given.count(answer) for answer in set(given)) / len(given)
        assert share < (0.65 if len(set(given)) == 2 else 0.45), (template, share)


def test_pictures_are_as_rich_as_their_kind_says() -> None:
    def of(kind: str) -> list[Any]:
        return PICTURES[kind]

    assert {len(picture.lines) for picture in of("documents")} == set(range(4, 10))
    assert {len(picture.objects) for picture in of("clutter")} == set(range(12, 21))
    for picture in of("clutter"):  # the odd one
        shapes = [item.shape for item in picture.objects]
        assert shapes.count(shapes[0]) == 1
        counts = [int(q.answer) for q in picture.questions(0) if q.category == "counting"]
        assert all(1 <= count <= 6 for count in counts)
    assert {item.pattern for picture in of("textures") for item in picture.objects} == set(PATTERNS)
    assert {len(picture.signs) for picture in of("signs")} == {1, 2, 3}
    pictures: list[Picture] = [picture for kind in NEW for picture in of(kind)]
    assert {picture.surroundings for picture in pictures} == {*SETTINGS, "page"}
