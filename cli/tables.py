"""A table on the terminal; plain columns where the output is a pipe."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text


def show(columns: Sequence[str], rows: Iterable[Sequence[str]]) -> None:
    """Prints rows under their columns. Nothing is cut off or wrapped, so a script can split the lines."""
    table = Table(*columns, box=box.SIMPLE_HEAD, show_edge=False)
    for row in rows:
        table.add_row(*(Text(cell, no_wrap=True, overflow="ignore") for cell in row))
    console = Console()
    console.print(table, soft_wrap=True, width=max(console.width, console.measure(table).maximum))
