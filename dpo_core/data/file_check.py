"""Reads all of a file, whatever it is for, and reports what is in it. Needs no model."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from dpo_core.data.dataset import notes_on, prompt_key
from dpo_core.data.file_report import Damage, FileReport, Problem
from dpo_core.data.formats import RawRow, raw_rows, records
from dpo_core.data.options import ReadOptions
from dpo_core.data.problems import TITLES, Tally
from dpo_core.data.records import Example, FileProblem, Pair, RowProblem
from dpo_core.data.repeats import Repeats
from dpo_core.data.statistics import Gathered
from dpo_core.prepare_report import ReportFinding
from dpo_core.spec import Method

OTHER: dict[Method, Method] = {"dpo": "supervised", "supervised": "dpo"}


class AnyMethod:
    """Reads rows for the method that they are made for, trying the one of the last row first."""

    def __init__(self) -> None:
        self._method: Method = "dpo"

    def records(self, raw: RawRow) -> list[Pair | Example | RowProblem]:
        found = records(raw, ReadOptions(self._method))
        if any(isinstance(it, RowProblem) and it.code == "wrong_method" for it in found):
            self._method = OTHER[self._method]
            found = records(raw, ReadOptions(self._method))
        return found


def check_file(path: Path) -> FileReport:
    """Every row of `path`, in words and numbers.

    Raises:
        OSError: the file can't be read.
    """
    check = _FileCheck()
    for row in _rows(path):
        check.add(row)
    return check.report()


def _rows(path: Path) -> Iterator[Pair | Example | RowProblem | FileProblem]:
    reader = AnyMethod()
    for raw in raw_rows(path):
        if isinstance(raw, FileProblem):
            yield raw
        else:
            yield from reader.records(raw)


class _FileCheck:
    def __init__(self) -> None:
        self._gathered = Gathered()
        self._repeats = Repeats()
        self._prompts: set[str] = set()
        self._problems, self._notes = Tally(), Tally()
        self._damage: FileProblem | None = None
        self._pairs = self._examples = 0

    def add(self, row: Pair | Example | RowProblem | FileProblem) -> None:
        if isinstance(row, FileProblem):
            self._damage = row
        elif isinstance(row, RowProblem):
            self._problems.add(row.code, row.line, row.message)
        else:
            self._pairs += isinstance(row, Pair)
            self._examples += isinstance(row, Example)
            self._gathered.add(row)
            self._prompts.add(prompt_key(row.prompt))
            for code, message in notes_on(row, self._repeats):
                self._notes.add(code, row.line, message)

    def report(self) -> FileReport:
        good = self._pairs + self._examples
        damage = self._damage
        return FileReport(
            rows=good + self._problems.count,
            pairs=self._pairs,
            examples=self._examples,
            problems=[
                Problem(code=it.code, title=TITLES[it.code], message=it.message, count=it.count, lines=it.lines)
                for it in self._problems.findings()
            ],
            damage=Damage(code=damage.code, message=damage.message, line=damage.line) if damage else None,
            findings=[
                ReportFinding(code=it.code, message=it.message, count=it.count, lines=it.lines)
                for it in self._notes.findings()
            ],
            statistics=self._gathered.statistics(prompts=len(self._prompts)) if good else None,
        )
