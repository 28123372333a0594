"""Values of a row's fields to turns and plain text, and what is wrong with those that can't be."""

from __future__ import annotations

import difflib
import re
from collections.abc import Mapping

from dpo_core.data.records import Message, ProblemCode, Text

Row = Mapping[str, object]

ROLES = ("system", "developer", "user", "assistant", "tool")
UNSUPPORTED_IN_MESSAGE = ("tool_calls", "function_call", "audio", "refusal", "reasoning_content", "thinking")

MARKER = re.compile(r"(?:\A\s*|\n\n)(Human|Assistant):")
"""Opens a turn of a transcript as in hh-rlhf (Bai et al. 2022, arXiv:2204.05862)."""


class BadRow(Exception):
    """Becomes a RowProblem once the line number is known."""

    def __init__(self, code: ProblemCode, field: str | None, message: str) -> None:
        super().__init__(message)
        self.code = code
        self.field = field
        self.message = message


def as_turns(text: Text, role: str) -> tuple[Message, ...]:
    """A plain string becomes one turn of `role`; turns stay as they are."""
    return (Message(role, text),) if isinstance(text, str) else text


def is_conversation(value: object) -> bool:
    """Whether an answer's field holds its prompt too: a transcript, or more messages than an answer has."""
    if isinstance(value, str):
        return MARKER.match(value) is not None
    return isinstance(value, list) and (len(value) > 1 or any(_role_of(message) == "user" for message in value))


def _role_of(message: object) -> object:
    return message.get("role") if isinstance(message, dict) else None


def conversation(value: object, field: str) -> tuple[Message, ...]:
    """The turns of a message list, or of a transcript `\\n\\nHuman: … \\n\\nAssistant: …`.

    Space around a transcript's turn belongs to the form, not to the turn, and is removed.

    Raises:
        BadRow: it is neither, or a message is unsupported.
    """
    if not isinstance(value, str):
        return turns_of(value, field)
    before, *marked = MARKER.split(text_of(value, field))
    if before.strip() or not marked:
        message = f"`{field}` is no transcript. Begin every turn with a blank line and `Human:` or `Assistant:`."
        raise BadRow("bad_transcript", field, message)
    speakers = {"Human": "user", "Assistant": "assistant"}
    return tuple(
        Message(speakers[speaker], text.strip()) for speaker, text in zip(marked[::2], marked[1::2], strict=True)
    )


def turns_of(value: object, field: str) -> tuple[Message, ...]:
    """The turns of a message list. BadRow where something in it is not supported."""
    if not isinstance(value, list):
        raise BadRow("wrong_type", field, f"`{field}` must be text or a list of messages, not {kind_of(value)}.")
    if not value:
        raise BadRow("wrong_type", field, f"`{field}` is an empty list. Give at least one message, or remove the row.")
    return tuple(_message(item, f"{field}[{index}]") for index, item in enumerate(value))


def _message(value: object, field: str) -> Message:
    if not isinstance(value, dict):
        message = f"`{field}` must be an object with `role` and `content`, not {kind_of(value)}."
        raise BadRow("wrong_type", field, message)
    refuse_unsupported(value, UNSUPPORTED_IN_MESSAGE, f"{field}.")
    role = require(value, "role", f"{field}.")
    if role not in ROLES:
        raise BadRow("bad_role", f"{field}.role", f"`{role}` is not a role. Use one of {', '.join(ROLES)}.")
    content = require(value, "content", f"{field}.")
    # OpenAI's name for the system turn; chat templates know only `system`, and skip a role they don't know.
    return Message("system" if role == "developer" else str(role), text_of(content, f"{field}.content"))


def text_of(value: object, field: str) -> str:
    """Plain text; text parts are joined. BadRow where it is something else."""
    if isinstance(value, list):
        value = "".join(_part(part, f"{field}[{index}]") for index, part in enumerate(value))
    if not isinstance(value, str):
        raise BadRow("wrong_type", field, f"`{field}` must be text, not {kind_of(value)}.")
    try:
        value.encode("utf-8")
    except UnicodeEncodeError:
        message = f"`{field}` holds half of a surrogate pair (such as \\ud83d alone), which is no text. Correct it."
        raise BadRow("bad_text", field, message) from None
    return value


def _part(part: object, field: str) -> str:
    if not isinstance(part, dict):
        raise BadRow("wrong_type", field, f"`{field}` must be a content part (an object), not {kind_of(part)}.")
    if part.get("type") != "text" or not isinstance(part.get("text"), str):
        message = f"`{field}` is a part of type `{part.get('type')}`. Only text is supported; remove the row."
        raise BadRow("unsupported_content", field, message)
    return str(part["text"])


def refuse_unsupported(given: Row, names: tuple[str, ...], prefix: str) -> None:
    """BadRow where one of `names` is given: ignoring it would change what is learned."""
    for name in names:
        if given.get(name):
            message = (
                f"`{prefix}{name}` is not supported yet, and ignoring it would change what is learned. Remove the row."
            )
            raise BadRow("unsupported_field", prefix + name, message)


def require(given: Row, name: str, prefix: str = "") -> object:
    """The field's value. BadRow where it is missing or null, with the name that was probably meant."""
    if given.get(name) is not None:
        return given[name]
    if name in given:
        message = f"`{prefix}{name}` is null. Give it a value, or remove the row."
    elif close := difflib.get_close_matches(name, list(given), n=1):
        message = f"`{prefix}{name}` is missing; `{close[0]}` is there. Rename it to `{name}`."
    else:
        message = f"`{prefix}{name}` is missing. Add it, or remove the row."
    raise BadRow("missing_field", prefix + name, message)


def names_in_words(row: Row) -> str:
    """The names of a row's fields, at most eight."""
    return ", ".join(f"`{name}`" for name in list(row)[:8]) or "none"


def kind_of(value: object) -> str:
    """What a JSON value is, in words."""
    kinds = {dict: "an object", list: "a list", str: "text", bool: "true or false", type(None): "null"}
    return kinds.get(type(value), "a number")
