"""A table on the terminal that a script can read too: plain columns, nothing cut off or wrapped."""

from __future__ import annotations

from collections.abc import Sequence

import typer


def show(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """Prints the rows under their columns."""
    for line in aligned(columns, rows):
        typer.echo(line)


def aligned(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    """The columns and the rows under them, a line each."""
    lines = [columns, *rows]
    widths = [max(len(line[column]) for line in lines) for column in range(len(columns))]
    return ["  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip() for line in lines]
