# ruff: noqa: RUF001  (templates with full-width signs)
"""The last user turn is found in many chat templates, most of which the rules do not know."""

from __future__ import annotations

import time
from collections.abc import Callable

import pytest

from clasp_kernels.policy import Router
from clasp_kernels.policy.question import find_question, last_user_turn

Turns = list[tuple[str, str]]
Template = Callable[[Turns], str]


def marked(
    user: str,
    assistant: str,
    *,
    system: str = "",
    begin: str = "",
    prompt: str | None = None,
) -> Template:
    """Make a template from patterns with one {} each. ``prompt`` opens the answer; "" for none."""
    patterns = {"user": user, "assistant": assistant, "system": system}
    opening = assistant.partition("{}")[0] if prompt is None else prompt

    def render(turns: Turns) -> str:
        return begin + "".join(patterns[role].replace("{}", text) for role, text in turns) + opening

    return render


def roles(
    pattern: str,
    *,
    user: str = "user",
    assistant: str = "assistant",
    begin: str = "",
    prompt: str | None = None,
) -> Template:
    """Make a template with the same pattern for every role; ROLE is the name of the role."""
    return marked(
        pattern.replace("ROLE", user),
        pattern.replace("ROLE", assistant),
        system=pattern.replace("ROLE", "system"),
        begin=begin,
        prompt=prompt,
    )


