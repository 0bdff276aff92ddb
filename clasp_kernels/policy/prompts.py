"""Finding the question in a prompt: the last user turn, without template, image or options."""

from __future__ import annotations

import re

# Where a user's turn starts, in the chat templates met in practice. Lower-case "user:" is left
# alone: people write it in ordinary sentences.
_USER_STARTS = re.compile(
    r"<\|im_start\|>\s*user\b"  # ChatML: Qwen, InternVL
    r"|<\|start_header_id\|>\s*user\s*<\|end_header_id\|>"  # Llama 3
    r"|<\|user\|>"  # Phi
    r"|<start_of_turn>\s*user\b"  # Gemma
    r"|\[INST\](?:\s*<<SYS>>.*?<</SYS>>)?"  # Llama 2, Mistral
    r"|\bUSER:"  # Vicuna, LLaVA 1.5
    r"|^(?:###\s*)?(?:User|Human):",  # Idefics, Alpaca-like
    re.MULTILINE | re.DOTALL,
)
_USER_ENDS = re.compile(
    r"<\|im_end\|>|<\|eot_id\|>|<\|end\|>|<\|assistant\|>|<end_of_turn>|<end_of_utterance>"
    r"|\[/INST\]|</s>|\bASSISTANT:|^(?:###\s*)?Assistant:",
    re.MULTILINE,
)
# Expanded prompts repeat these hundreds of times; str.replace takes them out at C speed.
_IMAGE_TOKENS = ("<image>", "<video>", "<|image_pad|>", "<|video_pad|>", "<image_soft_token>")
_TAG = re.compile(r"<[^<>\s]{1,40}>|\[IMG\w*\]")
# The first of a run of options: "A. ...", "(A) ...", "A) ...", with a B of the same kind later.
_OPTIONS = re.compile(
    r"(?:^|\s)(?P<open>\(?)A(?P<close>[.):])\s.*?\s(?P=open)B(?P=close)\s", re.DOTALL
)
_OPTIONS_HEADER = re.compile(r"\b(?:options|choices)\s*:\s*$", re.IGNORECASE)
_QUESTION_HEADER = re.compile(r"\bquestion\s*:", re.IGNORECASE)
_OCR_HINT = re.compile(r"\breference ocr tokens?\s*:", re.IGNORECASE)
# Quoted words are what is talked about, not what is asked. Single quotes double as apostrophes,
# so they only count with a space or the end around them.
_QUOTED = re.compile(r"\"[^\"]*\"|“[^”]*”|(?<!\w)['‘][^'’]*['’](?!\w)")
_QUESTION_SENTENCE = re.compile(r"[^.?!\n]*(?:\.\w[^.?!\n]*)*\?")

# A router's cost is bounded: of a longer turn only this much of the start and of the end is read.
_MAX_CHARACTERS = 1200


def last_user_turn(prompt: str) -> str:
    """The text of the last user turn of a chat prompt; plain text comes back whole.

    >>> last_user_turn("USER: <image>\\nWhat is this? ASSISTANT: A cat.</s>USER: Where? ASSISTANT:")
    ' Where? '
    """
    start = end = 0
    for match in _USER_STARTS.finditer(prompt):
        start = match.end()
    turn = prompt[start:]
    if start and (match := _USER_ENDS.search(turn)):
        end = match.start()
        return turn[:end]
    return turn


def find_question(prompt: str) -> str:
    """What the last user turn asks, without image tokens, options, quotations or context.

    Of several sentences the ones that end in a question mark are kept, if there are any.

    >>> find_question("<image>\\nI like maps. Where is it?\\nA. left\\nB. right\\nAnswer with a letter.")
    'Where is it?'
    """
    text = prompt
    for token in _IMAGE_TOKENS:
        if token in text:
            text = text.replace(token, " ")
    text = last_user_turn(text)
    if len(text) > _MAX_CHARACTERS:
        half = _MAX_CHARACTERS // 2
        text = f"{text[:half]} {text[-half:]}"
    if "<" in text or "[IMG" in text:
        text = _TAG.sub(" ", text)
    for match in _QUESTION_HEADER.finditer(text):
        if text[match.end() :].strip():
            text = text[match.end() :]
            break
    text = _before(_OPTIONS, text)
    text = _before(_OPTIONS_HEADER, text)
    text = _before(_OCR_HINT, text)
    if '"' in text or "'" in text or "“" in text or "‘" in text:
        text = _QUOTED.sub(" ", text)
    if "?" in text:
        questions = [found.strip() for found in _QUESTION_SENTENCE.findall(text)]
        text = " ".join(question for question in questions if len(question) > 1) or text
    return text.strip()


def _before(pattern: re.Pattern[str], text: str) -> str:
    """``text`` up to the match, unless nothing would be left."""
    match = pattern.search(text)
    if match and (head := text[: match.start()].strip()):
        return head
    return text
