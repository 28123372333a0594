"""The table of faults: for people, and as Markdown for docs/reliability.md."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path

from tests.faults.journal import Row

BEGIN, END = "<!-- begin: what make faults measured -->", "<!-- end -->"


def printed(rows: Iterable[Row]) -> str:
    lines = [f"{'fault':<62} {'trainer':<7} {'times':>6} {'survived':>8} {'lost':>5} {'median s':>9} {'worst s':>8}"]
    for row in rows:
        numbers = f"{row.strikes:>6} {row.survived:>8} {row.lost:>5} {_seconds(row.median):>9} {_seconds(row.worst):>8}"
        lines.append(f"{row.fault:<62} {row.trainer:<7} {row.note or numbers}")
    return "\n".join(lines)


def markdown(rows: Iterable[Row], promises: Mapping[str, str]) -> str:
    lines = [
        "| fault | promise | trainer | times | survived | lost | seconds to recovery: median | worst |",
        "|---|---|---|--:|--:|--:|--:|--:|",
    ]
    for row in rows:
        cells = [row.fault, promises.get(row.fault, ""), row.trainer]
        if row.note:
            cells += [row.note, "", "", "", ""]
        else:
            cells += [f"{row.strikes:,}", f"{row.survived:,}", str(row.lost), _seconds(row.median), _seconds(row.worst)]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def write_into(page: Path, text: str) -> None:
    """Replaces what stands between the page's two marks."""
    before, _, rest = page.read_text(encoding="utf-8").partition(BEGIN)
    _, _, after = rest.partition(END)
    page.write_text(f"{before}{BEGIN}\n{text}\n{END}{after}", encoding="utf-8")


def _seconds(value: float | None) -> str:
    return "" if value is None else f"{value:.1f}"
