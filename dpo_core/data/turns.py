"""Values of a row's fields to turns and plain text, and what is wrong with those that can't be."""

from __future__ import annotations

import re

from dpo_core.data.fields import BadRow, Row, kind_of, require, shown
from dpo_core.data.records import JsonText, Message, Text
from dpo_core.data.tool_calls import call_in_text, calls_of

ROLES = {
    "system": "system",
    # OpenAI's name for the system turn; chat templates know only `system`, and skip a role they don't know.
    "developer": "system",
    "user": "user",
    "human": "user",
    "assistant": "assistant",
    "gpt": "assistant",
    "model": "assistant",
    "function_call": "assistant",
    "tool": "tool",
    "function": "tool",
    "observation": "tool",
}
"""The role of a turn by its name in OpenAI's, ShareGPT's and Gemini's forms."""

PLAIN = ({"role", "content"}, {"from", "value"})
"""A message that has no more than these needs no further look."""

REASONING = ("reasoning_content", "reasoning", "thinking")
MEDIA = {
    "image": "an image",
    "images": "images",
    "image_url": "an image",
    "input_image": "an image",
    "video": "a video",
    "videos": "videos",
    "audio": "sound",
    "audios": "sound",
    "input_audio": "sound",
    "file": "a file",
}
"""What a field or a content part of that name holds, in words."""

MARKER = re.compile(r"(?:\A\s*|\n\n)(Human|Assistant):")
"""Opens a turn of a transcript as in hh-rlhf (Bai et al. 2022, arXiv:2204.05862)."""


MAX_TURNS = 1000
"""More in one field are refused: what a row takes of time grows faster than its turns."""


def as_turns(text: Text, role: str) -> tuple[Message, ...]:
    """A plain string becomes one turn of `role`; turns stay as they are."""
    return (Message(role, text),) if isinstance(text, str) else text


def is_conversation(value: object) -> bool:
    """Whether an answer's field holds its prompt too: a transcript, or messages that the user has a turn in."""
    if isinstance(value, str):
        return MARKER.match(value) is not None
    return isinstance(value, list) and (len(value) > 1 or any(role_of(message) == "user" for message in value))


def role_of(message: object) -> str | None:
    """The canonical role of what may be a message."""
    name = message.get("role", message.get("from")) if isinstance(message, dict) else None
    return ROLES.get(name) if isinstance(name, str) else None


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
    refuse_many(len(marked) // 2, field)
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
    refuse_many(len(value), field)
    return tuple(message_of(item, f"{field}[{index}]") for index, item in enumerate(value))


def refuse_many(turns: int, field: str) -> None:
    """BadRow where a conversation has more than MAX_TURNS."""
    if turns > MAX_TURNS:
        message = f"`{field}` has {turns:,} turns; at most {MAX_TURNS:,} are taken. Shorten or remove the row."
        raise BadRow("too_many_turns", field, message)


def message_of(value: object, field: str) -> Message:
    """One turn. BadRow where it is none, or something in it is not supported."""
    if not isinstance(value, dict):
        message = f"`{field}` must be an object with `role` and `content`, not {kind_of(value)}."
        raise BadRow("wrong_type", field, message)
    role_name, content_name = ("from", "value") if "from" in value and "role" not in value else ("role", "content")
    given = require(value, role_name, f"{field}.")
    role = ROLES.get(given) if isinstance(given, str) else None
    if role is None:
        message = f"{shown(given)} is not a role. Use one of system, user, assistant, tool."
        raise BadRow("bad_role", f"{field}.{role_name}", message)
    if given == "function_call":
        return Message(role, "", tool_calls=call_in_text(require(value, content_name, f"{field}."), field))
    if value.keys() in PLAIN:
        return Message(role, text_of(require(value, content_name, f"{field}."), f"{field}.{content_name}"))
    refuse_media(value, f"{field}.")
    _refuse_refusal(value, field)
    calls = calls_of(value, field)
    return Message(
        role,
        _content(value, content_name, field, calls),
        reasoning=_reasoning(value, field),
        tool_calls=calls,
        tool_call_id=_name(value, "tool_call_id", field),
        name=_name(value, "name", field),
    )


def _content(value: Row, name: str, field: str, calls: JsonText | None) -> str:
    """A turn that calls tools may say nothing."""
    if calls is not None and value.get(name) is None:
        return ""
    return text_of(require(value, name, f"{field}."), f"{field}.{name}")


def _reasoning(value: Row, field: str) -> str | None:
    for name in REASONING:
        if value.get(name):
            return text_of(value[name], f"{field}.{name}")
    return None


def _name(value: Row, name: str, field: str) -> str | None:
    return text_of(value[name], f"{field}.{name}") if value.get(name) else None


def _refuse_refusal(value: Row, field: str) -> None:
    if value.get("refusal"):
        message = (
            f"`{field}.refusal` is a refusal beside the content, which chat templates don't know. "
            "Make it the `content`, or remove the row."
        )
        raise BadRow("unsupported_field", f"{field}.refusal", message)


def text_of(value: object, field: str) -> str:
    """Plain text; text parts are joined. BadRow where it is something else."""
    if isinstance(value, list):
        value = "".join(_part(part, f"{field}[{index}]") for index, part in enumerate(value))
    if not isinstance(value, str):
        raise BadRow("wrong_type", field, f"`{field}` must be text, not {kind_of(value)}.")
    if value.isascii() or _is_unicode(value):
        if "\0" in value:
            raise BadRow("bad_text", field, f"`{field}` holds a NUL character (\\u0000), which is no text. Remove it.")
        return value
    message = f"`{field}` holds half of a surrogate pair (such as \\ud83d alone), which is no text. Correct it."
    raise BadRow("bad_text", field, message)


def _is_unicode(text: str) -> bool:
    try:
        text.encode("utf-8")
    except UnicodeEncodeError:
        return False
    return True


def _part(part: object, field: str) -> str:
    if not isinstance(part, dict):
        raise BadRow("wrong_type", field, f"`{field}` must be a content part (an object), not {kind_of(part)}.")
    kind, text = part.get("type"), part.get("text")
    if kind == "text" and isinstance(text, str):
        return text
    what = MEDIA.get(kind) if isinstance(kind, str) else None
    if what is not None:
        raise _media(field, what)
    message = f"`{field}` is a part of type {shown(kind)}. Only text is supported; remove the row."
    raise BadRow("unsupported_content", field, message)


def refuse_media(given: Row, prefix: str = "") -> None:
    """BadRow where images, videos or sound are given: ignoring them would change what is learned."""
    for name, what in MEDIA.items():
        if name in given and given[name] and name != "file":
            raise _media(prefix + name, what)


def _media(field: str, what: str) -> BadRow:
    message = (
        f"`{field}` holds {what}. Models are trained on text alone here, and without it the row would teach something "
        "else. Remove the row."
    )
    return BadRow("unsupported_content", field, message)