# The rules were developed with these templates.
SEEN: dict[str, Template] = {
    "chatml": roles("<|im_start|>ROLE\n{}<|im_end|>\n"),
    "llama3": roles(
        "<|start_header_id|>ROLE<|end_header_id|>\n\n{}<|eot_id|>", begin="<|begin_of_text|>"
    ),
    "llama2": marked("<s>[INST] {} [/INST]", " {} </s>", prompt=""),
    "pixtral": marked("[INST]{}[/INST]", "{}</s>", begin="<s>", prompt=""),
    "gemma3": roles("<start_of_turn>ROLE\n{}<end_of_turn>\n", assistant="model", begin="<bos>"),
    "phi35 vision": roles("<|ROLE|>\n{}<|end|>\n"),
    "vicuna": marked("USER: {} ", "ASSISTANT: {}</s>", begin="A chat with a curious user. "),
    "idefics2": roles("ROLE:{}<end_of_utterance>\n", user="User", assistant="Assistant"),
    "granite": roles("<|start_of_role|>ROLE<|end_of_role|>{}<|end_of_text|>\n"),
    "deepseek vl": roles("<|ROLE|>: {}\n\n", user="User", assistant="Assistant"),
    "command r": marked(
        "<|START_OF_TURN_TOKEN|><|USER_TOKEN|>{}<|END_OF_TURN_TOKEN|>",
        "<|START_OF_TURN_TOKEN|><|CHATBOT_TOKEN|>{}<|END_OF_TURN_TOKEN|>",
        begin="<BOS_TOKEN>",
    ),
    "kimi": roles("<|im_ROLE|>ROLE<|im_middle|>{}<|im_end|>"),
    "molmo": roles(" ROLE: {}", user="User", assistant="Assistant"),
    "yi vl": marked("### Human: {}\n", "### Assistant: {}\n"),
    "blip2": marked("Question: {} ", "Answer: {}. "),
    "harmony": roles("<|start|>ROLE<|message|>{}<|end|>"),
    "falcon": marked("User: {}\n", "Falcon: {}\n"),
    "chatml, decoded": roles("ROLE\n{}\n"),
    "llama3, decoded": roles("ROLE\n\n{}"),
    "kimi, decoded": roles("ROLE{}"),
}
# Collected before any rule was written, and only scored: 37 of 38 were right at the first try.
HELD_OUT: dict[str, Template] = {
    "deepseek vl2": marked(
        "<｜User｜>: {}\n\n",
        "<｜Assistant｜>: {}<｜end▁of▁sentence｜>",
        begin="<｜begin▁of▁sentence｜>",
    ),
    "glm4v": roles("<|ROLE|>\n{}", begin="[gMASK]<sop>"),
    "llama4": roles("<|header_start|>ROLE<|header_end|>\n\n{}<|eot|>", begin="<|begin_of_text|>"),
    "smolvlm": marked("<|im_start|>User:{}<end_of_utterance>\n", "Assistant: {}\n"),
    "idefics3": marked(
        "User:{}<end_of_utterance>\n",
        "Assistant: {}<end_of_utterance>\n",
        begin="<|begin_of_text|>",
    ),
    "phi4": roles("<|ROLE|>{}<|end|>"),
    "olmo": marked("<|user|>\n{}\n", "<|assistant|>\n{}<|endoftext|>\n", begin="<|endoftext|>"),
    "zephyr": roles("<|ROLE|>\n{}</s>\n"),
    "gemma4": roles("<|turn>ROLE\n{}<turn|>\n", assistant="model", begin="<bos>"),
    "exaone": marked("[|user|]{}\n", "[|assistant|]{}[|endofturn|]\n"),
    "apertus": roles("<|ROLE_start|>{}<|ROLE_end|>"),
    "step3": roles("<｜BOT｜>ROLE\n{}<｜EOT｜>"),
    "seed": roles("<seed:bos>ROLE\n{}<seed:eos>"),
    "nemotron": roles("<extra_id_1>ROLE\n{}\n", user="User", assistant="Assistant"),
    "hunyuan": marked("{}<|extra_0|>", "{}<|eos|><|startoftext|>", prompt=""),
    "baichuan": marked("<reserved_106>{}", "<reserved_107>{}"),
    "redpajama": marked("<human>: {}\n", "<bot>: {}\n"),
    "reka": marked("human: {} <sep> ", "assistant: {} <sep> "),
    "alpaca": marked("### Instruction:\n{}\n\n", "### Response:\n{}\n\n"),
    "solar": marked("### User:\n{}\n\n", "### Assistant:\n{}\n\n"),
    "grok": marked("Human: {}<|separator|>\n\n", "Assistant: {}<|separator|>\n\n"),
    "minicpm": marked("<用户>{}", "<AI>{}"),
    "chatglm": marked("问：{}\n\n", "答：{}\n\n"),
    "internlm": marked("<|User|>:{}<eoh>\n", "<|Bot|>:{}<eoa>\n"),
    "moss": marked("<|Human|>: {}<eoh>\n", "<|MOSS|>: {}<eom>\n"),
    "oasst": marked("<|prompter|>{}<|endoftext|>", "<|assistant|>{}<|endoftext|>"),
    "openchat": roles(
        "GPT4 Correct ROLE: {}<|end_of_turn|>", user="User", assistant="Assistant", begin="<s>"
    ),
    "q and a": marked("Q: {}\n", "A: {}\n"),
    "names": marked("Alice: {}\n", "Bob: {}\n"),
    "customer": marked("Customer: {}\n", "Agent: {}\n"),
    "xml": marked('<turn role="user">{}</turn>\n', '<turn role="assistant">{}</turn>\n'),
    "bold": marked("**User:** {}\n\n", "**Assistant:** {}\n\n"),
    "brackets": marked("[USER] {} ", "[ASSISTANT] {} "),
    "headings": marked("## User\n{}\n\n", "## Assistant\n{}\n\n"),
    "json": marked(
        '{"role": "user", "content": "{}"}, ', '{"role": "assistant", "content": "{}"}, ', prompt=""
    ),
    "lower case": marked("user: {}\n", "bot: {}\n"),
    "granite, decoded": roles("ROLE{}\n"),
    "gemma3, decoded": roles("ROLE\n{}\n", assistant="model"),
}
SYSTEM = "You read what users say. User questions: count how many.\n"
# Some of 49 templates collected after the rules. At the first try 44 were right, and 2 of the
# others gave "general".
LATER: dict[str, Template] = {
    "jamba": roles("<|bom|><|ROLE|> {}<|eom|>", begin="<|startoftext|>"),
    "h2o": marked("<|prompt|>{}</s>", "<|answer|>{}</s>"),
    "koala": marked("USER: {} ", "GPT: {}</s>", begin="BEGINNING OF CONVERSATION: "),
    "kosmos": marked("Question: {} ", "Answer: {} ", begin="<grounding> "),
    "minigpt 4": marked(
        "###Human: <Img><ImageHere></Img> {} ",
        "###Assistant: {}",
        begin="You get an image: <Img>ImageContent</Img>. ",
    ),
    "otter": marked("<image>User: {} ", "GPT:<answer> {}<|endofchunk|>"),
    "chameleon": marked("{}<reserved08706>", "{}<eos>", prompt=""),
    "granite, system": roles(
        "<|start_of_role|>ROLE<|end_of_role|>{}<|end_of_text|>\n",
        begin=f"<|start_of_role|>system<|end_of_role|>{SYSTEM}<|end_of_text|>\n",
    ),
    "falcon, system": marked("User: {}\n", "Falcon: {}\n", begin=f"System: {SYSTEM}"),
    "vicuna, system": marked("USER: {} ", "ASSISTANT: {}</s>", begin=SYSTEM),
    "kimi, system, decoded": roles("ROLE{}", begin=f"system{SYSTEM}"),
    "glm thinking": marked(
        "<|user|>\n{}", "<|assistant|>\n<think>The user asks how many</think>\n{}"
    ),
    "elements": marked(
        "<user>\n{}\n</user>\n", "<bot>\n{}\n</bot>\n", begin=f"<system>\n{SYSTEM}</system>\n"
    ),
    "dashes": marked("User - {}\n", "Assistant - {}\n"),
    "hashes": marked("#User#: {}\n", "#Bot#: {}\n"),
}
TEMPLATES = SEEN | HELD_OUT | LATER
# In these templates, only the opening of the answer shows which speaker is the user.
NEED_OPENING = {"hunyuan", "baichuan", "names", "openchat", "oasst", "chameleon", "h2o"}
QUESTIONS = {
    "How many circles are there?": "Three.",
    "What does the sign say?": "STOP",
    "What color is the car?": "It is red.",
    "Is the cat left of the dog?": "Yes, left of it.",
    "Describe the scene.": "How many words? A street, with a sign that says STOP.",
    "Why is the man laughing?": "Because the user told a joke.",
}
COUNTED, ASKED = "How many dogs are there?", "Where is the dog?"


