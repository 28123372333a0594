"""Tools that a conversation may call, and the calls: the forms they are written in, to one canonical form.

Canonical is OpenAI's form, as chat templates take it, but with a call's `arguments` as an object: templates write them
as JSON themselves, and text would be written as JSON twice.
"""

from __future__ import annotations

import json
import re

from dpo_core.data.fields import BadRow, Row, kind_of, shown
from dpo_core.data.json_values import decode
from dpo_core.data.records import JsonText

NUL = re.compile(r"(?<!\\)(?:\\\\)*\\u0000")
"""In JSON; behind an even number of backslashes, because the one of an odd number stands for itself."""


def json_text(value: object, field: str) -> JsonText:
    """One JSON text for a value; keys stay in the row's order, which templates write out.

    Raises:
        BadRow: there is half of a surrogate pair, or a NUL character, in a text of it.
    """
    text = json.dumps(value, ensure_ascii=False, separators=(",", ":"))
    try:
        text.encode("utf-8")
    except UnicodeEncodeError:
        message = f"`{field}` holds half of a surrogate pair (such as \\ud83d alone), which is no text. Correct it."
        raise BadRow("bad_text", field, message) from None
    if NUL.search(text):
        raise BadRow("bad_text", field, f"`{field}` holds a NUL character (\\u0000), which is no text. Remove it.")
    return JsonText(text)


def parsed(value: object, field: str) -> object:
    """The value of a field that may be given as JSON text. BadRow where the text is not JSON."""
    if not isinstance(value, str):
        return value
    try:
        return decode(value)
    except ValueError as error:
        message = f"`{field}` is text, and not valid JSON: {error}. Write the value itself, or correct the text."
        raise BadRow("not_json", field, message) from None


def tools_of(given: Row, prefix: str = "") -> JsonText | None:
    """The functions in `tools` (or OpenAI's older `functions`). BadRow where they are none."""
    for name in ("tools", "functions"):
        if given.get(name):
            field = prefix + name
            tools = parsed(given[name], field)
            if not isinstance(tools, list):
                raise BadRow("wrong_type", field, f"`{field}` must be a list of functions, not {kind_of(tools)}.")
            if tools:
                return json_text([_function(tool, f"{field}[{i}]") for i, tool in enumerate(tools)], field)
    return None


def _function(tool: object, field: str) -> dict[str, object]:
    """`{"type": "function", "function": {...}}`; a function alone is given its frame."""
    if isinstance(tool, dict):
        inner = tool.get("function")
        if isinstance(inner, dict) and isinstance(inner.get("name"), str):
            return {"type": "function", **tool}
        if inner is None and isinstance(tool.get("name"), str):
            return {"type": "function", "function": tool}
    message = f'`{field}` is no function. Write {{"type": "function", "function": {{"name": ...}}}}.'
    raise BadRow("wrong_type", field, message)


def calls_of(message: Row, field: str) -> JsonText | None:
    """The calls in a message's `tool_calls` (or OpenAI's older `function_call`). BadRow where they are none."""
    if message.get("tool_calls"):
        field = f"{field}.tool_calls"
        calls = parsed(message["tool_calls"], field)
        if not isinstance(calls, list):
            raise BadRow("bad_tool_call", field, f"`{field}` must be a list of calls, not {kind_of(calls)}.")
        return json_text([_call(call, f"{field}[{i}]") for i, call in enumerate(calls)], field) if calls else None
    if message.get("function_call"):
        field = f"{field}.function_call"
        return json_text([_call(message["function_call"], field)], field)
    return None


def call_in_text(value: object, field: str) -> JsonText:
    """The calls of a ShareGPT turn `function_call`: JSON of one call or of a list."""
    given = parsed(value, field)
    calls = given if isinstance(given, list) and given else [given]
    return json_text([_call(call, field) for call in calls], field)


def _call(call: object, field: str) -> dict[str, object]:
    """`{"id"?, "type": "function", "function": {"name", "arguments": {...}}}`; a bare call is given its frame."""
    inner = call.get("function", call) if isinstance(call, dict) else None
    if not isinstance(call, dict) or not isinstance(inner, dict) or not isinstance(inner.get("name"), str):
        message = f"`{field}` is no call: it needs a `name` and `arguments`. Correct or remove the row."
        raise BadRow("bad_tool_call", field, message)
    function = {"name": inner["name"], "arguments": _arguments(inner.get("arguments"), field)}
    framed: dict[str, object] = {"id": call["id"]} if isinstance(call.get("id"), str) else {}
    return framed | {"type": "function", "function": function}


def _arguments(given: object, field: str) -> dict[str, object]:
    """An object, or the JSON text of one; nothing is no arguments."""
    if given is None or given == "":
        return {}
    field = f"{field}.arguments"
    arguments = given
    if isinstance(given, str):
        try:
            arguments = decode(given)
        except ValueError as error:
            message = f"{shown(given)} is not valid JSON: {error}. Correct the call's arguments, or remove the row."
            raise BadRow("bad_tool_call", field, message) from None
    if not isinstance(arguments, dict):
        message = f"`{field}` must be an object, not {kind_of(arguments)}. Correct the call, or remove the row."
        raise BadRow("bad_tool_call", field, message)
    return arguments
