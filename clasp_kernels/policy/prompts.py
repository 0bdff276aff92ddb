"""Finding the question in a prompt: the last user turn, without template, image or options.

Everything here runs in time linear in the prompt, and only plain substring searches see all of
it: a prompt whose image token was expanded to thousands must not cost more than the others.
"""

from __future__ import annotations

import re

# Where a user's turn starts and ends, in the chat templates met in practice. In a sentence people
# write "user:" in lower case, and the mixed-case names only open a line.
_USER_STARTS = (
    "<|im_start|>user",  # ChatML: Qwen, InternVL
    "<|start_header_id|>user<|end_header_id|>",  # Llama 3
    "<|user|>",  # Phi
    "<start_of_turn>user",  # Gemma
    "<</SYS>>",  # Llama 2, whose system prompt stands inside the user's turn
    "[INST]",  # Llama 2, Mistral
    "USER:",  # Vicuna, LLaVA 1.5
    "\nUser:",  # Idefics
    "\nHuman:",
    "### Human:",
)
_USER_ENDS = (
    "<|im_end|>",
    "<|eot_id|>",
    "<|end|>",
    "<|assistant|>",
    "<end_of_turn>",
    "<end_of_utterance>",
    "[/INST]",
    "</s>",
    "ASSISTANT:",
    "\nAssistant:",
    "### Assistant:",
)
_IMAGE_TOKENS = ("<image>", "<video>", "<|image_pad|>", "<|video_pad|>", "<image_soft_token>")
_TAG = re.compile(r"<[^<>\s]{1,40}>|\[IMG\w*\]")
# An option's letter: "A. ", "A) ", "A: ", "(A) ".
_OPTION_A = re.compile(r"(?:^|(?<=\s))(\(?)A([.):])\s")
_OPTIONS_HEADER = re.compile(r"\b(?:options|choices)\s*:", re.IGNORECASE)
_QUESTION_HEADER = re.compile(r"\bquestion\s*:", re.IGNORECASE)
_OCR_HINT = re.compile(r"\breference ocr tokens?\s*:", re.IGNORECASE)
# Quoted words are what is talked about, not what is asked. Single quotes double as apostrophes,
# so they only count where no word touches them from outside.
_QUOTED = re.compile(r"\"[^\"]{0,80}\"|(?<!\w)'[^']{0,80}'(?!\w)")
_STRAIGHT_QUOTES = str.maketrans("\u201c\u201d\u2018\u2019", "\"\"''")
# Not after an initial ("A. Smith") or an ellipsis, nor where a line is merely wrapped.
_SENTENCE_END = re.compile(r"(?:(?<=\w\w\.)|(?<=[?!]))\s+|\n\s*\n")

# Of a longer turn only this much of the start and of the end is read.
_MAX_CHARACTERS = 600


def last_user_turn(prompt: str) -> str:
    """The text of the last user turn of a chat prompt; plain text comes back whole.

    >>> last_user_turn("USER: <image>\\nWhat is this? ASSISTANT: A cat.</s>USER: Where? ASSISTANT:")
    ' Where? '
    """
    if prompt.startswith(("User:", "Human:")):
        prompt = "\n" + prompt
    start = 0
    for marker in _USER_STARTS:
        found = prompt.rfind(marker)
        if found >= 0:
            start = max(start, found + len(marker))
    if not start:
        return prompt
    ends = [end for marker in _USER_ENDS if (end := prompt.find(marker, start)) >= 0]
    return prompt[start : min(ends, default=None)]


def find_question(prompt: str) -> str:
    """What the last user turn asks, without image tokens, options, quotations or context.

    Of several sentences the ones that end in a question mark are kept, if there are any.

    >>> find_question("<image>\\nNice map. Where is it?\\nA. left\\nB. right\\nAnswer by letter.")
    'Where is it?'
    """
    text = last_user_turn(prompt)
    if "<" in text:
        for token in _IMAGE_TOKENS:
            text = text.replace(token, " ")
    text = text.strip()
    if len(text) > _MAX_CHARACTERS:
        half = _MAX_CHARACTERS // 2
        text = f"{text[:half]}\n{text[-half:]}"
    if "<" in text or "[IMG" in text:
        text = _TAG.sub(" ", text)
    if ":" in text:
        text = _after(_QUESTION_HEADER, text)
        text = _before(_OPTIONS_HEADER, text)
        text = _before(_OCR_HINT, text)
    text = _without_options(text)
    if not text.isascii():
        text = text.translate(_STRAIGHT_QUOTES)
    if '"' in text or "'" in text:
        text = _QUOTED.sub(" ", text)
    if "?" in text:
        sentences = _SENTENCE_END.split(text)
        text = " ".join(sentence for sentence in sentences if "?" in sentence)
    return text.strip()


def _without_options(text: str) -> str:
    """``text`` up to "A. ...", if a B of the same kind follows and something stands before."""
    for option in _OPTION_A.finditer(text):
        following = f"{option[1]}B{option[2]}"
        if text.rfind(following) > option.start():
            return text[: option.start()].strip() or text
    return text


def _before(pattern: re.Pattern[str], text: str) -> str:
    """``text`` up to the match, unless nothing would be left."""
    match = pattern.search(text)
    return (text[: match.start()].strip() or text) if match else text


def _after(pattern: re.Pattern[str], text: str) -> str:
    """``text`` from the end of the match, unless nothing would be left."""
    match = pattern.search(text)
    return (text[match.end() :].strip() or text) if match else text