def conversations(images: str) -> list[tuple[Turns, str]]:
    """Return conversations of two and three questions that end with each pair of questions.

    Each comes with its last question.
    """
    questions = list(QUESTIONS)
    found: list[tuple[Turns, str]] = []
    for before in questions:
        for last in questions:
            first = questions[questions.index(last) - 1]
            short: Turns = [("user", before), ("assistant", QUESTIONS[before])]
            longer: Turns = [("user", first), ("assistant", QUESTIONS[first]), *short]
            found += [([*turns, ("user", images + last)], last) for turns in (short, longer)]
    return found


@pytest.mark.parametrize("images", ["", "<image>\n"])
@pytest.mark.parametrize("name", TEMPLATES)
def test_the_last_question_of_a_conversation_is_routed(name, images):
    router, template = Router(), TEMPLATES[name]
    wrong = [
        (template(turns), router.explain(template(turns)))
        for turns, last in conversations(images)
        if router.route([template(turns)]) != router.route([last])
    ]
    assert not wrong


@pytest.mark.parametrize("name", [name for name in TEMPLATES if name not in NEED_OPENING])
def test_without_an_answer_to_come_the_last_question_is_still_found(name):
    template = TEMPLATES[name]
    prompt = template([("user", COUNTED), ("assistant", "Three."), ("user", ASKED)])
    opening = template([])[len(template([("user", "")])) :]
    assert Router().route([prompt.removesuffix(opening)]) == ["spatial"]


def chatml(*turns: tuple[str, str]) -> str:
    said = "".join(f"<|im_start|>{role}\n{text}<|im_end|>\n" for role, text in turns)
    return f"{said}<|im_start|>assistant\n"


