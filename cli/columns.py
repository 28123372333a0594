"""`--columns FIELD=COLUMN`: what a file calls a field of its rows."""

from __future__ import annotations

from collections.abc import Sequence

from cli.errors import CommandFailed
from dpo_core.data.columns import what_is_wrong


def columns_of(given: Sequence[str]) -> dict[str, str]:
    """`FIELD=COLUMN` each. Raises CommandFailed."""
    pairs = [it.partition("=") for it in given]
    if wrong := [field + sign + column for field, sign, column in pairs if not (field and column)]:
        raise CommandFailed(f"--columns {wrong[0]}: write FIELD=COLUMN, such as prompt=question.")
    columns = {field: column for field, _, column in pairs}
    if wrong_field := what_is_wrong(columns):
        raise CommandFailed(wrong_field)
    return columns
