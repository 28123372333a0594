"""The prompt of a row, in whatever fields it stands: turns, text, question and answer, with system and history."""

from __future__ import annotations

from dpo_core.data.fields import BadRow, Row, first_of, kind_of, require
from dpo_core.data.records import JsonText, Message, Text
from dpo_core.data.tool_calls import json_text, parsed
from dpo_core.data.turns import MARKER, as_turns, conversation, refuse_many, text_of, turns_of

CONVERSATIONS = ("conversations", "messages")
QUESTIONS = ("instruction", "question", "query")
PROMPTS = ("prompt", *CONVERSATIONS, *QUESTIONS)
"""The fields that a prompt may stand in; the first that a row has counts."""

SYSTEMS = ("system", "system_prompt")


def prompt_of(row: Row) -> tuple[Text, str]:
    """The prompt, and the field it stands in. A row without one is missing `prompt`.

    Raises:
        BadRow: it is missing, empty, of a wrong type, or ends with an assistant turn.
    """
    name = first_of(row, PROMPTS) or "prompt"
    value = require(row, name)
    prompt = _text_or_turns(value, name) if isinstance(value, str) else turns_of(value, name)
    if isinstance(prompt, str) and row.get("input"):
        prompt = _joined(prompt, text_of(row["input"], "input"), name)
    check_prompt(prompt, name)
    return opened(row, prompt), name


def _text_or_turns(value: str, field: str) -> Text:
    """Turns, where the text is a transcript that opens the assistant's turn (hh-rlhf's prompts, taken apart)."""
    if MARKER.match(value):
        turns = conversation(value, field)
        if turns[-1] == Message("assistant", ""):
            return turns[:-1]
    return text_of(value, field)


def _joined(prompt: str, further: str, field: str) -> str:
    """Some files have a whole `prompt` beside the parts it was made of."""
    if field == "prompt" and further.strip() in prompt:
        return prompt
    return f"{prompt}\n{further}" if prompt.strip() else further


def opened(row: Row, prompt: Text) -> Text:
    """The prompt behind the row's `system` and `history`, where it has them.

    Raises:
        BadRow: one of them has a wrong type, or there are two system turns.
    """
    before = _history(row)
    name = first_of(row, SYSTEMS)
    system = text_of(row[name], name) if name is not None and row[name] else ""
    if not system.strip() and not before:
        return prompt
    turns = (*before, *as_turns(prompt, "user"))
    if not system.strip() or turns[0] == Message("system", system):
        return turns
    if turns[0].role == "system":
        message = f"`{name}` is there, and the conversation begins with another system turn. Keep one of them."
        raise BadRow("two_systems", name, message)
    return (Message("system", system), *turns)


def _history(row: Row) -> tuple[Message, ...]:
    """Earlier turns: messages, or pairs of a question and its answer."""
    given = row.get("history")
    if not given:
        return ()
    if not isinstance(given, list):
        raise BadRow("wrong_type", "history", f"`history` must be a list of turns, not {kind_of(given)}.")
    if isinstance(given[0], dict):
        return turns_of(given, "history")
    refuse_many(2 * len(given), "history")
    turns: list[Message] = []
    for index, pair in enumerate(given):
        if not isinstance(pair, list) or len(pair) != 2:
            message = f"`history[{index}]` must be a pair of texts: what was asked, and the answer."
            raise BadRow("wrong_type", f"history[{index}]", message)
        for side, role in enumerate(("user", "assistant")):
            turns.append(Message(role, text_of(pair[side], f"history[{index}][{side}]")))
    return tuple(turns)


def check_prompt(prompt: Text, field: str) -> None:
    """BadRow where a prompt asks nothing, or the assistant has spoken last in it."""
    if not isinstance(prompt, str) and prompt and prompt[-1].role == "assistant":
        message = (
            f"The prompt in `{field}` ends with an assistant turn; an answer must follow a user's turn. "
            "Join it to the answer, or remove the row."
        )
        raise BadRow("bad_prompt_end", field, message)
    if not isinstance(prompt, str) and prompt and prompt[-1].role == "tool":
        return  # a tool may have nothing to say
    last = prompt if isinstance(prompt, str) else prompt[-1].content if prompt else ""
    if not last.strip():
        raise BadRow(
            "empty_prompt", field, f"The prompt in `{field}` is empty. Write what is asked, or remove the row."
        )


def variables_of(row: Row) -> JsonText | None:
    """The row's own `chat_template_kwargs`. BadRow where they are no object."""
    field = "chat_template_kwargs"
    if not row.get(field):
        return None
    variables = parsed(row[field], field)
    if not isinstance(variables, dict):
        raise BadRow("wrong_type", field, f"`{field}` must be an object, not {kind_of(variables)}.")
    return json_text(variables, field)
