"""The answer of a row: one turn of the assistant's, or several with results of tools between them."""

from __future__ import annotations

from dpo_core.data.fields import BadRow
from dpo_core.data.records import Message, Text
from dpo_core.data.turns import message_of, text_of, turns_of

MAX_ROUNDS = 100
"""Of tools in one answer: for each the conversation so far is written twice, and all of them are held at once."""


def answer_of(value: object, field: str) -> Text:
    """Text, or the turns of an answer.

    Raises:
        BadRow: it is empty, unsupported, repeats the prompt, or isn't the assistant's.
    """
    if isinstance(value, str):
        check_text(text_of(value, field), field)
        return value
    turns = (message_of(value, field),) if isinstance(value, dict) else turns_of(value, field)
    if any(turn.role in ("user", "system") for turn in turns[:-1]):
        message = (
            f"`{field}` repeats the conversation. Keep only the answer's own turn; the rest belongs to the prompt."
        )
        raise BadRow("prompt_in_answer", field, message)
    check_answer(turns, field)
    return turns


def check_answer(turns: tuple[Message, ...], field: str) -> None:
    """BadRow where turns are no answer: empty, or other than assistant, tool …, assistant."""
    for turn in (turns[-1], turns[0]):
        if turn.role != "assistant":
            message = f"The answer in `{field}` must be an assistant's turn, not {turn.role}'s. Correct its `role`."
            raise BadRow("bad_answer_role", field, message)
    if answer_start(turns) > 0:
        message = (
            f"The assistant speaks twice in a row in `{field}`. Between the turns of one answer stand results of "
            "tools; join turns that belong together."
        )
        raise BadRow("many_turns", field, message)
    if (rounds := sum(turn.role == "assistant" for turn in turns) - 1) > MAX_ROUNDS:
        message = f"The answer in `{field}` calls tools {rounds:,} times; at most {MAX_ROUNDS} are taken. Shorten it."
        raise BadRow("too_many_turns", field, message)
    for turn in turns:
        if turn.role == "assistant" and turn.tool_calls is None:
            check_text(turn.content, field)


def answer_start(turns: tuple[Message, ...]) -> int:
    """Where the answer begins that these turns end with: calls of tools with their results, and the last turn."""
    start = len(turns) - 1
    while start >= 2:
        before = start - 1
        while before > 0 and turns[before].role == "tool":
            before -= 1
        if before == start - 1 or turns[before].role != "assistant":
            break
        start = before
    return start


def check_text(text: str, field: str) -> None:
    """BadRow where an answer says nothing."""
    if not text.strip():
        raise BadRow("empty_answer", field, f"The answer in `{field}` is empty. Write one, or remove the row.")


def refuse_equal(chosen: Text, rejected: Text, better: str, worse: str) -> None:
    """BadRow where two answers say the same, but for space around them."""
    if _said(chosen) == _said(rejected):
        message = f"`{better}` and `{worse}` are equal, so there is nothing to prefer. Correct or remove the row."
        raise BadRow("equal_answers", worse, message)


def _said(answer: Text) -> list[tuple[str, str | None, str | None]]:
    turns = (Message("assistant", answer),) if isinstance(answer, str) else answer
    return [(turn.content.strip(), turn.reasoning, turn.tool_calls) for turn in turns]
