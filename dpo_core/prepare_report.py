"""`prepared.json`: what `dpo_core.prepare` found out about a run before a GPU is taken.

Light to import: the supervisor reads it too.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, Literal

from dpo_core.run_directory import RunDirectory
from dpo_core.spec import StrictModel, TrainingSpec


class Value(StrictModel):
    """One resolved field of the training spec, and why it has this value."""

    value: Any
    source: Literal["given", "auto"]
    reason: str


class Lengths(StrictModel):
    """Tokens per sequence, before anything is cut; a pair counts with its longer side."""

    mean: float
    p50: int
    p90: int
    p99: int
    longest: int

    @classmethod
    def of(cls, lengths: Sequence[int]) -> Lengths:
        """Nearest-rank percentiles: the smallest length that at least so many percent don't exceed."""
        if not lengths:
            return cls(mean=0.0, p50=0, p90=0, p99=0, longest=0)
        ordered = sorted(lengths)
        p50, p90, p99 = (ordered[math.ceil(len(ordered) * percent / 100) - 1] for percent in (50, 90, 99))
        return cls(mean=sum(ordered) / len(ordered), p50=p50, p90=p90, p99=p99, longest=ordered[-1])


class ReportFinding(StrictModel):
    """Rows of the training file that are trained on, but that the user should know of."""

    code: str
    message: str
    """What the rows have in common, or what the first of them is."""

    count: int
    lines: list[int]
    """The first 100 of them."""


class ReportProblem(StrictModel):
    """Bad rows that were left out."""

    file: Literal["training", "validation"]
    code: str
    title: str
    message: str
    """What is wrong with the first of the rows, and what to do."""

    count: int
    lines: list[int]
    """The first 100 of them."""


class Report(StrictModel):
    rows: int
    """Rows of the training file."""

    pairs: int
    """Rows of the training file that fit (supervised: examples)."""

    bad: int
    """Rows of the training file that were left out because something is wrong with them."""

    problems: list[ReportProblem]
    """The bad rows of both files, by what is wrong."""

    train_items: int
    validation_items: int
    dropped_lines: list[int]
    """The first lines of the training file that are too long even with the shortest prompt."""

    dropped: int
    truncated: int
    """Rows of the training file whose prompt was shortened."""

    lengths: Lengths
    findings: list[ReportFinding]
    warnings: list[str]
    """What is allowed but probably not meant."""


class Prepared(StrictModel):
    training: TrainingSpec
    """The user's spec without any "auto"."""

    values: dict[str, Value]
    report: Report
    reference_group: str | None
    """Which cached log-probabilities are of this run's reference (dpo_core/reference_group.py)."""

    total_steps: int
    trained_tokens_estimate: int
    """Tokens of all sequences that the run's steps will read."""


def read_prepared(directory: RunDirectory) -> Prepared:
    """Raises FileNotFoundError as long as the preparation has not succeeded."""
    return Prepared.model_validate_json(directory.prepared_file.read_bytes())
