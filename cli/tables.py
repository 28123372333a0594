"""A table on the terminal that a script can read too: plain columns, nothing cut off or wrapped."""

from __future__ import annotations

from collections.abc import Sequence

import typer


def show(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """Prints the rows under their columns."""
    lines = [columns, *rows]
    widths = [max(len(line[column]) for line in lines) for column in range(len(columns))]
    for line in lines:
        typer.echo("  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip())
