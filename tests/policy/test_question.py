"""Find the question in prompts with chat templates, image tokens, options and quotations."""

import pytest

from clasp_kernels.policy.question import find_question

ASKED = "Where is the dog?"


@pytest.mark.parametrize(
    "prompt",
    [
        ASKED,
        f"USER: <image>\n{ASKED} ASSISTANT:",
        f"A chat. USER: <image>\nWhy? ASSISTANT: So.</s>USER: {ASKED} ASSISTANT:",
        f"USER: Why? ASSISTANT: Because. USER: {ASKED} ASSISTANT: Here?",
        f"<|im_start|>system\nWhat can you do?<|im_end|>\n<|im_start|>user\n<|vision_start|>"
        f"<|image_pad|><|image_pad|><|vision_end|>{ASKED}<|im_end|>\n<|im_start|>assistant\n",
        "<|begin_of_text|><|start_header_id|>user<|end_header_id|>\n\nWhy?<|eot_id|>"
        "<|start_header_id|>assistant<|end_header_id|>\n\nSo?<|eot_id|><|start_header_id|>user"
        f"<|end_header_id|>\n\n<|image|>{ASKED}<|eot_id|><|start_header_id|>assistant",
        f"[INST] <<SYS>>\nAsk why?\n<</SYS>>\n\n<image>\n{ASKED} [/INST]",
        f"<s>[INST] Why? [/INST] So? </s>[INST] {ASKED} [/INST]",
        f"<bos><start_of_turn>user\n<start_of_image>Why?<end_of_turn>\n<start_of_turn>model\n"
        f"So?<end_of_turn>\n<start_of_turn>user\n{ASKED}<end_of_turn>\n<start_of_turn>model\n",
        f"<|user|>\n<|image_1|>\n{ASKED}<|end|>\n<|assistant|>\n",
        f"User:<image>Why?<end_of_utterance>\nAssistant: So?<end_of_utterance>\nUser:{ASKED}",
        f"### Human: Why?\n### Assistant: So?\n### Human: {ASKED}\n### Assistant:",
        "<image>" * 576 + ASKED,
        f"[IMG]{ASKED}",
        f"I took this at home. {ASKED} Please answer briefly.",
        f"Context: dogs live 12.5 years.\nQuestion: {ASKED}",
        f"{ASKED}\nA. on the rug\nB. in the car\nAnswer with the option's letter.",
        f"{ASKED} (A) on the rug (B) in the car",
        f"{ASKED} Options: on the rug, or in the car?",
        f"{ASKED}\nReference OCR token: HOW, MANY?",
    ],
)
def test_only_the_question_is_left(prompt):
    assert find_question(prompt) == ASKED


@pytest.mark.parametrize(
    ("prompt", "asked"),
    [
        ("Describe the dog.", "Describe the dog."),
        ("Is it 3.5 or 4.5?", "Is it 3.5 or 4.5?"),
        ("What? No. Where?", "What? Where?"),
        ("Is A. Smith here?", "Is A. Smith here?"),
        ("A. a dog\nB. a cat", "A. a dog\nB. a cat"),
        ('Does it say "where?"', "Does it say"),
        ("Is 'how many' on the sign?", "Is   on the sign?"),
        ("Is the dog's bowl Anna's?", "Is the dog's bowl Anna's?"),
        ("the user: where is he", "the user: where is he"),
        ("USER: <image>\n ASSISTANT:", ""),
        ("", ""),
    ],
)
def test_what_is_kept_and_what_is_not(prompt, asked):
    assert find_question(prompt) == asked


def test_a_long_prompt_is_read_at_both_ends():
    assert "start" in find_question("start " + "word " * 5000)
    assert find_question("word " * 5000 + f"end. {ASKED}") == ASKED
