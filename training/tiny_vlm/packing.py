"""Training batches: several question-answer turns after one image, masked from each other.

Every turn attends to the image and to itself only, and its position ids restart right after the
image. So a packed turn is exactly the single-turn prompt seen at inference. A batch is a pure
function of (seed, step), so a resumed run gets the same batches.
"""

from __future__ import annotations

import random
from dataclasses import dataclass

import numpy as np
import torch
from model import IMAGE_SIZE, NUM_VISUAL_TOKENS, PATCH_SIZE, PROMPT
from scenes import COLORS, GLYPHS, SETTINGS, SHAPES, Question, Scene, sample_scene
from transformers import PreTrainedTokenizerFast

TURNS = 8
TURN_WEIGHT = {"attribute": 1.0, "counting": 1.6, "spatial": 2.0, "ocr": 1.5, "scene": 0.6}
PATCHES = IMAGE_SIZE // PATCH_SIZE
MIN_PATCH_COVER = 0.3  # an object labels the patches that it covers by at least this fraction
IGNORE = -100


@dataclass
class Batch:
    pixel_values: torch.Tensor  # [B, 3, 96, 96]
    input_ids: torch.Tensor  # [B, S]
    position_ids: torch.Tensor  # [B, S]
    attention_mask: torch.Tensor  # [B, 1, S, S] bool, True = may attend
    labels: torch.Tensor  # [B, S], already shifted: labels[t] is the token after t
    patch_labels: torch.Tensor  # [B, 3, N]: shape, color, glyph; 0 = none
    scene_presence: torch.Tensor  # [B, K] float, 1 if present: each shape, each colour, a sign
    scene_labels: torch.Tensor  # [B, 4]: setting, first glyph, second glyph, number of objects


def prefix_ids(tokenizer: PreTrainedTokenizerFast) -> list[int]:
    before, after = PROMPT.split("<image>")
    image = tokenizer.convert_tokens_to_ids("<image>")
    head = tokenizer(before).input_ids + [image] * NUM_VISUAL_TOKENS
    return head + tokenizer(after.split("{question}")[0]).input_ids


def turn_ids(tokenizer: PreTrainedTokenizerFast, question: Question) -> tuple[list[int], int]:
    """Return the token ids of one turn after the image, and the length of its prompt."""
    prompt = PROMPT.split("\n")[1].format(question=question.text)
    prompt_ids = tokenizer(prompt).input_ids
    answer_ids = tokenizer(f" {question.answer}").input_ids
    return [*prompt_ids, *answer_ids, tokenizer.eos_token_id], len(prompt_ids)


def choose_turns(scene: Scene, rng: random.Random) -> list[Question]:
    """Draw TURNS questions without replacement, weighted by category."""
    questions = scene.questions(rng.randrange(2**31))
    keys = [rng.random() ** (1 / TURN_WEIGHT[question.category]) for question in questions]
    order = sorted(range(len(questions)), key=keys.__getitem__, reverse=True)
    return [questions[index] for index in order[:TURNS]]


def covered_patches(box: tuple[float, float, float, float]) -> np.ndarray:
    """Return which patches `box` covers by at least MIN_PATCH_COVER, [PATCHES, PATCHES] bool."""
    left, top, right, bottom = (edge / PATCH_SIZE for edge in box)
    edges = np.arange(PATCHES)
    wide = np.clip(np.minimum(edges + 1, right) - np.maximum(edges, left), 0, 1)
    high = np.clip(np.minimum(edges + 1, bottom) - np.maximum(edges, top), 0, 1)
    return np.outer(high, wide) >= MIN_PATCH_COVER


def glyph_boxes(scene: Scene) -> list[tuple[float, float, float, float]]:
    return [scene.sign.glyph_box(index) for index in range(2)] if scene.sign else []


def patch_labels(scene: Scene) -> np.ndarray:
    """Return the shape, colour and glyph label of each patch, [3, N], 0 for none."""
    labels = np.zeros((3, PATCHES, PATCHES), dtype=np.int64)
    for item in scene.objects:
        patches = covered_patches(item.box)
        labels[0][patches] = 1 + SHAPES.index(item.shape)
        labels[1][patches] = 1 + list(COLORS).index(item.color)
    for box, glyph in zip(glyph_boxes(scene), scene.sign.text if scene.sign else "", strict=True):
        labels[2][covered_patches(box)] = 1 + GLYPHS.index(glyph)
    return labels.reshape(3, -1)


