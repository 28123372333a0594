"""The shapes a row of a data file may have, recognised by its fields, and what is wrong with one that has none.

dpo          {"input": {"messages": [...]}, "preferred_output": [...], "non_preferred_output": [...]}
             {"prompt", "chosen", "rejected"}: strings, message lists, or a mix
             {"chosen", "rejected"}: two whole conversations that differ in their last turn only, as message
             lists or as transcripts "\\n\\nHuman: … \\n\\nAssistant: …"
supervised   {"messages": [...]}, whose last message is the assistant's
             {"prompt", "completion"}: strings, message lists, or a mix

Only an answer's own turn is learned; assistant turns inside a prompt carry no loss. Other fields of a row
are ignored, unless ignoring them would change what is learned (tools, images): then the row is refused.
"""

from __future__ import annotations

from typing import Literal

from dpo_core.data.records import Example, Message, Pair, Text
from dpo_core.data.turns import (
    BadRow,
    Row,
    as_turns,
    conversation,
    is_conversation,
    kind_of,
    names_in_words,
    refuse_unsupported,
    require,
    text_of,
    turns_of,
)
from dpo_core.spec import Method

Shape = Literal["openai", "explicit", "implicit", "messages", "completion"]

SHAPES: dict[Shape, str] = {
    "openai": '{"input": {"messages": [...]}, "preferred_output": [...], "non_preferred_output": [...]}',
    "explicit": '{"prompt": ..., "chosen": ..., "rejected": ...}',
    "implicit": '{"chosen": "\\n\\nHuman: ... \\n\\nAssistant: ...", "rejected": ...}',
    "messages": '{"messages": [..., {"role": "assistant", "content": ...}]}',
    "completion": '{"prompt": ..., "completion": ...}',
}
SHAPES_OF: dict[Method, tuple[Shape, ...]] = {
    "dpo": ("openai", "explicit", "implicit"),
    "supervised": ("messages", "completion"),
}
UNSUPPORTED_IN_ROW = ("tools", "functions", "image", "images", "video", "videos", "audio", "audios")


def parse_row(row: Row, method: Method, line: int) -> Pair | Example:
    """The canonical record of one row.

    Raises:
        BadRow: the row has no shape that `method` can learn from, or something in it is empty or unsupported.
    """
    shape = _shape(row, method)
    if shape not in SHAPES_OF[method]:
        kind, other = ("supervised", "supervised") if method == "dpo" else ("preference", "dpo")
        message = f"This is a {kind} row in a {method} job. Use method `{other}`, or write {_known_shapes(method)}."
        raise BadRow("wrong_method", None, message)
    refuse_unsupported(row, UNSUPPORTED_IN_ROW, "")
    if shape == "openai":
        return _openai_pair(row, line)
    if shape == "explicit":
        return _explicit_pair(_prompt(require(row, "prompt"), "prompt"), row, line)
    if shape == "implicit":
        return _implicit_pair(row, line)
    if shape == "messages":
        return _conversation(row, line)
    prompt = _prompt(require(row, "prompt"), "prompt")
    return _example(line, prompt, _answer(require(row, "completion"), "completion"))


def _shape(row: Row, method: Method) -> Shape:
    """Which shape the row means to have, so that what is missing from it can be named."""
    if "preferred_output" in row or "non_preferred_output" in row or isinstance(row.get("input"), dict):
        return "openai"
    if "chosen" in row or "rejected" in row:
        whole = is_conversation(row.get("chosen")) or is_conversation(row.get("rejected"))
        return "implicit" if whole and "prompt" not in row else "explicit"
    if "label" in row:
        message = (
            "This row is unpaired (one answer with a `label`), which is not supported. "
            f"Join a good and a bad answer to the same prompt into one row: {SHAPES['explicit']}."
        )
        raise BadRow("unpaired", "label", message)
    if "messages" in row:
        return "messages"
    if "completion" in row:
        return "completion"
    if "prompt" in row:
        return "explicit" if method == "dpo" else "completion"
    message = f"No known format has these fields: {names_in_words(row)}. Write {_known_shapes(method)}."
    raise BadRow("unknown_format", None, message)


def _known_shapes(method: Method) -> str:
    return " or ".join(SHAPES[shape] for shape in SHAPES_OF[method])


def _openai_pair(row: Row, line: int) -> Pair:
    given = require(row, "input")
    if not isinstance(given, dict):
        raise BadRow("wrong_type", "input", f"`input` must be an object with `messages`, not {kind_of(given)}.")
    refuse_unsupported(given, UNSUPPORTED_IN_ROW, "input.")
    prompt = turns_of(require(given, "messages", "input."), "input.messages")
    _check_prompt(prompt, "input.messages")
    return _explicit_pair(prompt, row, line, "preferred_output", "non_preferred_output")