@pytest.mark.parametrize(
    "prompt",
    [
        # Examples and role words before the turns.
        chatml(
            ("system", f"A user asks.\nUser: {COUNTED}\nAssistant: 3\nuser\nassistant"),
            ("user", ASKED),
        ),
        f"system\nUser: {COUNTED}\nAssistant: 3\nuser\n{COUNTED}\nassistant\n3\nuser\n{ASKED}\n"
        "assistant\n",
        f"Count. Question: {COUNTED} Answer: 3. Question: {ASKED} Answer:",
        f"[SYSTEM_PROMPT]Count.[/SYSTEM_PROMPT][INST]{COUNTED}[/INST]3</s>[INST]{ASKED}[/INST]",
        f"<s>[INST] <<SYS>>\nCount.\n<</SYS>>\n\n{COUNTED} [/INST] 3 </s><s>[INST] {ASKED} [/INST]",
        # Tools.
        chatml(("user", ASKED), ("assistant", "f()"), ("tool", "how many")),
        chatml(("user", ASKED), ("user", "<tool_response>\nhow many\n</tool_response>")),
        f"<|start|>developer<|message|>Count.<|end|><|start|>user<|message|>{ASKED}<|end|>"
        "<|start|>assistant to=functions.f<|message|>{}<|call|>"
        "<|start|>functions.f to=assistant<|message|>how many<|end|><|start|>assistant",
        # Reasoning.
        chatml(("user", COUNTED), ("assistant", "<think>\nUser: 3?\n</think>3"), ("user", ASKED))
        + "<think>\n",
        f"User: {ASKED}\nAssistant: <think>\nUser: how many?\n</think>Left",
        # Partial or complete answers at the end.
        f"USER: {COUNTED} ASSISTANT: 3 USER: {ASKED} ASSISTANT: Answer:",
        f"<|user|>\n{ASKED}<|end|>\n<|assistant|>\nHow many? 3<|end|>\n",
        f"User: {COUNTED}\nFalcon: 3\nUser: {ASKED}\nFalcon: how many?",
        # Exercises inside turns, and alone.
        f"USER: <image>\nQuestion: {COUNTED}\nAnswer: ASSISTANT: 3</s>"
        f"USER: <image>\nQuestion: {ASKED}\nOptions:\n"
        "A. left\nB. right\nAnswer: ASSISTANT:",
        f"Question: {COUNTED}\nAnswer: 3\n\nQuestion: {ASKED}\nAnswer:",
        # Images.
        f"USER: <im_start><im_patch><im_patch><im_end>\n{ASKED} ASSISTANT:",
        f"<|user|>\n{COUNTED}<|end|>\n<|assistant|>\n3<|end|>\n<|user|>\n<|image_1|>\n{ASKED}<|end|>",
        # Lists of role words in an answer, Windows line ends, unusual markers.
        f"USER: {COUNTED} ASSISTANT: They are:\nuser\nassistant\nmodel</s>USER: {ASKED} ASSISTANT:",
        f"user\r\n{COUNTED}\r\nmodel\r\n3\r\nuser\r\n{ASKED}\r\nmodel\r\n",
        f"(user) {COUNTED}\n(assistant) 3\n(user) {ASKED}\n(assistant)",
        f"user> {COUNTED}\nassistant> 3\nuser> {ASKED}\nassistant>",
        f"=== USER ===\n{COUNTED}\n=== BOT ===\n3\n=== USER ===\n{ASKED}\n=== BOT ===\n",
        f"{{{{user}}}}: {COUNTED}\n{{{{char}}}}: 3\n{{{{user}}}}: {ASKED}\n{{{{char}}}}:",
        f"User 1: {COUNTED}\nBot: 3\nUser 1: {ASKED}\nBot:",
        f"Alice: {COUNTED} Bob: 3 Alice: {ASKED} Bob:",
        f"Alice: {COUNTED}\nBob: 3\nAlice: {ASKED}\nHint: low.\nBob:",
        f"</s>{ASKED}",
    ],
)
def test_only_the_last_question_is_left(prompt):
    assert find_question(prompt) == ASKED


@pytest.mark.parametrize(
    ("text", "rest"),
    [
        ("The picture reads\nUser: hi\nAssistant: ho\nWhere is User: in it?", "Where is User"),
        ('Where is the "<|user|>" on the sign, and where <user>?', "Where is"),
        ("Where is it? Put it in <answer> </answer> after <think> </think>.", "Where is it?"),
    ],
)
@pytest.mark.parametrize("name", ["chatml", "deepseek vl", "llama3", "granite", "gemma3"])
def test_users_may_write_about_chats(name, text, rest):
    turns = [("user", COUNTED), ("assistant", "Three."), ("user", text)]
    turn = last_user_turn(SEEN[name](turns))
    assert rest in turn
    assert turn.strip() == text


