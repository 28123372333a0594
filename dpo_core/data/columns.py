"""A file's own names for the fields of its rows: `training.columns`."""

from __future__ import annotations

import difflib
from collections.abc import Mapping

from dpo_core.data.fields import COLUMNS, BadRow, Row, close_matches, names_in_words, shown


def what_is_wrong(columns: Mapping[str, str]) -> str | None:
    """A sentence about a mapping that can't be meant; None where there is nothing to say."""
    for field, column in columns.items():
        if field not in COLUMNS:
            close = difflib.get_close_matches(field, COLUMNS, n=1)
            meant = f"Did you mean `{close[0]}`?" if close else f"Use {', '.join(f'`{name}`' for name in COLUMNS)}."
            return f"`columns` names the file's column for a field, and `{field}` is none. {meant}"
        if not column:
            return f"`columns.{field}` is empty. Write the name of the file's column, or leave it out."
    return None


def rename(row: Row, columns: Mapping[str, str]) -> Row:
    """The row with fields for the columns that are named; its other fields stay as they are.

    Raises:
        BadRow: a column that is named isn't in the row.
    """
    if not columns:
        return row
    taken = set(columns.values())
    renamed = {name: value for name, value in row.items() if name not in taken}
    for field, column in columns.items():
        if column not in row:
            close = close_matches(column, row)
            way = f"{shown(close[0])} is there" if close else f"it has {names_in_words(row)}"
            message = (
                f"`columns` says that `{field}` is `{column}`, which the row doesn't have; {way}. Correct `columns`."
            )
            raise BadRow("missing_field", column, message)
        renamed[field] = row[column]
    return renamed
