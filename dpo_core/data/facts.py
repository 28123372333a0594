"""What is known of files once all their rows were read; memory stays bounded by the codes there are, not by rows."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

from dpo_core.data.problems import Finding, Tally
from dpo_core.data.records import FileProblem


@dataclass(slots=True)
class FileFacts:
    """One file, or some of its rows."""

    rows: int = 0
    """Rows of the file, good and bad."""

    pairs: int = 0
    """What is trained on of it; supervised: examples."""

    problems: Tally = field(default_factory=Tally)
    """Bad rows, by ProblemCode; none of them is trained on."""

    damage: FileProblem | None = None
    """What ended the reading before the file's end."""

    findings: Tally = field(default_factory=Tally)
    """Rows that are trained on, but that the user should know of."""

    fitting: Tally = field(default_factory=Tally)
    """Rows of which something was cut: `truncated`, whose prompt was shortened, and `dropped`, which were too long
    even with the shortest prompt."""

    least_dropped: tuple[int, int] | None = None
    """The dropped row that is the shortest with its shortest prompt: its tokens, its line."""

    def merge(self, other: FileFacts) -> None:
        """Takes in what is known of other rows of the file."""
        self.rows += other.rows
        self.pairs += other.pairs
        self.damage = self.damage or other.damage
        for mine, theirs in zip(self.tallies(), other.tallies(), strict=True):
            mine.merge(theirs.findings())
        self.drop(other.least_dropped)

    def drop(self, least: tuple[int, int] | None) -> None:
        """`least`: tokens that a dropped row needs at least, and its line."""
        found = [each for each in (self.least_dropped, least) if each is not None]
        self.least_dropped = min(found, default=None)

    def tallies(self) -> tuple[Tally, Tally, Tally]:
        return self.problems, self.findings, self.fitting

    def cut(self, code: str) -> Finding:
        """The rows that are `truncated` or `dropped`, if only none."""
        return next((found for found in self.fitting.findings() if found.code == code), Finding(code, ""))


@dataclass(slots=True)
class DataFacts:
    """The files that one table is made of."""

    files: list[FileFacts]
    lengths: Counter[int] = field(default_factory=Counter)
    """How many pairs have so many tokens, before anything is cut; a pair counts with its longer side."""

    max_length: int | None = None
    largest_token: int = -1

    def to_json(self) -> bytes:
        return json.dumps(
            {
                "files": [_as_json(file) for file in self.files],
                "lengths": sorted(self.lengths.items()),
                "max_length": self.max_length,
                "largest_token": self.largest_token,
            }
        ).encode()

    @classmethod
    def from_json(cls, text: bytes) -> DataFacts:
        given = json.loads(text)
        files = [_from_json(file) for file in given["files"]]
        return cls(files, Counter(dict(given["lengths"])), given["max_length"], given["largest_token"])


def _as_json(file: FileFacts) -> dict[str, Any]:
    problems, findings, fitting = ([asdict(found) for found in tally.findings()] for tally in file.tallies())
    return {
        "rows": file.rows,
        "pairs": file.pairs,
        "problems": problems,
        "damage": None if file.damage is None else asdict(file.damage),
        "findings": findings,
        "fitting": fitting,
        "least_dropped": file.least_dropped,
    }


def _from_json(given: Mapping[str, Any]) -> FileFacts:
    facts = FileFacts(given["rows"], given["pairs"])
    for tally, name in zip(facts.tallies(), ("problems", "findings", "fitting"), strict=True):
        tally.merge([Finding(**found) for found in given[name]])
    if given["damage"] is not None:
        facts.damage = FileProblem(**given["damage"])
    if given["least_dropped"] is not None:
        facts.least_dropped = tuple(given["least_dropped"])
    return facts