def _explicit_pair(prompt: Text, row: Row, line: int, better: str = "chosen", worse: str = "rejected") -> Pair:
    chosen, rejected = (_answer(require(row, field), field) for field in (better, worse))
    _refuse_equal(chosen, rejected, better, worse)
    if isinstance(prompt, str) and isinstance(chosen, str) and isinstance(rejected, str):
        return Pair(line, prompt, chosen, rejected)
    return Pair(line, as_turns(prompt, "user"), as_turns(chosen, "assistant"), as_turns(rejected, "assistant"))


def _implicit_pair(row: Row, line: int) -> Pair:
    """The prompt is what both conversations begin with: all but the last turn of each."""
    chosen, rejected = (conversation(require(row, field), field) for field in ("chosen", "rejected"))
    if chosen[:-1] != rejected[:-1]:
        message = (
            f"`chosen` ({len(chosen)} turns) and `rejected` ({len(rejected)} turns) differ from turn "
            f"{_first_difference(chosen, rejected)} on. All turns but the last must be the same in both. "
            "Correct or remove the row."
        )
        raise BadRow("prompts_differ", "rejected", message)
    for turns, field in ((chosen, "chosen"), (rejected, "rejected")):
        _check_answer_turn(turns[-1], field)
    _check_prompt(chosen[:-1], "chosen")
    _refuse_equal(chosen[-1:], rejected[-1:], "chosen", "rejected")
    return Pair(line, chosen[:-1], chosen[-1:], rejected[-1:])


def _first_difference(chosen: tuple[Message, ...], rejected: tuple[Message, ...]) -> int:
    """The 1-based number of the first turn that isn't in both."""
    same = zip(chosen, rejected, strict=False)
    return next((number for number, (a, b) in enumerate(same, 1) if a != b), min(len(chosen), len(rejected)) + 1)


def _refuse_equal(chosen: Text, rejected: Text, better: str, worse: str) -> None:
    if _content(chosen).strip() == _content(rejected).strip():
        message = f"`{better}` and `{worse}` are equal, so there is nothing to prefer. Correct or remove the row."
        raise BadRow("equal_answers", worse, message)


def _conversation(row: Row, line: int) -> Example:
    turns = turns_of(row["messages"], "messages")
    answer = turns[-1]
    if answer.role != "assistant":
        message = f"The last message must be the assistant's: it is what is learned. Here it is the {answer.role}'s."
        raise BadRow("bad_answer_role", "messages", message)
    field = f"messages[{len(turns) - 1}]"
    _check_answer_text(answer.content, field)
    given = row["messages"]
    if isinstance(given, list) and given[-1].get("weight") == 0:
        message = f"`{field}.weight` is 0, so the row's answer is not to be learned. Remove the row, or the weight."
        raise BadRow("zero_weight", f"{field}.weight", message)
    _check_prompt(turns[:-1], "messages")
    return _example(line, turns[:-1], turns[-1:])


def _example(line: int, prompt: Text, completion: Text) -> Example:
    if isinstance(prompt, str) and isinstance(completion, str):
        return Example(line, prompt, completion)
    return Example(line, as_turns(prompt, "user"), as_turns(completion, "assistant"))


def _content(answer: Text) -> str:
    return answer if isinstance(answer, str) else answer[0].content


def _prompt(value: object, field: str) -> Text:
    prompt = text_of(value, field) if isinstance(value, str) else turns_of(value, field)
    _check_prompt(prompt, field)
    return prompt


def _check_prompt(prompt: Text, field: str) -> None:
    if not isinstance(prompt, str) and prompt and prompt[-1].role == "assistant":
        message = (
            f"The prompt in `{field}` ends with an assistant turn; an answer must follow a user's turn. "
            "Join it to the answer, or remove the row."
        )
        raise BadRow("bad_prompt_end", field, message)
    last = prompt if isinstance(prompt, str) else prompt[-1].content if prompt else ""
    if not last.strip():
        raise BadRow(
            "empty_prompt", field, f"The prompt in `{field}` is empty. Write what is asked, or remove the row."
        )


def _answer(value: object, field: str) -> Text:
    if isinstance(value, str):
        _check_answer_text(text_of(value, field), field)
        return value
    turns = turns_of(value, field)
    if any(turn.role in ("user", "system") for turn in turns[:-1]):
        message = (
            f"`{field}` repeats the conversation. Keep only the answer's own turn; the rest belongs to the prompt."
        )
        raise BadRow("prompt_in_answer", field, message)
    _check_answer_turn(turns[-1], field)
    if len(turns) > 1:
        raise BadRow(
            "many_turns", field, f"Answers of several turns are not supported yet. Keep one turn in `{field}`."
        )
    return turns


def _check_answer_turn(turn: Message, field: str) -> None:
    if turn.role != "assistant":
        message = f"The answer in `{field}` must be an assistant's turn, not {turn.role}'s. Correct its `role`."
        raise BadRow("bad_answer_role", field, message)
    _check_answer_text(turn.content, field)


def _check_answer_text(text: str, field: str) -> None:
    if not text.strip():
        raise BadRow("empty_answer", field, f"The answer in `{field}` is empty. Write one, or remove the row.")