@pytest.mark.parametrize("name", ["idefics2", "falcon", "molmo", "customer"])
def test_users_may_write_other_names_than_theirs(name):
    text = "Where is the USER: label?"
    turns = [("user", COUNTED), ("assistant", "Three."), ("user", text)]
    assert last_user_turn(TEMPLATES[name](turns)).strip() == text


@pytest.mark.parametrize(
    "prompt",
    [
        "What does User: say next to Assistant: in the screenshot?",
        "What does the user: field say?",
        "Is (userId,modelId) readable?",
        "Where is <b>the dog</b>, and where is <user>?",
        "Title: a\nAuthor: b\nWhere is the dog?",
        "Where is the dog?\nA: left\nB: right",
        "This helps the\nuser\nwho asks the\nassistant\nabout dogs.",
        "<image><bos>caption en\n",
        "<CAPTION_TO_PHRASE_GROUNDING>a dog",
        "caption\n",
    ],
)
def test_text_without_turns_comes_back_whole(prompt):
    assert last_user_turn(prompt) == prompt


@pytest.mark.parametrize(
    "prompt",
    [
        # The last user turn is empty.
        chatml(("user", COUNTED), ("assistant", "3"), ("user", "")),
        f"<|user|>\n{COUNTED}<|end|>\n<|assistant|>\n3<|end|>\n<|user|>\n<|image_1|><|end|>\n",
        f"USER: {COUNTED} ASSISTANT: 3</s>USER: ASSISTANT:",
        chatml(("user", COUNTED), ("assistant", "3"), ("user", ""), ("weather", ASKED)),
        # Nothing distinguishes questions from answers.
        f"{COUNTED}</s>Three.</s>{ASKED}</s>",
        f"{COUNTED} ASSISTANT: 3 {ASKED} ASSISTANT:",
        f"Alice: {COUNTED}\nBob: 3\nAlice: {ASKED}\nBob: Left.",
    ],
)
def test_a_turn_that_is_empty_or_unclear_is_general(prompt):
    assert Router().route([prompt]) == ["general"]


@pytest.mark.parametrize(
    "row",
    [
        "<image>",
        "[IMG]" * 60 + "[IMG_BREAK]",
        "<|image_pad|>",
        "<|vision_start|>" + "<|video_pad|>" * 50 + "<|vision_end|>",
    ],
)
@pytest.mark.parametrize("name", ["chatml", "deepseek vl2", "vicuna", "falcon", "chatml, decoded"])
def test_an_expanded_image_costs_no_more_than_a_long_question(name, row):
    image = row * (3000 // max(row.count("<"), row.count("[")))
    router, template = Router(), TEMPLATES[name]
    prompt = template([("user", COUNTED), ("assistant", "Three."), ("user", image + ASKED)])
    assert router.route([prompt]) == ["spatial"]
    without = template([("user", COUNTED), ("assistant", "Three."), ("user", ASKED)])
    allowed = 20 * seconds(lambda: router.route([without])) + 2e-3
    assert seconds(lambda: router.route([prompt])) < allowed


@pytest.mark.parametrize(
    "unit",
    [
        *("</s><eos>", "<|im_start|>user\n", "<|im_start|>user\n<tool_response>", "<|user|>a</s>"),
        *(
            "User: a\n",
            "User: a\nBot: b\n",
            "a: b\n",
            "Question: a Answer: b ",
            "user\nassistant\n",
        ),
        *("<think></think>", "<think>", "<a><b><c>", "[INST][/INST]", '{"role": "user", ', "q \t"),
        *("\uff1a", "*", "user ", "userA", "<user></user>", "[[", "# ", "((user))"),
    ],
)
def test_cost_is_linear_in_the_prompt(unit):
    def cost(length: int) -> float:
        prompt = "<|im_start|>user\nx" * ("</s>" in unit) + unit * (length // len(unit))
        return seconds(lambda: last_user_turn(prompt))

    assert cost(40_000) < 8 * cost(10_000) + 5e-3


def seconds(call: Callable[[], object]) -> float:
    """Return the best of several runs in CPU time, so that other processes do not count."""
    found = []
    for _ in range(5):
        start = time.process_time()
        call()
        found.append(time.process_time() - start)
    return min(found)
