"""Training sees, turn by turn, just what inference sees."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from kinds import KINDS, sample
from model import PROMPT, build_model, build_processor, build_tokenizer
from packing import (
    CHANNELS,
    IGNORE,
    SURROUNDINGS,
    Batch,
    PackedPictures,
    covered_patches,
    patch_labels,
    prefix_ids,
    scene_labels,
    sparse_tokens,
    turn_ids,
)
from pictures import Question
from train import start_from
from transformers import AutoTokenizer, LlavaForConditionalGeneration, PreTrainedTokenizerFast

from clasp_kernels.bundled import tiny_vlm_path


@pytest.fixture(scope="module")
def tokenizer() -> PreTrainedTokenizerFast:
    return build_tokenizer()


def test_a_packed_turn_gets_the_logits_of_its_single_prompt(
    tokenizer: PreTrainedTokenizerFast,
) -> None:
    """In a dense batch as in a sparse one, whose hidden tokens are masked in the single prompt."""
    torch.manual_seed(0)
    model = build_model(tokenizer).eval()
    prefix = prefix_ids(tokenizer)
    image = prefix.index(model.config.image_token_id)
    data = PackedPictures(tokenizer, range(8), batch_size=2, seed=1, sparse_from=99)
    batches = [data[index] for index in range(8)]
    dense = next(batch for batch in batches if batch.kept.shape[1] == 144)
    sparse = next(batch for batch in batches if batch.kept.shape[1] < 144)
    for batch in (dense, sparse):
        packed = packed_hidden_states(model, batch)
        for row in range(2):
            seen = torch.ones(len(prefix), dtype=torch.long)
            seen[image : image + 144] = 0
            seen[image + batch.kept[row]] = 1
            starts = (batch.position_ids[row] == len(prefix)).nonzero().flatten().tolist()
            assert len(starts) >= 3
            for start in starts:
                text = batch.input_ids[row, start:].tolist()
                turn = text[: text.index(tokenizer.eos_token_id) + 1]
                with torch.no_grad():
                    alone = model.model(
                        input_ids=torch.tensor([prefix + turn]),
                        pixel_values=batch.pixel_values[row : row + 1],
                        attention_mask=torch.cat([seen, torch.ones(len(turn), dtype=seen.dtype)])[
                            None
                        ],
                        position_ids=torch.arange(len(prefix) + len(turn))[None],
                    ).last_hidden_state
                torch.testing.assert_close(
                    packed[row, start : start + len(turn)],
                    alone[0, len(prefix) :],
                    atol=2e-5,
                    rtol=0,
                )


def packed_hidden_states(model: LlavaForConditionalGeneration, batch: Batch) -> torch.Tensor:
    with torch.no_grad():
        embeds = model.get_input_embeddings()(batch.input_ids)
        visual = torch.stack(list(model.model.get_image_features(batch.pixel_values).pooler_output))
        kept = batch.kept[..., None].expand(-1, -1, visual.shape[-1])
        place = batch.input_ids == model.config.image_token_id
        embeds[place] = visual.gather(1, kept).flatten(0, 1)
        bias = torch.zeros(batch.attention_mask.shape)
        bias.masked_fill_(~batch.attention_mask, float("-inf"))
        return model.model.language_model(
            inputs_embeds=embeds, attention_mask=bias, position_ids=batch.position_ids
        ).last_hidden_state


def test_the_prompt_of_training_is_the_prompt_of_the_processor(
    tokenizer: PreTrainedTokenizerFast,
) -> None:
    processor = build_processor(tokenizer)
    question = Question("attribute", "color", "What color is the star?", "red")
    turn, prompt_length = turn_ids(tokenizer, question)
    from PIL import Image

    inputs = processor(
        images=Image.new("RGB", (96, 96)),
        text=PROMPT.format(question=question.text),
        return_tensors="pt",
    )
    assert inputs["input_ids"][0].tolist() == prefix_ids(tokenizer) + turn[:prompt_length]
    chat = processor.apply_chat_template(
        [
            {
                "role": "user",
                "content": [{"type": "image"}, {"type": "text", "text": question.text}],
            }
        ],
        add_generation_prompt=True,
    )
    assert chat == PROMPT.format(question=question.text)


def test_labels_are_the_answer_and_its_end(tokenizer: PreTrainedTokenizerFast) -> None:
    batch = PackedPictures(tokenizer, range(1), batch_size=4, seed=2, sparse_from=9)[0]
    for ids, labels in zip(batch.input_ids, batch.labels, strict=True):
        at = (labels != IGNORE).nonzero().flatten()
        assert torch.equal(labels[at], ids[at + 1])
        answers = tokenizer.decode(labels[at]).split("</s>")
        assert len(answers) >= 6 and answers[-1] == ""
        assert all(answer.startswith(" ") for answer in answers[:-1])


def test_a_batch_depends_on_its_step_alone(tokenizer: PreTrainedTokenizerFast) -> None:
    whole = PackedPictures(tokenizer, range(5), batch_size=2, seed=3, sparse_from=4)
    resumed = PackedPictures(tokenizer, range(3, 5), batch_size=2, seed=3, sparse_from=4)
    assert torch.equal(whole[4].pixel_values, resumed[1].pixel_values)
    assert torch.equal(whole[4].input_ids, resumed[1].input_ids)
    assert torch.equal(whole[4].attention_mask, resumed[1].attention_mask)
    assert not torch.equal(whole[3].pixel_values, whole[4].pixel_values)


def test_the_tokenizer_keeps_any_text(tokenizer: PreTrainedTokenizerFast) -> None:
    for text in ("Où est le café? $42 {x}", "What does the sign say?", "日本語"):
        assert tokenizer.decode(tokenizer(text).input_ids) == text


def test_sparse_batches_hide_tokens_but_leave_some_of_every_mark() -> None:
    noise = np.random.default_rng(0)
    for kind in KINDS:
        for seed in range(20):
            picture = sample(kind, seed, "train")
            marks = picture.marks()
            kept = sparse_tokens(picture, 40, noise)
            assert len(kept) == 40 and (np.diff(kept) > 0).all()
            assert kept[0] >= 0 and kept[-1] < 144
            for mark in marks:
                assert covered_patches(mark.box).flat[kept].any(), (kind, mark)
            assert len(sparse_tokens(picture, 6, noise)) == 6


def test_batches_have_few_tokens_only_in_the_end(tokenizer: PreTrainedTokenizerFast) -> None:
    def counts(sparse_from: int) -> list[int]:
        data = PackedPictures(tokenizer, range(60), 1, seed=4, sparse_from=sparse_from)
        return [data[index].kept.shape[1] for index in range(60)]

    before, after = counts(60), counts(0)
    assert 8 <= before.count(144) <= 24 and min(before) >= 40  # enough for every mark
    assert 4 <= after.count(144) <= 18 and 6 <= min(after) < 12
    assert sum(count < 40 for count in after) > 15


def test_patches_are_labelled_by_what_they_show() -> None:
    names = list(CHANNELS)
    for kind in KINDS:
        picture = sample(kind, 5, "train")
        labels = patch_labels(picture)
        assert labels.shape == (len(names), 144)
        for channel, name in zip(labels, names, strict=True):
            shown = [mark for mark in picture.marks() if getattr(mark, name)]
            for patch, label in enumerate(channel):
                values = {
                    1 + CHANNELS[name].index(getattr(mark, name))
                    for mark in shown
                    if covered_patches(mark.box).flat[patch]
                }
                assert label in (values or {0}), (kind, name, patch)
        presence, (surroundings, count) = scene_labels(picture)
        assert count == len(picture.marks())
        assert SURROUNDINGS[surroundings] == picture.surroundings
        assert sum(presence) == sum(
            len({getattr(mark, name) for mark in picture.marks()} - {""}) for name in names
        )


def test_an_earlier_model_gives_its_weights_and_its_rows_by_token(
    tokenizer: PreTrainedTokenizerFast,
) -> None:
    torch.manual_seed(1)
    model = build_model(tokenizer)
    fresh = model.get_input_embeddings().weight.detach().clone()
    start_from(model, tokenizer, tiny_vlm_path())
    earlier = LlavaForConditionalGeneration.from_pretrained(tiny_vlm_path())
    known = AutoTokenizer.from_pretrained(tiny_vlm_path()).get_vocab()
    rows = model.get_input_embeddings().weight
    for token, row in tokenizer.get_vocab().items():
        expected = (
            earlier.get_input_embeddings().weight[known[token]] if token in known else fresh[row]
        )
        assert torch.equal(rows[row], expected), token
    name = "model.vision_tower.encoder.layers.4.mlp.fc2.weight"
    assert torch.equal(model.state_dict()[name], earlier.state_dict()[name])
    assert model.lm_head.weight is model.get_input_embeddings().weight
