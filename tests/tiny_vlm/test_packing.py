"""Training sees, turn by turn, just what inference sees."""

from __future__ import annotations

import torch
from model import PROMPT, build_model, build_processor, build_tokenizer
from packing import IGNORE, PackedScenes, prefix_ids, turn_ids
from scenes import Question


def test_a_packed_turn_gets_the_logits_of_its_single_prompt() -> None:
    torch.manual_seed(0)
    tokenizer = build_tokenizer()
    model = build_model(tokenizer).eval()
    batch = PackedScenes(tokenizer, range(1), batch_size=2, seed=1, sparse_from=9)[0]
    image_tokens = batch.input_ids == model.config.image_token_id
    with torch.no_grad():
        embeds = model.get_input_embeddings()(batch.input_ids)
        visual = model.model.get_image_features(batch.pixel_values).pooler_output
        embeds[image_tokens] = torch.cat(list(visual))
        bias = torch.zeros(batch.attention_mask.shape)
        bias.masked_fill_(~batch.attention_mask, float("-inf"))
        packed = model.model.language_model(
            inputs_embeds=embeds, attention_mask=bias, position_ids=batch.position_ids
        ).last_hidden_state
        for row in range(2):
            prefix = len(prefix_ids(tokenizer))
            starts = (batch.position_ids[row] == prefix).nonzero().flatten().tolist()
            assert len(starts) >= 5
            for start in starts:
                text = batch.input_ids[row, start:].tolist()
                turn = text[: text.index(tokenizer.eos_token_id) + 1]
                single = torch.tensor([prefix_ids(tokenizer) + turn])
                alone = model.model(
                    input_ids=single, pixel_values=batch.pixel_values[row : row + 1]
                ).last_hidden_state
                torch.testing.assert_close(
                    packed[row, start : start + len(turn)], alone[0, prefix:], atol=2e-5, rtol=0
                )


def test_the_prompt_of_training_is_the_prompt_of_the_processor() -> None:
    tokenizer = build_tokenizer()
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


def test_labels_are_the_answer_and_its_end() -> None:
    tokenizer = build_tokenizer()
    batch = PackedScenes(tokenizer, range(1), batch_size=4, seed=2, sparse_from=9)[0]
    for ids, labels in zip(batch.input_ids, batch.labels, strict=True):
        at = (labels != IGNORE).nonzero().flatten()
        assert torch.equal(labels[at], ids[at + 1])
        answers = tokenizer.decode(labels[at]).split("</s>")
        assert len(answers) >= 6 and answers[-1] == ""
        assert all(answer.startswith(" ") for answer in answers[:-1])


def test_a_batch_depends_on_its_step_alone() -> None:
    tokenizer = build_tokenizer()
    whole = PackedScenes(tokenizer, range(5), batch_size=2, seed=3, sparse_from=4)
    resumed = PackedScenes(tokenizer, range(3, 5), batch_size=2, seed=3, sparse_from=4)
    assert torch.equal(whole[4].pixel_values, resumed[1].pixel_values)
    assert torch.equal(whole[4].input_ids, resumed[1].input_ids)
    assert torch.equal(whole[4].attention_mask, resumed[1].attention_mask)
    assert not torch.equal(whole[3].pixel_values, whole[4].pixel_values)


def test_the_tokenizer_keeps_any_text() -> None:
    tokenizer = build_tokenizer()
    for text in ("Où est le café? $42 {x}", "What does the sign say?", "日本語"):
        assert tokenizer.decode(tokenizer(text).input_ids) == text


def test_sparse_steps_hide_visual_tokens_but_leave_some_of_every_thing() -> None:
    tokenizer = build_tokenizer()
    data = PackedScenes(tokenizer, range(2), batch_size=16, seed=4, sparse_from=1)
    image = tokenizer.convert_tokens_to_ids("<image>")
    for step, sparse in enumerate([False, True]):
        batch = data[step]
        hidden = 0
        for ids, mask, labels in zip(
            batch.input_ids, batch.attention_mask[:, 0], batch.patch_labels, strict=True
        ):
            last = int((ids != tokenizer.pad_token_id).nonzero()[-1])
            seen = mask[last, ids == image]  # by a token of the last turn
            hidden += int((~seen).sum())
            for channel in labels[1:]:  # colours, glyphs
                assert set(channel[seen].tolist()) >= set(channel.tolist()) - {0}
        assert (hidden > 16 * 20) if sparse else (hidden == 0)
