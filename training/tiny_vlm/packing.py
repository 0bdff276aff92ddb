"""Training batches: several question-answer turns after one image, masked from each other.

Every turn attends to the image and to itself only, and its position ids restart right after the
image. So a packed turn is exactly the single-turn prompt seen at inference. In a sparse batch the
language model gets the same number of visual tokens of every picture, at their own positions, and
the others are left out. A batch is a pure function of (seed, step), so a resumed run gets the same
batches.
"""

from __future__ import annotations

import random
from dataclasses import dataclass

import numpy as np
import torch
from kinds import sample
from model import IMAGE_SIZE, NUM_VISUAL_TOKENS, PATCH_SIZE, PROMPT
from pictures import Box, Picture, Question
from transformers import PreTrainedTokenizerFast
from words import COLORS, GLYPHS, LETTERS, PATTERNS, ROLES, SETTINGS, SHAPES

TURNS = 8
TURN_WEIGHT = {"attribute": 1.5, "counting": 1.5, "spatial": 1.2, "ocr": 3.0, "scene": 0.3}
PATCHES = IMAGE_SIZE // PATCH_SIZE
MIN_PATCH_COVER = 0.3  # an object labels the patches that it covers by at least this fraction
KIND_WEIGHT = {"objects": 2, "documents": 3, "clutter": 2, "textures": 2, "signs": 2}
SURROUNDINGS = (*SETTINGS, "page")
MAX_MARKS = 27  # nine lines of a document
MIN_KEPT = 6  # the fewest visual tokens of a sparse batch from `sparse_from` on
MIN_KEPT_BEFORE = 40  # before it: enough for one patch of every mark
SPARSE_SHARE = 0.75  # of the batches before `sparse_from`; later all but one in six
IGNORE = -100


@dataclass
class Batch:
    pixel_values: torch.Tensor  # [B, 3, 96, 96]
    kept: torch.Tensor  # [B, R], ascending: the visual tokens that the language model sees
    input_ids: torch.Tensor  # [B, S] with R image tokens
    position_ids: torch.Tensor  # [B, S]
    attention_mask: torch.Tensor  # [B, 1, S, S] bool, True = may attend
    labels: torch.Tensor  # [B, S], already shifted: labels[t] is the token after t
    patch_labels: torch.Tensor  # [B, 6, N]: one of each of CHANNELS; 0 = none
    scene_presence: torch.Tensor  # [B, K] float, 1 if present: every name of CHANNELS
    scene_labels: torch.Tensor  # [B, 2]: surroundings, number of marks


CHANNELS: dict[str, tuple[str, ...]] = {
    "shape": SHAPES,
    "color": tuple(COLORS),
    "line": tuple(LETTERS),
    "glyph": tuple(GLYPHS),
    "pattern": PATTERNS,
    "role": ROLES,
}


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


def choose_turns(picture: Picture, rng: random.Random) -> list[Question]:
    """Draw TURNS questions without replacement, weighted by category."""
    questions = picture.questions(rng.randrange(2**31))
    keys = [rng.random() ** (1 / TURN_WEIGHT[question.category]) for question in questions]
    order = sorted(range(len(questions)), key=keys.__getitem__, reverse=True)
    return [questions[index] for index in order[:TURNS]]


def covered_patches(box: Box) -> np.ndarray:
    """Return which patches `box` covers by at least MIN_PATCH_COVER, [PATCHES, PATCHES] bool.

    A box that covers no patch by as much gets those that it covers most.
    """
    left, top, right, bottom = (edge / PATCH_SIZE for edge in box)
    edges = np.arange(PATCHES)
    wide = np.clip(np.minimum(edges + 1, right) - np.maximum(edges, left), 0, 1)
    high = np.clip(np.minimum(edges + 1, bottom) - np.maximum(edges, top), 0, 1)
    covered = np.outer(high, wide)
    return covered >= min(MIN_PATCH_COVER, covered.max())


def patch_labels(picture: Picture) -> np.ndarray:
    """Return the labels of each patch in each of CHANNELS, [6, N], 0 for none."""
    labels = np.zeros((len(CHANNELS), PATCHES, PATCHES), dtype=np.int64)
    for mark in picture.marks():
        patches = covered_patches(mark.box)
        for channel, (name, values) in zip(labels, CHANNELS.items(), strict=True):
            if value := getattr(mark, name):
                channel[patches] = 1 + values.index(value)
    return labels.reshape(len(CHANNELS), -1)


