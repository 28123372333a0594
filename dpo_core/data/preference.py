"""Preference rows to pairs: OpenAI's form, a prompt with two answers in any of its forms, two whole conversations."""

from __future__ import annotations

from dataclasses import replace

from dpo_core.data.answers import answer_of, answer_start, check_answer, refuse_equal
from dpo_core.data.fields import BadRow, Row, first_of, kind_of, require
from dpo_core.data.prompts import PROMPTS, SYSTEMS, check_prompt, opened, prompt_of, variables_of
from dpo_core.data.records import Message, Pair, Text
from dpo_core.data.tool_calls import tools_of
from dpo_core.data.turns import as_turns, conversation, is_conversation, refuse_media, role_of, turns_of

BETTER = ("chosen", "response_chosen", "chosen_response")
WORSE = ("rejected", "response_rejected", "rejected_response")


def openai_pair(row: Row, line: int) -> Pair:
    """`{"input": {"messages", "tools"?}, "preferred_output", "non_preferred_output"}`."""
    given = require(row, "input")
    if not isinstance(given, dict):
        raise BadRow("wrong_type", "input", f"`input` must be an object with `messages`, not {kind_of(given)}.")
    refuse_media(given, "input.")
    prompt = turns_of(require(given, "messages", "input."), "input.messages")
    check_prompt(prompt, "input.messages")
    better, worse = "preferred_output", "non_preferred_output"
    chosen, rejected = answer_of(require(row, better), better), answer_of(require(row, worse), worse)
    refuse_equal(chosen, rejected, better, worse)
    return pair_of(row, line, opened(row, prompt), chosen, rejected)


def chosen_rejected(row: Row, line: int) -> Pair:
    """A prompt in a field of its own with two answers, or two conversations that begin with their prompt."""
    better, worse = first_of(row, BETTER) or "chosen", first_of(row, WORSE) or "rejected"
    if first_of(row, PROMPTS) is None:
        if any(is_conversation(row.get(name)) for name in (better, worse)):
            return _implicit(row, line, better, worse)
    elif all(_holds_prompt(row.get(name)) for name in (better, worse)):
        return _repeated(row, line, better, worse)
    prompt, _ = prompt_of(row)
    chosen, rejected = answer_of(require(row, better), better), answer_of(require(row, worse), worse)
    refuse_equal(chosen, rejected, better, worse)
    return pair_of(row, line, prompt, chosen, rejected)


def pair_of(row: Row, line: int, prompt: Text, chosen: Text, rejected: Text) -> Pair:
    """A pair whose texts are all strings or all turns, with the row's tools and template variables."""
    given = row.get("input")
    tools = (tools_of(given, "input.") if isinstance(given, dict) else None) or tools_of(row)
    variables = variables_of(row)
    if isinstance(prompt, str) and isinstance(chosen, str) and isinstance(rejected, str):
        return Pair(line, prompt, chosen, rejected, tools, variables)
    turns = as_turns(prompt, "user"), as_turns(chosen, "assistant"), as_turns(rejected, "assistant")
    return Pair(line, *turns, tools, variables)


def _holds_prompt(value: object) -> bool:
    """Whether an answer beside a prompt is a conversation that begins with it. A text is always an answer."""
    return isinstance(value, list) and bool(value) and role_of(value[0]) in ("system", "user")


def _repeated(row: Row, line: int, better: str, worse: str) -> Pair:
    """Both answers begin with the prompt that the row has in a field, too (as in UltraFeedback's binarized form).

    One of the two may have more turns before what both say (a system turn, often); the longer one is the prompt.
    """
    prompt, field = prompt_of(row)
    own = {name: value for name, value in row.items() if name not in (*SYSTEMS, "history")}
    pair = _implicit(own, line, better, worse)
    given, repeated = as_turns(prompt, "user"), as_turns(pair.prompt, "user")
    if _ends_with(given, repeated):
        return replace(pair, prompt=given)
    if not _ends_with(repeated, given):
        message = (
            f"`{better}` repeats a conversation that is not the one in `{field}`. Keep only the answer's own turn; the "
            "rest belongs to the prompt."
        )
        raise BadRow("prompt_in_answer", better, message)
    return pair


def _ends_with(turns: tuple[Message, ...], end: tuple[Message, ...]) -> bool:
    """Whether the last of these turns are those, but for space around them."""
    said = [[(turn.role, turn.content.strip(), turn.tool_calls) for turn in it] for it in (turns, end)]
    return said[0][-len(end) :] == said[1]


def _implicit(row: Row, line: int, better: str, worse: str) -> Pair:
    """The prompt is what both conversations begin with; an answer is what the assistant says after it."""
    chosen, rejected = (conversation(require(row, field), field) for field in (better, worse))
    start = _answers_start(chosen, rejected)
    if start is None:
        message = (
            f"`{better}` ({len(chosen)} turns) and `{worse}` ({len(rejected)} turns) differ from turn "
            f"{_first_difference(chosen, rejected) + 1} on. All turns before the answer must be the same in both. "
            "Correct or remove the row."
        )
        raise BadRow("prompts_differ", worse, message)
    for turns, field in ((chosen, better), (rejected, worse)):
        check_answer(turns[start:], field)
    check_prompt(chosen[:start], better)
    refuse_equal(chosen[start:], rejected[start:], better, worse)
    return pair_of(row, line, opened(row, chosen[:start]), chosen[start:], rejected[start:])


def _answers_start(chosen: tuple[Message, ...], rejected: tuple[Message, ...]) -> int | None:
    """How many turns are the prompt's: all but the last, or all before the calls of tools that differ."""
    if chosen[:-1] == rejected[:-1]:
        return len(chosen) - 1
    start = min(_first_difference(chosen, rejected), len(chosen) - 1, len(rejected) - 1)
    while start > 0 and "tool" in (chosen[start].role, rejected[start].role):
        start -= 1
    answers = chosen[start:], rejected[start:]
    if all(_is_answer(turns) for turns in answers) and any(len(turns) > 1 for turns in answers):
        return start
    return None


def _is_answer(turns: tuple[Message, ...]) -> bool:
    return turns[-1].role == "assistant" == turns[0].role and answer_start(turns) == 0


def _first_difference(chosen: tuple[Message, ...], rejected: tuple[Message, ...]) -> int:
    """The first turn that isn't in both, counted from 0."""
    same = zip(chosen, rejected, strict=False)
    return next((index for index, (a, b) in enumerate(same) if a != b), min(len(chosen), len(rejected)))
