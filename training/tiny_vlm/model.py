"""The tiny LLaVA: architecture, tokenizer and processor. `train.py` trains its weights."""

from __future__ import annotations

from collections.abc import Iterable

from kinds import KINDS, sample
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import (
    CLIPImageProcessorPil,
    CLIPVisionConfig,
    LlamaConfig,
    LlavaConfig,
    LlavaForConditionalGeneration,
    LlavaProcessor,
    PreTrainedTokenizerFast,
)
from words import CATEGORIES, COLORS, GLYPHS, SETTINGS, SHAPES

IMAGE_SIZE = 96
PATCH_SIZE = 8
NUM_VISUAL_TOKENS = (IMAGE_SIZE // PATCH_SIZE) ** 2  # 144
WIDTH = 96
HEADS = 3
VISION_LAYERS = 5
DECODER_LAYERS = 6
VOCABULARY = 640
PROMPT = "USER: <image>\n{question} ASSISTANT:"
CHAT_TEMPLATE = (
    "{% for message in messages %}"
    "{{ message['role'].upper() }}:"
    "{% if message['content'] is string %} {{ message['content'] }}"
    "{% else %}"
    "{% for part in message['content'] if part['type'] == 'image' %} <image>\n{% endfor %}"
    "{% for part in message['content'] if part['type'] == 'text' %}{{ part['text'] }}{% endfor %}"
    "{% endif %}"
    "{% if message['role'] == 'assistant' %}{{ eos_token }}{% else %} {% endif %}"
    "{% endfor %}{% if add_generation_prompt %}ASSISTANT:{% endif %}"
)


def _corpus() -> Iterable[str]:
    for kind in KINDS:
        for seed in range(2000):
            for question in sample(kind, seed, "train").questions(seed):
                yield f"USER: \n{question.text} ASSISTANT: {question.answer}"
    for word in (*CATEGORIES, *COLORS, *SHAPES, *SETTINGS):
        yield f" {word}"
    for glyph in GLYPHS:
        yield f" {glyph}{glyph}"


def build_tokenizer() -> PreTrainedTokenizerFast:
    """Train a byte-level BPE tokenizer on the texts of the scenes.

    The words of the scenes are single tokens. Any other text survives a round trip, so that prompts
    can be decoded for the router. Digits and capitals are single tokens, so a sign is read glyph by
    glyph.
    """
    tokenizer = Tokenizer(models.BPE())
    words = r"USER:| ?ASSISTANT:| ?[A-Z](?![a-z])| ?[0-9]| ?[A-Za-z][a-z]*|\s+|[^\sA-Za-z0-9]+"
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(words), behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    special = ["<pad>", "<s>", "</s>", "<image>"]
    tokenizer.train_from_iterator(
        _corpus(),
        trainers.BpeTrainer(
            vocab_size=VOCABULARY,
            special_tokens=[AddedToken(token, special=True) for token in special],
            initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
            show_progress=False,
        ),
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token="<pad>",
        bos_token="<s>",
        eos_token="</s>",
        extra_special_tokens={"image_token": "<image>"},
        padding_side="left",
        model_max_length=1024,
    )


def build_processor(tokenizer: PreTrainedTokenizerFast) -> LlavaProcessor:
    image_processor = CLIPImageProcessorPil(
        size={"height": IMAGE_SIZE, "width": IMAGE_SIZE},
        do_center_crop=False,
        image_mean=[0.5, 0.5, 0.5],
        image_std=[0.5, 0.5, 0.5],
    )
    return LlavaProcessor(
        image_processor=image_processor,
        tokenizer=tokenizer,
        patch_size=PATCH_SIZE,
        vision_feature_select_strategy="default",
        num_additional_image_tokens=1,
        chat_template=CHAT_TEMPLATE,
    )


def build_model(tokenizer: PreTrainedTokenizerFast) -> LlavaForConditionalGeneration:
    """Build the untrained model. Its projector takes the last vision layer without CLS token."""
    ids = {
        name: tokenizer.convert_tokens_to_ids(token)
        for name, token in [("pad", "<pad>"), ("bos", "<s>"), ("eos", "</s>"), ("image", "<image>")]
    }
    text = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=WIDTH,
        intermediate_size=256,
        num_hidden_layers=DECODER_LAYERS,
        num_attention_heads=HEADS,
        num_key_value_heads=HEADS,
        max_position_embeddings=1024,
        tie_word_embeddings=True,
        pad_token_id=ids["pad"],
        bos_token_id=ids["bos"],
        eos_token_id=ids["eos"],
    )
    vision = CLIPVisionConfig(
        hidden_size=WIDTH,
        intermediate_size=4 * WIDTH,
        projection_dim=WIDTH,
        num_hidden_layers=VISION_LAYERS,
        num_attention_heads=HEADS,
        image_size=IMAGE_SIZE,
        patch_size=PATCH_SIZE,
    )
    config = LlavaConfig(
        vision_config=vision,
        text_config=text,
        image_token_id=ids["image"],
        image_seq_length=NUM_VISUAL_TOKENS,
        vision_feature_layer=-1,
        vision_feature_select_strategy="default",
        tie_word_embeddings=True,
    )
    model = LlavaForConditionalGeneration(config)
    generation = model.generation_config
    generation.pad_token_id, generation.bos_token_id = ids["pad"], ids["bos"]
    generation.eos_token_id = ids["eos"]
    return model