def sparse_tokens(picture: Picture, count: int, noise: np.random.Generator) -> np.ndarray:
    """Draw `count` visual tokens that stay, ascending.

    One patch of each mark comes first, in random order, so that nothing is lost as long as
    `count` allows it; the rest is drawn from all patches.
    """
    first = [noise.choice(np.flatnonzero(covered_patches(mark.box))) for mark in picture.marks()]
    order = np.concatenate([noise.permutation(first), noise.permutation(NUM_VISUAL_TOKENS)])
    kept = list(dict.fromkeys(order.astype(int).tolist()))[:count]
    return np.sort(kept)


def scene_labels(picture: Picture) -> tuple[list[float], list[int]]:
    marks = picture.marks()
    presence = [
        float(any(getattr(mark, name) == value for mark in marks))
        for name, values in CHANNELS.items()
        for value in values
    ]
    return presence, [SURROUNDINGS.index(picture.surroundings), len(marks)]


class PackedPictures(torch.utils.data.Dataset[Batch]):
    """Each item is the whole batch of one step.

    Some batches are sparse, and most from step `sparse_from` on.
    """

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
        kinds = rng.choices(list(KIND_WEIGHT), list(KIND_WEIGHT.values()), k=self.batch_size)
        pictures = [sample(kind, rng.randrange(2**62), "train") for kind in kinds]
        noise = np.random.default_rng(rng.randrange(2**62))
        kept = self._kept(pictures, step, noise)
        packed = [self._pack(*pair, rng) for pair in zip(pictures, kept, strict=True)]
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
        mask |= torch.eye(length, dtype=torch.bool)  # no row may be fully masked, even padding
        pixels = np.stack([np.asarray(picture.render(IMAGE_SIZE)) for picture in pictures])
        pixels = pixels / np.float32(127.5) - np.float32(1)
        pixels += noise.standard_normal(pixels.shape, dtype=np.float32) * np.float32(0.03)
        presence, classes = zip(*map(scene_labels, pictures), strict=True)
        return Batch(
            torch.from_numpy(pixels).permute(0, 3, 1, 2),
            torch.from_numpy(kept),
            input_ids,
            position_ids,
            mask[:, None],
            labels,
            torch.from_numpy(np.stack([patch_labels(picture) for picture in pictures])),
            torch.tensor(presence),
            torch.tensor(classes),
        )

    def _kept(self, pictures: list[Picture], step: int, noise: np.random.Generator) -> np.ndarray:
        """Return the visual tokens that the language model sees, [B, R]."""
        share = SPARSE_SHARE if step < self.sparse_from else 5 / 6
        if noise.random() >= share:
            return np.tile(np.arange(NUM_VISUAL_TOKENS), (len(pictures), 1))
        if step < self.sparse_from:
            count = MIN_KEPT_BEFORE + int(MIN_KEPT_BEFORE * noise.random())
        else:  # squared: as many batches have few tokens as have many
            count = MIN_KEPT + int((NUM_VISUAL_TOKENS - MIN_KEPT) * noise.random() ** 2)
        return np.stack([sparse_tokens(picture, count, noise) for picture in pictures])

    def _pack(
        self, picture: Picture, kept: np.ndarray, rng: random.Random
    ) -> tuple[list[int], list[int], list[int], list[int]]:
        image = self.prefix.index(self.tokenizer.convert_tokens_to_ids("<image>"))
        seen = [*range(image), *(image + kept).tolist()]
        seen += range(image + NUM_VISUAL_TOKENS, len(self.prefix))
        ids, positions = [self.prefix[position] for position in seen], seen
        turns = [0] * len(ids)
        labels = [IGNORE] * len(ids)
        for number, question in enumerate(choose_turns(picture, rng), start=1):
            turn, prompt_length = turn_ids(self.tokenizer, question)
            ids += turn
            positions += range(len(self.prefix), len(self.prefix) + len(turn))
            turns += [number] * len(turn)
            answered = [IGNORE] * (prompt_length - 1) + turn[prompt_length:] + [IGNORE]
            labels += answered
        return ids, positions, turns, labels
