"""Text from a trainer, which may quote a user's file, made fit for PostgreSQL."""

from __future__ import annotations

import re
from typing import TypeVar

T = TypeVar("T")

UNSTORABLE = re.compile("[\0\ud800-\udfff]")
"""NUL and halves of surrogate pairs: JSON has them, PostgreSQL's text doesn't."""


def storable(value: T) -> T:
    """The same JSON value with U+FFFD for what PostgreSQL can't store; a report is never lost to one character."""
    changed: object = value
    if isinstance(value, str):
        changed = UNSTORABLE.sub("\ufffd", value)
    elif isinstance(value, dict):
        changed = {storable(name): storable(item) for name, item in value.items()}
    elif isinstance(value, list):
        changed = [storable(item) for item in value]
    return changed  # type: ignore[return-value]  # of the same type, which mypy can't follow through isinstance
