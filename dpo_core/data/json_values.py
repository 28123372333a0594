"""JSON as RFC 8259 has it: no NaN, no Infinity, and no field twice in one object."""

from __future__ import annotations

import json
from collections import Counter
from typing import NoReturn


class RepeatedField(ValueError):
    """An object has a field twice; which one is meant nobody knows."""

    def __init__(self, name: str) -> None:
        super().__init__(f"an object has the field {json.dumps(name[:60])} twice")
        self.name = name


def _object(pairs: list[tuple[str, object]]) -> dict[str, object]:
    row = dict(pairs)
    if len(row) != len(pairs):
        ((name, _),) = Counter(name for name, _ in pairs).most_common(1)
        raise RepeatedField(name)
    return row


def _refuse_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is not a JSON number")


_DECODER = json.JSONDecoder(object_pairs_hook=_object, parse_constant=_refuse_constant)
"""Made once: it is used for every row."""


def decode(text: str) -> object:
    """The value of a JSON text.

    Raises:
        json.JSONDecodeError: it is no JSON; its column is where.
        RepeatedField: see there.
        RecursionError: it is nested too deeply.
        ValueError: NaN, Infinity, or an integer with thousands of digits.
    """
    return _DECODER.decode(text)
