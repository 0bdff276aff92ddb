"""Split a chat prompt into turns by features that all chat templates share.

A template marks each turn with the role of the speaker, in the same way for all turns:

- a special token names the role: ``<|user|>``, ``[INST]``, ``<|USER_TOKEN|>``;
- the role follows a special token that opens every turn: ``<|im_start|>user``;
- the role is before a colon or in a heading: ``USER:``, ``### Human:``;
- the role fills a line or touches its text. This is left of the second kind after special tokens
  are removed: ``user\\n...\\nassistant\\n...``.

A prompt can contain markers of several kinds, because people write about chats and quote them. The
most reliable kind is used; among equals, the one that occurs first.

All functions run in time linear in the length of the prompt.
"""

from __future__ import annotations

import re
from bisect import bisect_left
from collections import Counter
from functools import lru_cache
from typing import NamedTuple

_USER, _ASSISTANT, _OTHER = "user", "assistant", "other"
_END, _HEADER, _MEDIA = "end", "header", "media"

# Role words for speakers and for the parts of an exercise. Both mark turns, but an exercise can
# also be quoted inside a turn.
_PEOPLE = {
    _USER: "user human customer 用户 人类",
    _ASSISTANT: "assistant model chatbot bot agent ai gpt 助手",
    _OTHER: "system tool developer function observation",
}
_EXERCISE = {
    _USER: "question instruction query q 问",
    _ASSISTANT: "answer response a 答",
}
_ROLES = {
    word: (role, family)
    for family in (_PEOPLE, _EXERCISE)
    for role, words in family.items()
    for word in words.split()
}
_PEOPLE_WORDS = frozenset(" ".join(_PEOPLE.values()).split())
_TOKEN_ROLES = {word: role for word, (role, _) in _ROLES.items() if len(word) > 1 or word > "z"} | {
    "inst": _USER,
    "usr": _USER,
    "sys": _OTHER,
    "tools": _OTHER,
}
# Other words in special tokens. "im" does not mean image: it occurs in <|im_start|>.
_MEDIA_WORDS = {
    *("image", "images", "img", "vision", "video", "audio", "picture", "media"),
    *("patch", "frame", "pad", "box", "ref", "quad", "object"),
}
_HEADER_WORDS = {"role", "header", "message", "middle", "channel"}
_END_WORDS = {"end", "eot", "eos", "eom", "eoh", "eoa", "eod", "sep", "separator"}

_PARTS = re.compile(r"[^\W_]+")
# A special token, and the word after it if that word is followed by the end of the line or another
# token.
_TOKEN = re.compile(
    r"(<[^<>\n]{1,40}>|\[[^\[\]\n]{1,24}\])"
    r"(?:[ \t]*([^\W\d_]{1,12})(?=[ \t]*(?:[\n<\[]|$)|[ ]name=))?"
)
# All spellings are written out, so that the regex engine can skip to letters that start one.
_SPELLINGS = sorted(
    {spelling for word in _ROLES for spelling in (word, word.capitalize(), word.upper())} | {"AI"},
    key=lambda spelling: (-len(spelling), spelling),
)
# By first letter, so that a place in a text is compared with a few words and not with all.
_BY_LETTER = "|".join(
    f"{letter}(?:{'|'.join(word[1:] for word in _SPELLINGS if word[0] == letter)})"
    for letter in sorted({word[0] for word in _SPELLINGS})
)
# A role word, followed by a colon or a bracket, the end of the line, or text that touches it.
_WORD = re.compile(
    rf"({_BY_LETTER})(?:"
    r"((?:[ \t]?\d{1,2})?[)}*#]*[ \t]*[:>]\**|[)}]+(?=\s)|[ \t]-(?=\s))|"
    r"([ \t=*)}-]*(?=\n|$))|"
    r"(?=[A-Z<\"']))"
)
_DECORATION = " \t#*=-({"
_ATTRIBUTE = re.compile(r"(?:role|from)[\"']?\s{0,3}[:=]\s{0,3}[\"']$")
_ATTRIBUTE_END = re.compile(
    r"[\"'](?:,\s{0,3}[\"']?(?:content|value|text)[\"']?\s{0,3}[:=]\s{0,3}[\"']?)?"
)
_NAME = re.compile(r"(?:^|(?<=\s))\**([^\W\d_]\w{0,19})\**[ \t]*:\**")
# Every marker of a turn contains one of these, or "assistant".
_SIGN = re.compile(r"[<\[:\uff1a\n]")
_COLON_AFTER = re.compile(r" ?:")
_FULL_WIDTH = {"\uff1a": ":", "\uff5c": "|", "\uff01": "!", "\uff1f": "?", "\u3002": "."}
_TOOL_RESULT = re.compile(r"\s*<\|?(?:tool|function|observation)")
_TAGS = re.compile(r"<[^<>\n]{1,40}>|\[[^\[\]\n]{1,24}\]")


