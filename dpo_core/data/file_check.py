"""Reads all of a file, whatever it is for, and reports what is in it. Needs no model."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from itertools import islice
from pathlib import Path

import numpy as np

from dpo_core.data.file_report import Damage, FileReport, findings_of, problems_of, shapes_of
from dpo_core.data.fingerprints import FINGERPRINT, Fingerprint, fingerprint
from dpo_core.data.formats import FileKind, RawRow, kind_of_file, raw_rows, records
from dpo_core.data.options import ReadOptions
from dpo_core.data.parallel import chunks, map_in_order
from dpo_core.data.problems import Tally
from dpo_core.data.records import Example, FileProblem, Pair, RowProblem, Shape
from dpo_core.data.rendering import REPEATED_ROLE, repeats_a_role
from dpo_core.data.repeats import Array, Prompts, Repeats
from dpo_core.data.statistics import Gathered
from dpo_core.spec import Method

FIRST_ROWS = 100
"""By so many it is told which method a file is for."""

OTHER: dict[Method, Method] = {"dpo": "supervised", "supervised": "dpo"}


class AnyMethod:
    """Reads rows for the method that they are made for, trying the one of the last row first."""

    def __init__(self, columns: Mapping[str, str]) -> None:
        self._columns = columns
        self._method: Method = "dpo"

    def records(self, raw: RawRow) -> list[Pair | Example | RowProblem]:
        found = records(raw, ReadOptions(self._method, self._columns))
        if any(isinstance(it, RowProblem) and it.code == "wrong_method" for it in found):
            self._method = OTHER[self._method]
            found = records(raw, ReadOptions(self._method, self._columns))
        return found


def method_of(path: Path, columns: Mapping[str, str] | None = None) -> Method:
    """The method that the first rows are for. Raises OSError where the file can't be read."""
    reader = AnyMethod(columns or {})
    raw = (row for row in islice(raw_rows(path), FIRST_ROWS) if isinstance(row, RawRow))
    rows = [row for it in raw for row in reader.records(it)]
    examples = sum(isinstance(row, Example) for row in rows)
    return "supervised" if examples > sum(isinstance(row, Pair) for row in rows) else "dpo"


@dataclass(slots=True)
class Part:
    """What is in some rows of a file."""

    pairs: int = 0
    examples: int = 0
    shapes: Counter[Shape] = field(default_factory=Counter)
    problems: Tally = field(default_factory=Tally)
    notes: Tally = field(default_factory=Tally)
    damage: FileProblem | None = None
    gathered: Gathered = field(default_factory=Gathered)
    fingerprints: Array = field(default_factory=lambda: np.empty(0, FINGERPRINT))

    def merge(self, other: Part) -> None:
        """Takes in what is in other rows, but for their fingerprints."""
        self.pairs += other.pairs
        self.examples += other.examples
        self.shapes.update(other.shapes)
        self.problems.merge(other.problems.findings())
        self.notes.merge(other.notes.findings())
        self.damage = self.damage or other.damage
        self.gathered.merge(other.gathered)


def check_file(path: Path, processes: int | None = None, columns: Mapping[str, str] | None = None) -> FileReport:
    """Every row of `path`, in words and numbers, read by `processes`: as many as there are cores.

    `columns` are the file's own names for fields, as in a training spec.

    Raises:
        RunError: kind `resource`; a process was killed.
        OSError: the file can't be read.
    """
    whole, repeats, prompts = Part(), Repeats(), Prompts()
    for part in map_in_order(partial(_start, columns or {}), chunks(raw_rows(path)), processes):
        whole.merge(part)
        repeats.add(part.fingerprints)
        prompts.add(part.fingerprints)
    different, repeated = prompts.take()
    for findings in (*repeats.findings(), repeated):
        whole.notes.merge(findings)
    return _report(whole, kind_of_file(path), different)


def _start(columns: Mapping[str, str]) -> Callable[[Sequence[RawRow | FileProblem]], Part]:
    reader = AnyMethod(columns)
    return lambda rows: _part(rows, reader)


def _part(rows: Sequence[RawRow | FileProblem], reader: AnyMethod) -> Part:
    part, fingerprints = Part(), list[Fingerprint]()
    for raw in rows:
        if isinstance(raw, FileProblem):
            part.damage = raw
            continue
        for row in reader.records(raw):
            if isinstance(row, RowProblem):
                part.problems.add(row.code, row, row.message)
                continue
            part.pairs += isinstance(row, Pair)
            part.examples += isinstance(row, Example)
            if row.shape is not None:
                part.shapes[row.shape] += 1
            part.gathered.add(row)
            fingerprints.append(fingerprint(row))
            if repeats_a_role(row):
                part.notes.add("repeated_role", row, REPEATED_ROLE)
    part.fingerprints = np.array(fingerprints, FINGERPRINT)
    return part


def _report(whole: Part, kind: FileKind | None, prompts: int) -> FileReport:
    good, damage = whole.pairs + whole.examples, whole.damage
    return FileReport(
        format=kind.in_words() if kind else None,
        shapes=shapes_of(whole.shapes),
        rows=good + whole.problems.count,
        pairs=whole.pairs,
        examples=whole.examples,
        problems=problems_of(whole.problems),
        damage=Damage(code=damage.code, message=damage.message, line=damage.line) if damage else None,
        findings=findings_of(whole.notes),
        statistics=whole.gathered.statistics(prompts=prompts) if good else None,
    )
