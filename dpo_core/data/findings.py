"""What is odd about a conversation that a chat template made into text: it is trained on, but the user should know."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from typing import Literal

from dpo_core.data.records import JsonText, Message
from dpo_core.data.template import TemplateRefusal

FindingCode = Literal[
    "answer_changed",
    "date_in_template",
    "doubled_bos",
    "doubled_end_of_turn",
    "generation_prompt_differs",
    "no_end_of_turn",
    "special_token_in_text",
    "system_doubled",
    "system_dropped",
    "text_before_answer",
    "thinking_stripped",
    "tool_calls_dropped",
    "tools_dropped",
    "turn_changed",
    "unknown_token",
]

FINDINGS: dict[FindingCode, str] = {
    "answer_changed": "The chat template left out or changed some of the answer's text.",
    "date_in_template": "The chat template writes the date, which in a job is the day that it was made on: one "
    "that is made tomorrow sees other tokens. If the template takes a date (Llama's `date_string`), give it in "
    "`chat_template_kwargs`.",
    "doubled_bos": "The text began with the begin-of-text token twice; the second was removed.",
    "doubled_end_of_turn": "The answer ended with more than one end-of-turn token; those behind the first were "
    "removed, because generation stops at the first.",
    "generation_prompt_differs": "The tokens that open an answer are not those that stand before a given answer (the "
    "chat template writes something else, or a token lies across the boundary); those that differ are learned with the "
    "answer.",
    "no_end_of_turn": "The answer doesn't end with a token that stops generation, so the model won't learn to stop. "
    "Correct the chat template, or name the template's last token in generation_config.json (`eos_token_id`).",
    "special_token_in_text": "The row's own text holds a special token, which is read as one.",
    "system_doubled": "The chat template wrote the system turn more than once.",
    "system_dropped": "The chat template left out the system turn, or changed its text. Move it into the first user's "
    "turn, or give another `chat_template`.",
    "text_before_answer": "The chat template wrote text of its own before the answer (an empty thinking block, often), "
    "which is learned with it. Set the template's switch for it in `chat_template_kwargs`, often `enable_thinking`.",
    "thinking_stripped": "The chat template left out the answer's thinking text, so it isn't learned. Give a "
    "`chat_template` that keeps it.",
    "tool_calls_dropped": "The chat template left out tool calls. Give a `chat_template` that writes them.",
    "tools_dropped": "The chat template left out the row's `tools`: the model doesn't see which functions there are. "
    "Give a `chat_template` that writes them.",
    "turn_changed": "The chat template left out or changed the text of a turn (the thinking of earlier turns, often).",
    "unknown_token": "The tokenizer doesn't know some of the text: it is read as the unknown token, and what it said "
    "is lost. Look whether the model is made for this language, script and these signs.",
}

Render = Callable[[Sequence[Message], JsonText | None], str]
"""The text of turns with tools, as that of the conversation that is looked at was made."""

OTHER_WORDS = "\u2047"
"""Stands for a text in renderings that show what depends on that text."""


def of_prompt(text: str, prompt: Sequence[Message], tools: JsonText | None, render: Render) -> Iterator[FindingCode]:
    """What is odd about a conversation's prompt; `text` is the prompt, opening of the answer and all."""
    for place, turn in enumerate(prompt):
        if turn.role == "system":
            yield from _of_system(text, prompt, place, tools, render)
        elif not _is_whole(turn, text):
            yield "turn_changed"
    if tools is not None and _same(text, render, prompt, None):
        yield "tools_dropped"
    yield from _of_tool_calls(text, prompt, range(len(prompt)), tools, render)


def of_answer(
    text: str, turns: Sequence[Message], answer: int, tools: JsonText | None, render: Render
) -> Iterator[FindingCode]:
    """What is odd about an answer, which begins with `turns[answer]`; `text` is the whole conversation."""
    for turn in turns[answer:]:
        if _is_whole(turn, text):
            continue
        if turn.role != "assistant":
            yield "turn_changed"
        elif _strip_thinking(turn) in text:
            yield "thinking_stripped"
        else:
            yield "answer_changed"
    yield from _of_tool_calls(text, turns, range(answer, len(turns)), tools, render)


def writes_before(text: str, opening: str, turn: Message) -> bool:
    """Whether text of the template's own stands between the opening and the answer's first turn."""
    content = turn.content.strip()
    if turn.reasoning is not None or not content or not text.startswith(opening):
        return False
    written = text[len(opening) :].lstrip()
    return not written.startswith(content) and content in written


def _is_whole(turn: Message, text: str) -> bool:
    """Whether the turn's words stand in the text; thinking inside the content may have been taken apart from it."""
    if turn.reasoning is not None and turn.reasoning.strip() not in text:
        return False
    if turn.content.strip() in text:
        return True
    if turn.role == "tool":  # some templates write what a tool said as a JSON string
        return json.dumps(turn.content, ensure_ascii=False)[1:-1].strip() in text
    thinking, end, rest = turn.content.partition("</think>")
    return bool(end) and thinking.replace("<think>", "").strip() in text and rest.strip() in text


def _strip_thinking(turn: Message) -> str:
    return turn.content.split("</think>")[-1].strip()


def _of_system(
    text: str, turns: Sequence[Message], place: int, tools: JsonText | None, render: Render
) -> Iterator[FindingCode]:
    content = turns[place].content.strip()
    found = text.count(content) if content else 0
    if content and not found:
        yield "system_dropped"
    if found > sum(turn.content.count(content) for turn in turns):
        # Its words may be the template's own, too, or stand in the tools: what matters is what goes with the turn.
        without = render(_with(turns, place, replace(turns[place], content=OTHER_WORDS)), tools)
        if found - without.count(content) > 1:
            yield "system_doubled"


def _of_tool_calls(
    text: str, turns: Sequence[Message], places: range, tools: JsonText | None, render: Render
) -> Iterator[FindingCode]:
    for place in places:
        calls = turns[place].tool_calls
        if calls is not None:
            named = [{**call, "function": {**call["function"], "name": OTHER_WORDS}} for call in json.loads(calls)]
            changed = replace(turns[place], tool_calls=JsonText(json.dumps(named, ensure_ascii=False)))
            if _same(text, render, _with(turns, place, changed), tools):
                yield "tool_calls_dropped"


def _same(text: str, render: Render, turns: Sequence[Message], tools: JsonText | None) -> bool:
    """Whether these turns with these tools make the same text."""
    try:
        return render(turns, tools) == text
    except TemplateRefusal:
        return False


def _with(turns: Sequence[Message], place: int, turn: Message) -> list[Message]:
    return [*turns[:place], turn, *turns[place + 1 :]]