class _Token(NamedTuple):
    """The meaning of a special token: a role or something else."""

    role: str = ""
    shape: str = ""  # the token with "*" for the role word
    word: str = ""  # the role as it is spelled
    closes: bool = False
    sure: bool = False  # the token does not occur in ordinary sentences


_Tokens = list[tuple[re.Match[str], _Token]]


class _Marker(NamedTuple):
    """The marker from ``start`` to ``end`` that opens a turn of ``role``."""

    role: str
    start: int
    end: int
    strong: bool = True
    name: str = ""


class _Reading(NamedTuple):
    """One way to divide a prompt into turns. Lower ranks are more reliable. ``opener`` is the token
    that starts every turn, if there is one."""

    rank: int
    markers: list[_Marker]
    opener: str = ""


def last_user_turn(prompt: str) -> str:
    """Return the text of the last user turn of a chat prompt; plain text is returned unchanged.

    Returns "" if the prompt has several turns, but the last user turn cannot be identified.

    >>> last_user_turn("USER: <image>\\nWhat is this? ASSISTANT: A cat.</s>USER: Where? ASSISTANT:")
    ' Where? '
    >>> last_user_turn("Is this a cat?</s>Yes.</s>Where is it?</s>")
    ''
    """
    if not _SIGN.search(prompt) and "assistant" not in prompt:
        return prompt
    text = _without_thoughts(prompt.replace("\r\n", "\n"))
    if not text.isascii():
        for wide, narrow in _FULL_WIDTH.items():
            text = text.replace(wide, narrow)
    tokens = [(match, _read(match[1])) for match in _TOKEN.finditer(text)]
    readings = _token_readings(text, tokens)
    if not any(reading.rank == _SURE for reading in readings):
        readings += _word_readings(text)
    best = min(readings, key=lambda r: (r.rank, r.markers[0].start), default=None)
    if best is None or best.rank == _ROLE_WITHOUT_ANSWER:
        turn = _unnamed_turn(text, tokens, best is None)
        if turn is not None:
            return turn
        if best is None:
            return prompt
    asked = [index for index, marker in enumerate(best.markers) if marker.role == _USER]
    # Some templates give tool results the user role.
    spoken = [i for i in asked if not _TOOL_RESULT.match(text, best.markers[i].end)]
    return _turn(text, best, (spoken or asked)[-1], tokens)


# The ranks of readings, most reliable first. Role words alone on their lines are turns if the
# prompt starts with one. If it does not, two of them may be a list, so more are needed.
_SURE, _BARE, _COLON, _TAG, _EXERCISE_RANK, _BARE_INSIDE, _ROLE_WITHOUT_ANSWER = range(7)
_MIN_BARE = 2


def _token_readings(text: str, tokens: _Tokens) -> list[_Reading]:
    """Return the readings from special tokens that name a role or precede one."""
    named: dict[str, list[_Marker]] = {}
    opened: dict[str, list[_Marker]] = {}
    sure: set[str] = set()
    answered: set[str] = set()
    for index, (match, token) in enumerate(tokens):
        word = match[2]
        follows = _TOKEN_ROLES.get(word.casefold(), "") if word else ""
        if follows and follows != token.role and token.role != _MEDIA and not token.closes:
            end = _header_end(tokens, index, match.end())
            marker = _Marker(follows, match.start(), end, name=word)
            opened.setdefault(match[1], []).append(marker)
        elif token.shape and not token.closes:
            end = _header_end(tokens, index, match.end() if follows else match.end(1))
            colon = _COLON_AFTER.match(text, end)
            end = colon.end() if colon else end
            marker = _Marker(token.role, match.start(), end, name=token.word)
            named.setdefault(token.shape, []).append(marker)
            if token.sure:
                sure.add(token.shape)
        if token.role == _ASSISTANT or (token.role == _USER and token.closes):
            answered.add(token.shape)
    readings = [_Reading(_SURE, markers, opener) for opener, markers in opened.items()]
    for shape, markers in named.items():
        if shape in sure or shape in answered:
            readings.append(_Reading(_SURE if shape in sure else _TAG, markers))
    # The spelling of the first user marker is the template's; others may be quoted in the text.
    return [
        reading._replace(markers=[m for m in reading.markers if m.role != _USER or m.name == name])
        for reading in readings
        if (name := next((m.name for m in reading.markers if m.role == _USER), None)) is not None
    ]


