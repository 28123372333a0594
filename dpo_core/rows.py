"""The shapes a row of a data file may have, recognised by its fields, and what is wrong with one that has none.

dpo          {"input": {"messages": [...]}, "preferred_output": [...], "non_preferred_output": [...]}
             {"prompt", "chosen", "rejected"}: strings, message lists, or a mix
supervised   {"messages": [...]}, whose last message is the assistant's
             {"prompt", "completion"}: strings, message lists, or a mix

Only an answer's own turn is learned; assistant turns inside a prompt carry no loss. Other fields of a row
are ignored, unless ignoring them would change what is learned (tools, images): then the row is refused.
"""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from typing import Literal

from dpo_core.records import Example, Message, Pair, Text
from dpo_core.spec import Method

Shape = Literal["openai", "explicit", "messages", "completion"]
Row = Mapping[str, object]

SHAPES: dict[Shape, str] = {
    "openai": '{"input": {"messages": [...]}, "preferred_output": [...], "non_preferred_output": [...]}',
    "explicit": '{"prompt": ..., "chosen": ..., "rejected": ...}',
    "messages": '{"messages": [..., {"role": "assistant", "content": ...}]}',
    "completion": '{"prompt": ..., "completion": ...}',
}
SHAPES_OF: dict[Method, tuple[Shape, Shape]] = {"dpo": ("openai", "explicit"), "supervised": ("messages", "completion")}
ROLES = ("system", "developer", "user", "assistant", "tool")
UNSUPPORTED_IN_ROW = ("tools", "functions", "image", "images", "video", "videos", "audio", "audios")
UNSUPPORTED_IN_MESSAGE = ("tool_calls", "function_call", "audio", "refusal", "reasoning_content", "thinking")


class BadRow(Exception):
    """Becomes a RowProblem once the line number is known."""

    def __init__(self, code: str, field: str | None, message: str) -> None:
        super().__init__(message)
        self.code = code
        self.field = field
        self.message = message


def parse_row(row: Row, method: Method, line: int) -> Pair | Example:
    """The canonical record of one row.

    Raises:
        BadRow: the row has no shape that `method` can learn from, or something in it is empty or unsupported.
    """
    shape = _shape(row, method)
    if shape not in SHAPES_OF[method]:
        first, second = (SHAPES[known] for known in SHAPES_OF[method])
        kind, other = ("supervised", "supervised") if method == "dpo" else ("preference", "dpo")
        message = f"This is a {kind} row in a {method} job. Use method `{other}`, or write {first} or {second}."
        raise BadRow("wrong_method", None, message)
    _refuse_unsupported(row, UNSUPPORTED_IN_ROW, "")
    if shape == "openai":
        return _openai_pair(row, line)
    if shape == "explicit":
        return _pair(_prompt(_require(row, "prompt"), "prompt"), row, line)
    if shape == "messages":
        return _conversation(row, line)
    prompt = _prompt(_require(row, "prompt"), "prompt")
    return _example(line, prompt, _answer(_require(row, "completion"), "completion"))


def _shape(row: Row, method: Method) -> Shape:
    """Which shape the row means to have, so that what is missing from it can be named."""
    if "preferred_output" in row or "non_preferred_output" in row or isinstance(row.get("input"), dict):
        return "openai"
    if "chosen" in row or "rejected" in row:
        return "explicit"
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
    first, second = (SHAPES[shape] for shape in SHAPES_OF[method])
    given = ", ".join(f"`{name}`" for name in list(row)[:8]) or "none"
    raise BadRow("unknown_format", None, f"No known format has these fields: {given}. Write {first} or {second}.")


def _openai_pair(row: Row, line: int) -> Pair:
    given = _require(row, "input")
    if not isinstance(given, dict):
        raise BadRow("wrong_type", "input", f"`input` must be an object with `messages`, not {_kind(given)}.")
    _refuse_unsupported(given, UNSUPPORTED_IN_ROW, "input.")
    prompt = _turns(_require(given, "messages", "input."), "input.messages")
    _check_prompt(prompt, "input.messages")
    return _pair(prompt, row, line, "preferred_output", "non_preferred_output")


def _pair(prompt: Text, row: Row, line: int, better: str = "chosen", worse: str = "rejected") -> Pair:
    chosen, rejected = (_answer(_require(row, field), field) for field in (better, worse))
    if _content(chosen).strip() == _content(rejected).strip():
        message = f"`{better}` and `{worse}` are equal, so there is nothing to prefer. Correct or remove the row."
        raise BadRow("equal_answers", worse, message)
    if isinstance(prompt, str) and isinstance(chosen, str) and isinstance(rejected, str):
        return Pair(line, prompt, chosen, rejected)
    return Pair(line, as_turns(prompt, "user"), as_turns(chosen, "assistant"), as_turns(rejected, "assistant"))


def _conversation(row: Row, line: int) -> Example:
    turns = _turns(row["messages"], "messages")
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


def as_turns(text: Text, role: str) -> tuple[Message, ...]:
    """A plain string becomes one turn of `role`; turns stay as they are."""
    return (Message(role, text),) if isinstance(text, str) else text


