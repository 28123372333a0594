"""What was played, one JSON line each, so that a run that was stopped goes on where it was."""

from __future__ import annotations

import json
import re
import shutil
import statistics
from collections.abc import Iterable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Literal

from tests.faults.deployment import Trainer

FOLDER = Path("build") / "faults"
Outcome = Literal["survived", "lost", "skipped"]


@dataclass(frozen=True)
class Line:
    fault: str
    trainer: Trainer
    play: int
    """Its number among those of the same fault and trainer, from 0."""
    outcome: Outcome
    strikes: int = 0
    recoveries: list[float] = field(default_factory=list)
    moments: list[str] = field(default_factory=list)
    why: list[str] = field(default_factory=list)
    """What was lost, or why it was skipped."""
    seconds: float = 0.0

    @property
    def key(self) -> tuple[str, str, int]:
        """What tells a play from the others."""
        return self.fault, self.trainer, self.play


class Journal:
    """The lines of one seed. Several processes may write to it at once: a line is one write."""

    def __init__(self, seed: int, folder: Path = FOLDER) -> None:
        self.path = folder / f"{seed}.jsonl"
        folder.mkdir(parents=True, exist_ok=True)

    def add(self, line: Line) -> None:
        with open(self.path, "a", encoding="utf-8") as file:
            file.write(json.dumps(asdict(line)) + "\n")

    def keep_logs(self, line: Line, logs: Path) -> Path:
        """Copies what the service said while it was lost, before its folder goes; says where to."""
        kept = self.path.with_suffix("") / re.sub(r"\W+", "-", f"{line.fault} {line.trainer} {line.play + 1}")
        shutil.copytree(logs, kept, dirs_exist_ok=True)
        return kept

    def lines(self) -> list[Line]:
        """The last one of each play: a play that lost something may be played again."""
        return _last(self._read())

    def lost_before(self) -> list[Line]:
        """What plays lost that survived when they were played again: a race may be lost once in ten times."""
        read = self._read()
        survived = {line.key for line in _last(read) if line.outcome == "survived"}
        return [line for line in read if line.outcome == "lost" and line.key in survived]

    def played(self) -> set[tuple[str, str, int]]:
        """What needs not be played again."""
        return {line.key for line in self.lines() if line.outcome != "lost"}

    def _read(self) -> list[Line]:
        if not self.path.exists():
            return []
        return [Line(**json.loads(text)) for text in self.path.read_text(encoding="utf-8").splitlines()]


def _last(lines: list[Line]) -> list[Line]:
    """Of each play."""
    return list({line.key: line for line in lines}.values())


def newest_seed(folder: Path = FOLDER) -> int | None:
    """Of the journal that was written to last."""
    journals = sorted(folder.glob("[0-9]*.jsonl"), key=lambda path: path.stat().st_mtime)
    return int(journals[-1].stem) if journals else None


@dataclass(frozen=True)
class Row:
    """A fault with one trainer, over all its plays."""

    fault: str
    trainer: str
    strikes: int
    survived: int
    lost: int
    median: float | None
    worst: float | None
    note: str = ""


def rows(lines: Iterable[Line], order: Iterable[tuple[str, str]]) -> list[Row]:
    of: dict[tuple[str, str], list[Line]] = {key: [] for key in order}
    for line in lines:
        of.setdefault((line.fault, line.trainer), []).append(line)
    return [_row(fault, trainer, plays) for (fault, trainer), plays in of.items() if plays]


def _row(fault: str, trainer: str, plays: list[Line]) -> Row:
    count = {
        outcome: sum(line.strikes for line in plays if line.outcome == outcome) for outcome in ("survived", "lost")
    }
    seconds = [recovery for line in plays if line.outcome == "survived" for recovery in line.recoveries]
    skipped = next((line.why[0] for line in plays if line.outcome == "skipped"), "")
    return Row(
        fault,
        trainer,
        sum(count.values()),
        count["survived"],
        count["lost"],
        statistics.median(seconds) if seconds else None,
        max(seconds, default=None),
        f"skipped: {skipped}" if skipped else "",
    )