def _header_end(tokens: _Tokens, index: int, end: int) -> int:
    """Return ``end``, or the end of a header token that starts there and closes the role name."""
    if index + 1 < len(tokens):
        match, token = tokens[index + 1]
        if match.start() == end and token.role == _HEADER:
            return match.end(1)
    return end


def _word_readings(text: str) -> list[_Reading]:
    """Return the readings from role words before a colon, alone on a line, or as an attribute."""
    colons: dict[bool, list[_Marker]] = {True: [], False: []}  # by family: people, exercise
    bare: list[_Marker] = []
    attributes: list[_Marker] = []
    for match in _WORD.finditer(text):
        word, start, end = match[1], match.start(), match.end()
        before = text[max(0, start - 12) : start]
        role, people = _ROLES[word.casefold()][0], word.casefold() in _PEOPLE_WORDS
        if text[end : end + 1] in ("'", '"') and match[2] is None:
            if before.endswith(text[end]) and _ATTRIBUTE.search(before):
                close = _ATTRIBUTE_END.match(text, end)
                attributes.append(_Marker(role, start, close.end() if close else end))
            continue
        lead = before.rstrip(_DECORATION)
        opens = not lead or lead[-1] in "\n>]"
        decoration = before[len(lead) :].strip()
        if match[2] is not None or (match[3] is not None and opens and decoration):
            # A colon makes a marker anywhere in a line, other signs only at its start.
            if not opens and (":" not in match[0] or before[-1] not in " \t\n#*.!?"):
                continue
            strong = opens or "#" in decoration or (word.isupper() and len(word) > 1)
            colons[people].append(_Marker(role, start, end, strong, word))
        elif (
            people
            and before[-1:] not in (" ", "\t")
            # Where special tokens were removed, "user" may touch the text before and after it.
            # Other spellings must fill their line.
            and (word.islower() or (opens and match[3] is not None))
        ):
            bare.append(_Marker(role, start, end, opens))
    readings = []
    if {_USER, _ASSISTANT} <= {marker.role for marker in attributes}:
        readings.append(_Reading(_SURE, attributes))
    if {_USER, _ASSISTANT} <= {marker.role for marker in bare} and bare[0].strong:
        first = not _TAGS.sub("", text[: bare[0].start]).strip()
        if first or len(bare) > _MIN_BARE:
            readings.append(_Reading(_BARE if first else _BARE_INSIDE, bare))
    for people, markers in colons.items():
        for name in dict.fromkeys(marker.name for marker in markers if marker.role == _USER):
            said = _said_in_turn(markers, name, people)
            answered = any(marker.role == _ASSISTANT for marker in said)
            if said and (answered or people):
                rank = _COLON if people else _EXERCISE_RANK
                readings.append(_Reading(rank if answered else _ROLE_WITHOUT_ANSWER, said))
    return readings


def _said_in_turn(markers: list[_Marker], name: str, people: bool) -> list[_Marker]:
    """Return the markers that divide a chat whose user is called ``name``.

    A name before a colon in the middle of a line opens a turn only if it is that speaker's turn,
    because "the user: where is he" can also be part of a sentence.
    """
    said: list[_Marker] = []
    speaker = ""
    for marker in markers:
        if marker.role == _USER and marker.name != name:
            continue
        if not marker.strong:
            if marker.role == _USER:
                first = not people and not marker.name.islower()
                in_turn = speaker != _USER if said else first
            else:
                in_turn = speaker == _USER and marker.role == _ASSISTANT
            if not in_turn:
                continue
        said.append(marker)
        speaker = marker.role
    return said if any(marker.role == _USER for marker in said) else []


