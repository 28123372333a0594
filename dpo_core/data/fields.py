"""The fields of a row: what is there, what is missing, and the words to say so."""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from itertools import islice

from dpo_core.data.records import ProblemCode

Row = Mapping[str, object]

COLUMNS = (
    "prompt",
    "instruction",
    "input",
    "system",
    "history",
    "messages",
    "chosen",
    "rejected",
    "completion",
    "answers",
    "scores",
    "tools",
    "chat_template_kwargs",
)
"""The fields that a job may name a file's columns for (`training.columns`); docs/data.md says what each may hold."""

FIELDS_COMPARED = 100
"""To compare a name with every one of 100,000 would take longer than all else that is done with a row."""


class BadRow(Exception):
    """Becomes a RowProblem once the line number is known."""

    def __init__(self, code: ProblemCode, field: str | None, message: str) -> None:
        super().__init__(message)
        self.code = code
        self.field = field
        self.message = message


def require(given: Row, name: str, prefix: str = "") -> object:
    """The field's value. BadRow where it is missing or null, with the name that was probably meant."""
    value = given.get(name)
    if value is not None:
        return value
    if name in given:
        message = f"`{prefix}{name}` is null. Give it a value, or remove the row."
    elif close := close_matches(name, given):
        message = f"`{prefix}{name}` is missing; {shown(close[0])} is there. Rename it to `{name}`."
    elif prefix:
        message = f"`{prefix}{name}` is missing. Add it, or remove the row."
    else:
        named = ", say in `columns` what it is called" if name in COLUMNS else ""
        message = f"`{name}` is missing; the row has {names_in_words(given)}. Add it{named}, or remove the row."
    raise BadRow("missing_field", prefix + name, message)


def close_matches(name: str, given: Row) -> list[str]:
    """The one field that `name` is most like, if any is; of a row with very many, the first are looked at."""
    return difflib.get_close_matches(name, list(islice(given, FIELDS_COMPARED)), n=1)


def first_of(given: Row, names: tuple[str, ...]) -> str | None:
    """The first of several names for the same thing that the row has; one that is null or empty only if all are."""
    there = [name for name in names if name in given]
    return next((name for name in there if given[name] not in (None, "")), there[0] if there else None)


def shown(value: object) -> str:
    """A value of the file for a message: in backticks, short, and without what a terminal or a database can't take."""
    text = value if isinstance(value, str) else repr(value)
    short = text if len(text) <= 60 else text[:57] + "..."
    return f"`{printable(short)}`"


def printable(text: str) -> str:
    """The text with signs that a terminal or a database can't take written out, such as `\\x00`."""
    return "".join(sign if sign.isprintable() else f"\\x{ord(sign):02x}" for sign in text)


def names_in_words(row: Row) -> str:
    """The names of a row's fields, at most eight."""
    return ", ".join(shown(name) for name in list(row)[:8]) or "none"


def kind_of(value: object) -> str:
    """What a JSON value is, in words."""
    kinds = {dict: "an object", list: "a list", str: "text", bool: "true or false", type(None): "null"}
    return kinds.get(type(value), "a number")
