"""Telling the turns of a chat prompt apart by what all chat templates share.

A template marks each turn with the role of who speaks, and marks all turns alike:

- a special token names the role: ``<|user|>``, ``[INST]``, ``<|USER_TOKEN|>``;
- the role follows a special token that opens every turn: ``<|im_start|>user``;
- the role stands before a colon or in a heading: ``USER:``, ``### Human:``;
- the role fills a line or clings to its text, which is what remains of the second kind once
  special tokens are gone: ``user\\n...\\nassistant\\n...``.

A prompt can hold markers of several kinds, because people write about chats and give examples of
them. The turns are those of the kind that is surest, and of equals the one that comes first.

Everything here runs in time linear in the prompt.
"""

from __future__ import annotations

import re
from bisect import bisect_left
from collections import Counter
from functools import lru_cache
from typing import NamedTuple

_USER, _ASSISTANT, _OTHER = "user", "assistant", "other"
_END, _HEADER, _MEDIA = "end", "header", "media"

# Speakers, and the parts of an exercise. Both name turns, but an exercise can stand inside a turn.
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
# What special tokens say besides. "im" is no image: it stands in <|im_start|>.
_MEDIA_WORDS = {
    *("image", "images", "img", "vision", "video", "audio", "picture", "media"),
    *("patch", "frame", "pad", "box", "ref", "quad", "object"),
}
_HEADER_WORDS = {"role", "header", "message", "middle", "channel"}
_END_WORDS = {"end", "eot", "eos", "eom", "eoh", "eoa", "eod", "sep", "separator"}

_PARTS = re.compile(r"[^\W_]+")
# A special token, and the word after it if nothing else stands between it and the line's end or
# another token.
_TOKEN = re.compile(
    r"(<[^<>\n]{1,40}>|\[[^\[\]\n]{1,24}\])"
    r"(?:[ \t]*([^\W\d_]{1,12})(?=[ \t]*(?:[\n<\[]|$)|[ ]name=))?"
)
# Each spelling in full: the search then skips to letters that can start one.
_SPELLINGS = sorted(
    {spelling for word in _ROLES for spelling in (word, word.capitalize(), word.upper())} | {"AI"},
    key=lambda spelling: (-len(spelling), spelling),
)
# Then what makes it a marker: a colon or a bracket; the end of the line; text that touches it.
_WORD = re.compile(
    rf"({'|'.join(_SPELLINGS)})(?:"
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
_COLON_AFTER = re.compile(r" ?:")
_FULL_WIDTH = {"\uff1a": ":", "\uff5c": "|", "\uff01": "!", "\uff1f": "?", "\u3002": "."}
_TOOL_RESULT = re.compile(r"\s*<\|?(?:tool|function|observation)")
_TAGS = re.compile(r"<[^<>\n]{1,40}>|\[[^\[\]\n]{1,24}\]")


class _Token(NamedTuple):
    """What a special token says: a role or another meaning, and the shape shared by all roles."""

    role: str = ""
    shape: str = ""
    word: str = ""  # the role as it is written
    closes: bool = False
    sure: bool = False  # nobody writes it in a sentence


_Tokens = list[tuple[re.Match[str], _Token]]


class _Marker(NamedTuple):
    """Where a turn of ``role`` opens: its text starts at ``end``."""

    role: str
    start: int
    end: int
    strong: bool = True
    name: str = ""


class _Reading(NamedTuple):
    """One way to divide a prompt: the lower the rank, the surer; ``opener`` starts every turn."""

    rank: int
    markers: list[_Marker]
    opener: str = ""


def last_user_turn(prompt: str) -> str:
    """The text of the last user turn of a chat prompt; plain text comes back whole.

    Empty where a prompt evidently has several turns, but not which one is the user's last.

    >>> last_user_turn("USER: <image>\\nWhat is this? ASSISTANT: A cat.</s>USER: Where? ASSISTANT:")
    ' Where? '
    >>> last_user_turn("Is this a cat?</s>Yes.</s>Where is it?</s>")
    ''
    """
    if not any(sign in prompt for sign in ("<", "[", ":", "\uff1a", "\n", "assistant")):
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
    # Some templates hand over what a tool found as if the user had said it.
    spoken = [i for i in asked if not _TOOL_RESULT.match(text, best.markers[i].end)]
    return _turn(text, best, (spoken or asked)[-1], tokens)


# The kinds of readings, the surest first. Role words alone on their lines are turns if the prompt
# starts with one; further on, two of them may be a list.
_SURE, _BARE, _COLON, _TAG, _EXERCISE_RANK, _BARE_INSIDE, _ROLE_WITHOUT_ANSWER = range(7)
_MIN_BARE = 2


def _token_readings(text: str, tokens: _Tokens) -> list[_Reading]:
    """Readings by special tokens that name a role or stand before one."""
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
    # A user may write of "<|user|>" where the template has "<|User|>".
    return [
        reading._replace(markers=[m for m in reading.markers if m.role != _USER or m.name == name])
        for reading in readings
        if (name := next((m.name for m in reading.markers if m.role == _USER), None)) is not None
    ]


def _header_end(tokens: _Tokens, index: int, end: int) -> int:
    """``end``, or the end of a token there that only closes the name of the role."""
    if index + 1 < len(tokens):
        match, token = tokens[index + 1]
        if match.start() == end and token.role == _HEADER:
            return match.end(1)
    return end


def _word_readings(text: str) -> list[_Reading]:
    """Readings by role words: before a colon, alone on a line, or as an attribute."""
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
            # A colon makes a marker anywhere, other signs do at the start of a line.
            if not opens and (":" not in match[0] or before[-1] not in " \t\n#*.!?"):
                continue
            strong = opens or "#" in decoration or (word.isupper() and len(word) > 1)
            colons[people].append(_Marker(role, start, end, strong, word))
        elif (
            people
            and before[-1:] not in (" ", "\t")
            # Without special tokens, "user" may touch the answer before it and the question
            # after it. Other spellings must fill their line.
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
    """The markers that divide a chat whose user is called ``name``.

    A name before a colon inside a line only opens a turn when it is that speaker's turn: people
    write "the user: where is he" too.
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
    """The text of one turn of a reading, up to where the next turn or an end token stands."""
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
    # Who answers may have a name that is no role: what also stood between earlier turns opens
    # the answer.
    known = any(marker.role == _ASSISTANT for marker in reading.markers)
    said = False  # anything but tokens, up to the token at hand
    position = start
    for match, token in tokens[first:last]:
        said = said or (not text[position : match.start()].isspace() and match.start() > position)
        position = match.end(1)
        if token.closes and token.word.casefold() in ("sys", "system"):
            start = position + text.startswith(">", position)
        elif (token.role == _USER and token.closes) or (
            # <im_start><im_patch><im_end> is an image: an end comes after something said.
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
    """The last user turn where no role word marks it; empty if unclear, None if there are no turns.

    A prompt is to be answered. If it ends with what has opened turns before, then the turn in
    front of it is the one to answer.
    """
    names = list(_NAME.finditer(text))
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
    """``text`` divided at the tokens in ``marks``."""
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
    """``text`` without what a model thought before it answered."""
    if "</think>" not in text:
        return text
    *parts, rest = text.split("</think>")
    kept = []
    for part in parts:
        before, opening, thought = part.rpartition("<think>")
        # "Use <think> </think>" is what a user says.
        kept.append(before if opening and thought.strip() else f"{part}</think>")
    return "".join([*kept, rest])
