"""Find the question in a prompt: the last user turn, without template, image or options.

All functions run in time linear in the length of the prompt. Images that are written out as
thousands of placeholder tokens are folded first, block by block, so they add little time.
"""

from __future__ import annotations

import re

from clasp_kernels.policy.turns import last_user_turn

# A group of up to three tokens (a row and its end, a frame's start and end), repeated eight times.
_RUN = re.compile(r"((?:<[^<>\s]{1,40}>|\[\w{1,20}\]){1,3}?)\1{7}")
_MAX_RUNS = 8
_IMAGE_TOKENS = ("<image>", "<video>", "<|image_pad|>", "<|video_pad|>", "<image_soft_token>")
_TAG = re.compile(r"<[^<>\s]{1,40}>|\[IMG\w*\]")
# The letter of the first option: "A. ", "A) ", "A: ", "(A) ".
_OPTION_A = re.compile(r"(?:^|(?<=\s))(\(?)A([.):])\s")
_OPTIONS_HEADER = re.compile(r"\b(?:options|choices)\s*:", re.IGNORECASE)
_QUESTION_HEADER = re.compile(r"\bquestion\s*:", re.IGNORECASE)
_OCR_HINT = re.compile(r"\breference ocr tokens?\s*:", re.IGNORECASE)
# Quoted text, which is not part of the question. A single quote that touches a word on the outside
# is an apostrophe.
_QUOTED = re.compile(r"\"[^\"]{0,80}\"|(?<!\w)'[^']{0,80}'(?!\w)")
_STRAIGHT_QUOTES = str.maketrans("\u201c\u201d\u2018\u2019", "\"\"''")
# The end of a sentence. An initial ("A. Smith"), an ellipsis or a single newline does not end one.
_SENTENCE_END = re.compile(r"(?:(?<=\w\w\.)|(?<=[?!]))\s+|\n\s*\n")

# A longer turn is cut to half of this from its start and half from its end.
_MAX_CHARACTERS = 600


def find_question(prompt: str) -> str:
    """Return the question of the last user turn, without image tokens, options and quotations.

    If there are sentences with a question mark, only those are kept.

    >>> find_question("<image>\\nNice map. Where is it?\\nA. left\\nB. right\\nAnswer by letter.")
    'Where is it?'
    """
    text = user_text(prompt)
    if "?" in text:
        sentences = _SENTENCE_END.split(text)
        text = " ".join(sentence for sentence in sentences if "?" in sentence)
    return text.strip()


def user_text(prompt: str) -> str:
    """Return the last user turn, without image tokens, options and quotations."""
    text = last_user_turn(_without_runs(prompt) if len(prompt) > _MAX_CHARACTERS else prompt)
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
    if "B" in text:
        text = _without_options(text)
    if not text.isascii():
        text = text.translate(_STRAIGHT_QUOTES)
    if '"' in text or "'" in text:
        text = _QUOTED.sub(" ", text)
    return text.strip()


def _without_runs(prompt: str) -> str:
    """Fold repeated tokens, such as written-out images, to one occurrence."""
    for _ in range(_MAX_RUNS):
        run = _RUN.search(prompt)
        if run is None:
            break
        unit, stop = run[1], run.end()
        # An image is thousands of tokens long, so compare large blocks first.
        for block in (unit * 256, unit * 16, unit):
            while prompt.startswith(block, stop):
                stop += len(block)
        # The rows of an image have the same length, so replace all of them at once.
        rest = prompt[stop:].replace(prompt[run.start() : stop], unit)
        prompt = f"{prompt[: run.start()]}{unit}{rest}"
    return prompt


def _without_options(text: str) -> str:
    """Cut ``text`` at option "A. ...", if a matching option B follows and text comes before."""
    for option in _OPTION_A.finditer(text):
        following = f"{option[1]}B{option[2]}"
        if text.rfind(following) > option.start():
            return text[: option.start()].strip() or text
    return text


def _before(pattern: re.Pattern[str], text: str) -> str:
    """Return ``text`` before the match, unless that is empty."""
    match = pattern.search(text)
    return (text[: match.start()].strip() or text) if match else text


def _after(pattern: re.Pattern[str], text: str) -> str:
    """Return ``text`` after the match, unless that is empty."""
    match = pattern.search(text)
    return (text[match.end() :].strip() or text) if match else text