def _content(answer: Text) -> str:
    return answer if isinstance(answer, str) else answer[0].content


def _prompt(value: object, field: str) -> Text:
    prompt = _text(value, field) if isinstance(value, str) else _turns(value, field)
    _check_prompt(prompt, field)
    return prompt


def _check_prompt(prompt: Text, field: str) -> None:
    if not isinstance(prompt, str) and prompt and prompt[-1].role == "assistant":
        message = f"`{field}` ends with an assistant turn; the answer must follow a user's turn. Move it to the answer."
        raise BadRow("bad_prompt_end", field, message)
    last = prompt if isinstance(prompt, str) else prompt[-1].content if prompt else ""
    if not last.strip():
        raise BadRow(
            "empty_prompt", field, f"The prompt in `{field}` is empty. Write what is asked, or remove the row."
        )


def _answer(value: object, field: str) -> Text:
    if isinstance(value, str):
        _check_answer_text(_text(value, field), field)
        return value
    turns = _turns(value, field)
    if turns[-1].role != "assistant":
        message = f"The answer in `{field}` must be an assistant's turn, not {turns[-1].role}'s. Correct its `role`."
        raise BadRow("bad_answer_role", field, message)
    if any(turn.role in ("user", "system") for turn in turns):
        message = (
            f"`{field}` repeats the conversation. Keep only the answer's own turn; the rest belongs to the prompt."
        )
        raise BadRow("prompt_in_answer", field, message)
    if len(turns) > 1:
        raise BadRow(
            "many_turns", field, f"Answers of several turns are not supported yet. Keep one turn in `{field}`."
        )
    _check_answer_text(turns[0].content, field)
    return turns


def _check_answer_text(text: str, field: str) -> None:
    if not text.strip():
        raise BadRow("empty_answer", field, f"The answer in `{field}` is empty. Write one, or remove the row.")


def _turns(value: object, field: str) -> tuple[Message, ...]:
    if not isinstance(value, list):
        raise BadRow("wrong_type", field, f"`{field}` must be text or a list of messages, not {_kind(value)}.")
    if not value:
        raise BadRow("wrong_type", field, f"`{field}` is an empty list. Give at least one message, or remove the row.")
    return tuple(_message(item, f"{field}[{index}]") for index, item in enumerate(value))


def _message(value: object, field: str) -> Message:
    if not isinstance(value, dict):
        raise BadRow("wrong_type", field, f"`{field}` must be an object with `role` and `content`, not {_kind(value)}.")
    _refuse_unsupported(value, UNSUPPORTED_IN_MESSAGE, f"{field}.")
    role = _require(value, "role", f"{field}.")
    if role not in ROLES:
        raise BadRow("bad_role", f"{field}.role", f"`{role}` is not a role. Use one of {', '.join(ROLES)}.")
    content = _require(value, "content", f"{field}.")
    # OpenAI's name for the system turn; chat templates know only `system`, and skip a role they don't know.
    return Message("system" if role == "developer" else str(role), _text(content, f"{field}.content"))


def _text(value: object, field: str) -> str:
    """Plain text; text parts are joined."""
    if isinstance(value, list):
        value = "".join(_part(part, f"{field}[{index}]") for index, part in enumerate(value))
    if not isinstance(value, str):
        raise BadRow("wrong_type", field, f"`{field}` must be text, not {_kind(value)}.")
    try:
        value.encode("utf-8")
    except UnicodeEncodeError:
        message = f"`{field}` holds half of a surrogate pair (such as \\ud83d alone), which is no text. Correct it."
        raise BadRow("bad_text", field, message) from None
    return value


def _part(part: object, field: str) -> str:
    if not isinstance(part, dict):
        raise BadRow("wrong_type", field, f"`{field}` must be a content part (an object), not {_kind(part)}.")
    if part.get("type") != "text" or not isinstance(part.get("text"), str):
        message = f"`{field}` is a part of type `{part.get('type')}`. Only text is supported; remove the row."
        raise BadRow("unsupported_content", field, message)
    return str(part["text"])


def _refuse_unsupported(given: Row, names: tuple[str, ...], prefix: str) -> None:
    for name in names:
        if given.get(name):
            message = (
                f"`{prefix}{name}` is not supported yet, and ignoring it would change what is learned. Remove the row."
            )
            raise BadRow("unsupported_field", prefix + name, message)


def _require(given: Row, name: str, prefix: str = "") -> object:
    if given.get(name) is not None:
        return given[name]
    if name in given:
        message = f"`{prefix}{name}` is null. Give it a value, or remove the row."
    elif close := difflib.get_close_matches(name, list(given), n=1):
        message = f"`{prefix}{name}` is missing; `{close[0]}` is there. Rename it to `{name}`."
    else:
        message = f"`{prefix}{name}` is missing. Add it, or remove the row."
    raise BadRow("missing_field", prefix + name, message)


def _kind(value: object) -> str:
    kinds = {dict: "an object", list: "a list", str: "text", bool: "true or false", type(None): "null"}
    return kinds.get(type(value), "a number")
