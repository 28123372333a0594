"""Supervised rows to examples: whole conversations, and a prompt with its completion in any of its forms."""

from __future__ import annotations

from dpo_core.data.answers import answer_of, answer_start, check_answer
from dpo_core.data.fields import BadRow, Row, require
from dpo_core.data.prompts import check_prompt, opened, prompt_of, variables_of
from dpo_core.data.records import Example
from dpo_core.data.tool_calls import tools_of
from dpo_core.data.turns import as_turns, turns_of

COMPLETIONS = ("completion", "output", "answer", "response")


def conversation_example(row: Row, line: int, field: str) -> Example:
    """The answer that the conversation ends with is learned; assistant turns before it carry no loss."""
    turns = turns_of(require(row, field), field)
    last = turns[-1]
    if last.role != "assistant":
        message = f"The last message must be the assistant's: it is what is learned. Here it is the {last.role}'s."
        raise BadRow("bad_answer_role", field, message)
    name = f"{field}[{len(turns) - 1}]"
    muted = _muted(row[field])
    if len(turns) - 1 in muted:
        message = f"`{name}.weight` is 0, so the row's answer is not to be learned. Remove the row, or the weight."
        raise BadRow("zero_weight", f"{name}.weight", message)
    start = answer_start(turns)
    if any(index >= start for index in muted):
        start = len(turns) - 1
    check_answer(turns[start:], name)
    check_prompt(turns[:start], field)
    return Example(line, as_turns(opened(row, turns[:start]), "user"), turns[start:], tools_of(row), variables_of(row))


def _muted(messages: object) -> list[int]:
    """The messages with `weight` 0, which OpenAI's format leaves out of the loss."""
    items = messages if isinstance(messages, list) else []
    return [index for index, item in enumerate(items) if item.get("weight") == 0]


def completion_example(row: Row, line: int, field: str) -> Example:
    """A prompt, and its completion in `field`."""
    prompt, _ = prompt_of(row)
    completion = answer_of(require(row, field), field)
    tools, variables = tools_of(row), variables_of(row)
    if isinstance(prompt, str) and isinstance(completion, str):
        return Example(line, prompt, completion, tools, variables)
    return Example(line, as_turns(prompt, "user"), as_turns(completion, "assistant"), tools, variables)