def sparse_tokens(scene: Scene, noise: np.random.Generator) -> np.ndarray:
    """Draw the visual tokens that stay, [N] bool; at least one patch of each object stays.

    The keep rate differs from scene to scene, so that the model is trained on anything from a few
    tokens to all of them.
    """
    if noise.random() < 0.2:
        return np.ones(PATCHES * PATCHES, dtype=bool)
    kept = noise.random((PATCHES, PATCHES)) < noise.random() ** 2
    for box in [item.box for item in scene.objects] + glyph_boxes(scene):
        patches = np.flatnonzero(covered_patches(box))
        kept.flat[patches] = noise.random(len(patches)) < noise.uniform(0.2, 1.0)
        kept.flat[noise.choice(patches)] = True
    return kept.reshape(-1)


def scene_labels(scene: Scene) -> tuple[list[float], list[int]]:
    shapes = {item.shape for item in scene.objects}
    colors = {item.color for item in scene.objects}
    presence = [float(shape in shapes) for shape in SHAPES]
    presence += [float(color in colors) for color in COLORS]
    presence.append(float(scene.sign is not None))
    glyphs = [GLYPHS.index(glyph) for glyph in scene.sign.text] if scene.sign else [IGNORE] * 2
    return presence, [SETTINGS.index(scene.setting), *glyphs, len(scene.objects) - 1]


class PackedScenes(torch.utils.data.Dataset[Batch]):
    """Each item is the whole batch of one step. From step `sparse_from` on, visual tokens are
    masked."""

    def __init__(
        self,
        tokenizer: PreTrainedTokenizerFast,
        steps: range,
        batch_size: int,
        seed: int,
        sparse_from: int,
    ) -> None:
        self.tokenizer, self.steps, self.batch_size = tokenizer, steps, batch_size
        self.seed, self.sparse_from = seed, sparse_from
        self.prefix = prefix_ids(tokenizer)

    def __len__(self) -> int:
        return len(self.steps)

    def __getitem__(self, index: int) -> Batch:
        if index >= len(self):
            raise IndexError(index)
        step = self.steps[index]
        rng = random.Random(f"{self.seed}/{step}")
        scenes = [sample_scene(rng.randrange(2**62), "train") for _ in range(self.batch_size)]
        packed = [self._pack(scene, rng) for scene in scenes]
        noise = np.random.default_rng(rng.randrange(2**62))
        length = -(-max(len(ids) for ids, *_ in packed) // 16) * 16
        pad = self.tokenizer.pad_token_id
        rows = [
            (
                ids + [pad] * (length - len(ids)),
                positions + [0] * (length - len(ids)),
                turns + [-1] * (length - len(ids)),
                labels + [IGNORE] * (length - len(ids)),
            )
            for ids, positions, turns, labels in packed
        ]
        input_ids, position_ids, turn, labels = torch.tensor(rows).unbind(1)
        same = (turn[:, None, :] == turn[:, :, None]) | (turn[:, None, :] == 0)
        mask = same.tril() & (turn >= 0)[:, None, :]
        if step >= self.sparse_from:
            kept = np.stack([sparse_tokens(scene, noise) for scene in scenes])
            image = self.tokenizer.convert_tokens_to_ids("<image>")
            seen = torch.ones_like(input_ids, dtype=torch.bool)
            seen[input_ids == image] = torch.from_numpy(kept).flatten()
            mask &= seen[:, None, :]
        mask |= torch.eye(length, dtype=torch.bool)  # no row may be fully masked, even padding
        pixels = np.stack([np.asarray(scene.render(IMAGE_SIZE)) for scene in scenes])
        pixels = pixels / np.float32(127.5) - np.float32(1)
        pixels += noise.standard_normal(pixels.shape, dtype=np.float32) * np.float32(0.03)
        presence, classes = zip(*map(scene_labels, scenes), strict=True)
        return Batch(
            torch.from_numpy(pixels).permute(0, 3, 1, 2),
            input_ids,
            position_ids,
            mask[:, None],
            labels,
            torch.from_numpy(np.stack([patch_labels(scene) for scene in scenes])),
            torch.tensor(presence),
            torch.tensor(classes),
        )

    def _pack(
        self, scene: Scene, rng: random.Random
    ) -> tuple[list[int], list[int], list[int], list[int]]:
        ids = list(self.prefix)
        positions = list(range(len(ids)))
        turns = [0] * len(ids)
        labels = [IGNORE] * len(ids)
        for number, question in enumerate(choose_turns(scene, rng), start=1):
            turn, prompt_length = turn_ids(self.tokenizer, question)
            ids += turn
            positions += range(len(self.prefix), len(self.prefix) + len(turn))
            turns += [number] * len(turn)
            answered = [IGNORE] * (prompt_length - 1) + turn[prompt_length:] + [IGNORE]
            labels += answered
        return ids, positions, turns, labels
