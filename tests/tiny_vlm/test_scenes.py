"""The scene generator: reproducible, split by content, and its answers are true."""

from __future__ import annotations

import numpy as np
import pytest
from scenes import Scene, sample_scene
from words import CATEGORIES, COLORS, SETTINGS, SHAPES

from clasp_kernels.policy import Router

SCENES = [sample_scene(seed, split) for split in ("train", "heldout") for seed in range(200)]


def test_a_seed_gives_one_scene_and_one_picture() -> None:
    first, second = sample_scene(3, "train"), sample_scene(3, "train")
    assert first == second
    assert np.array_equal(np.asarray(first.render()), np.asarray(second.render()))
    assert first.questions(5) == second.questions(5)
    assert sample_scene(4, "train") != first


def test_train_and_heldout_scenes_share_no_content() -> None:
    train = {sample_scene(seed, "train").content for seed in range(3000)}
    heldout = {sample_scene(seed, "heldout").content for seed in range(3000)}
    assert not train & heldout
    assert all(sample_scene(seed, "heldout").split == "heldout" for seed in range(50))


@pytest.mark.parametrize("size", [96, 384])
def test_shapes_are_drawn_where_the_scene_says(size: int) -> None:
    for scene in SCENES[:60]:
        pixels = np.asarray(scene.render(size)).astype(int)
        for item in scene.objects:
            x, y = item.center
            if item.shape == "ring":  # its middle is a hole: look at the rim
                x += item.size * 0.36
            found = pixels[round(y * size / 96), round(x * size / 96)]
            assert np.abs(found - COLORS[item.color]).max() < 60, (item, found)


def test_shapes_and_the_sign_do_not_touch() -> None:
    for scene in SCENES:
        boxes = [item.box for item in scene.objects]
        if scene.sign:
            boxes.append(scene.sign.box)
        for index, (left, top, right, bottom) in enumerate(boxes):
            assert min(left, top) >= 0 and max(right, bottom) <= 96
            for other in boxes[:index]:
                apart_x = right <= other[0] or other[2] <= left
                apart_y = bottom <= other[1] or other[3] <= top
                assert apart_x or apart_y, scene


def true_answer(scene: Scene, text: str) -> str:
    """The answer by reading the question, independently of how it was made."""
    words = text.rstrip("?.").lower().split()
    singular = [word if word in SHAPES else word.removesuffix("s") for word in words]
    shapes = [word for word in singular if word in SHAPES] or ["cross"] * ("crosses" in words)
    colors = [word for word in words if word in COLORS]
    chosen = [
        item
        for item in scene.objects
        if (not colors or item.color == colors[0]) and (not shapes or item.shape == shapes[0])
    ]
    if words[0] == "how":
        return str(len(chosen))
    if "sign" in words:
        assert scene.sign is not None
        return scene.sign.text
    if "scene" in words or "setting" in words:
        return scene.setting
    if words[:2] == ["is", "there"]:
        return "yes" if chosen else "no"
    if "or" in words:
        first, second = (next(i for i in scene.objects if i.shape == shape) for shape in shapes)
        if "left" in words:
            return "left" if first.center[0] < second.center[0] else "right"
        return "above" if first.center[1] < second.center[1] else "below"
    [item] = chosen
    if "where" in words or "corner" in words:
        x, y = item.center
        return f"{'top' if y < 48 else 'bottom'} {'left' if x < 48 else 'right'}"
    return item.color if "color" in words else item.shape


def test_answers_are_true() -> None:
    asked = 0
    for seed, scene in enumerate(SCENES):
        for question in scene.questions(seed):
            assert question.answer == true_answer(scene, question.text), (scene, question)
            asked += 1
    assert asked > 3000


def test_no_answer_dominates_its_kind() -> None:
    answers: dict[str, list[str]] = {}
    for seed in range(600):
        for question in sample_scene(seed, "train").questions(seed):
            answers.setdefault(question.kind, []).append(question.answer)
    for kind, given in answers.items():
        share = max(given.count(answer) for answer in set(given)) / len(given)
        options = len(set(given))
        # Blind guessing must not pay: at most 0.65 for two answers, 0.45 for more.
        assert share < (0.65 if options == 2 else 0.45), (kind, share)


def test_every_question_is_routed_to_its_category() -> None:
    router = Router()
    seen = set()
    for seed, scene in enumerate(SCENES):
        for question in scene.questions(seed):
            assert router.route([question.text]) == [question.category], question.text
            seen.add(question.category)
    assert seen == set(CATEGORIES)
    assert {scene.setting for scene in SCENES} == set(SETTINGS)