def _turn(text: str, reading: _Reading, index: int, tokens: _Tokens) -> str:
    """Return the text of one turn of a reading, up to the next turn or an end token."""
    start = reading.markers[index].end
    stop = len(text)
    if index + 1 < len(reading.markers):
        stop = reading.markers[index + 1].start
    if reading.opener:
        following = text.find(reading.opener, start)
        stop = min(stop, following) if following >= 0 else stop
    own = [match.start() for match, _ in tokens]
    first, last = bisect_left(own, start), bisect_left(own, stop)
    earlier = {match[1] for match, _ in tokens[:first]}
    # The assistant's name may not be a known role word. Then a token that also occurred before
    # this turn opens the answer.
    known = any(marker.role == _ASSISTANT for marker in reading.markers)
    said = False  # whether there was text, not only tokens, before the current token
    position = start
    for match, token in tokens[first:last]:
        said = said or (not text[position : match.start()].isspace() and match.start() > position)
        position = match.end(1)
        if token.closes and token.word.casefold() in ("sys", "system"):
            start = position + text.startswith(">", position)
        elif (token.role == _USER and token.closes) or (
            # An end token needs text before it: <im_start><im_patch><im_end> is an image.
            said and (token.role == _END or not (known or token.role or match[1] not in earlier))
        ):
            stop = match.start()
            break
    turn = text[start:stop]
    names: set[str] | None = None
    for name in () if known else _NAME.finditer(turn):
        if name.start() and turn[name.start() - 1] == "\n":
            names = set(_NAME.findall(text[:start])) if names is None else names
            if name[1] in names or not turn[name.end() :].strip():
                return turn[: name.start()]
    return turn


def _unnamed_turn(text: str, tokens: _Tokens, no_user: bool) -> str | None:
    """Return the last user turn of a prompt without role words; "" if unclear, None without turns.

    The prompt ends where the answer starts. If it ends with a mark that has opened turns before,
    the turn before that mark is the one to answer.
    """
    names = list(_NAME.finditer(text)) if ":" in text else []
    counts = Counter(name[1] for name in names)
    if names and not text[names[-1].end() :].strip() and counts[names[-1][1]] > 1:
        for name in names[-2::-1]:
            if name[1] != names[-1][1] and counts[name[1]] > 1:
                return text[name.end() : names[-1].start()]
    if not no_user:
        return None
    marks = [(match, token) for match, token in tokens if token.role != _MEDIA]
    if marks and not text[marks[-1][0].end(1) :].strip(" \t\n:"):
        last, token = marks[-1]
        repeated = any(match[1] == last[1] for match, _ in marks[:-1])
        if token.role == _ASSISTANT or (repeated and token.role != _END and not token.closes):
            return next((part for part in reversed(_between(text, marks)) if part.strip()), "")
    lines = [name for name in names if not name.start() or text[name.start() - 1] == "\n"]
    order = [name[1] for name in lines]
    if len(order) > 2 and order[0] != order[1] and order[2:] == order[:-2]:
        return text[lines[-1].end() :] if len(order) % 2 else ""
    said = _between(text, [(match, token) for match, token in marks if token.role == _END])
    answers = [
        name
        for name in names
        if len(name[1]) > 1 and _ROLES.get(name[1].casefold(), ("",))[0] == _ASSISTANT
    ]
    several = sum(any(map(str.isalpha, _TAGS.sub("", part))) for part in said) > 1
    return "" if several or len(answers) > 1 else None


def _between(text: str, marks: _Tokens) -> list[str]:
    """Split ``text`` at the tokens in ``marks``."""
    stops = [match.start() for match, _ in marks] + [len(text)]
    starts = [0] + [match.end(1) for match, _ in marks]
    return [text[start:stop] for start, stop in zip(starts, stops, strict=True)]


@lru_cache(maxsize=1024)
def _read(token: str) -> _Token:
    parts = [(part, part[0].casefold()) for part in _PARTS.finditer(token)]
    words = {word for _, word in parts}
    if words & _MEDIA_WORDS:
        return _Token(_MEDIA)
    ends = bool(words & _END_WORDS) or any(word.startswith("endof") for word in words)
    closes = token[1] == "/" or ends
    for part, word in reversed(parts):
        role = _TOKEN_ROLES.get(word)
        if role is not None:
            shape = f"{token[: part.start()]}*{token[part.end() :]}".replace("/", "", 1)
            sure = token[1] == "|" or word == "inst"
            return _Token(role, shape, part[0], closes, sure)
    if words & _HEADER_WORDS:
        return _Token(_HEADER)
    return _Token(_END) if ends or token == "</s>" else _Token()


def _without_thoughts(text: str) -> str:
    """Remove the reasoning before ``</think>`` from ``text``."""
    if "</think>" not in text:
        return text
    *parts, rest = text.split("</think>")
    kept = []
    for part in parts:
        before, opening, thought = part.rpartition("<think>")
        # Empty tags stay: a user may write "Use <think> </think>".
        kept.append(before if opening and thought.strip() else f"{part}</think>")
    return "".join([*kept, rest])
