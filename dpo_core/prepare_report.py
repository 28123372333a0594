"""`prepared.json`: what `dpo_core.prepare` found out about a run before a GPU is taken.

Light to import: the supervisor reads it too.
"""

from __future__ import annotations

import math
from bisect import bisect_left
from collections.abc import Mapping
from itertools import accumulate
from typing import Any, Literal

from pydantic import Field

from dpo_core.run_directory import RunDirectory
from dpo_core.spec import Device, Offload, StrictModel, TrainingSpec


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
    def of(cls, counts: Mapping[int, int]) -> Lengths:
        """`counts`: how many sequences have each length.

        Nearest-rank percentiles: the smallest length that at least so many percent don't exceed.
        """
        if not counts:
            return cls(mean=0.0, p50=0, p90=0, p99=0, longest=0)
        ordered = sorted(counts)
        up_to = list(accumulate(counts[length] for length in ordered))
        ranks = (math.ceil(up_to[-1] * percent / 100) for percent in (50, 90, 99))
        p50, p90, p99 = (ordered[bisect_left(up_to, rank)] for rank in ranks)
        mean = sum(length * count for length, count in counts.items()) / up_to[-1]
        return cls(mean=mean, p50=p50, p90=p90, p99=p99, longest=ordered[-1])


class ReportFinding(StrictModel):
    """Rows that are used, but that the user should know of."""

    file: Literal["training", "validation"] = "training"
    name: str | None = None
    """The file's id, where there are several."""

    code: str
    message: str
    """What the rows have in common, or what the first of them is."""

    count: int
    lines: list[int]
    """The first 100 of them."""


class ReportProblem(StrictModel):
    """Bad rows that were left out."""

    file: Literal["training", "validation"]
    name: str | None = None
    """The file's id, where there are several."""

    code: str
    title: str
    message: str
    """What is wrong with the first of the rows, and what to do."""

    count: int
    lines: list[int]
    """The first 100 of them."""


class ReportFile(StrictModel):
    """One of several training files."""

    name: str
    weight: float
    rows: int
    pairs: int
    bad: int
    dropped: int
    truncated: int


class Report(StrictModel):
    """ "The training file" is all of them, where there are several; line numbers are then in what names the file."""

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
    files: list[ReportFile] = Field(default_factory=list)
    """Where there are several training files."""

    findings: list[ReportFinding]
    warnings: list[str]
    """What is allowed but probably not meant."""


class StageMemory(StrictModel):
    """What a run would take of memory with one ZeRO stage and offload. Everything in bytes, estimated."""

    zero_stage: int
    offload: Offload
    activation_checkpointing: bool
    micro_batch_tokens: int
    rank: dict[str, int]
    """Of one rank, by what it holds; `peak` is the most at once."""

    host: int
    """Of the host, for what is offloaded, all ranks together."""

    fits: bool | None
    """None where the memory is not known."""

    chosen: bool


class MemoryReport(StrictModel):
    device: Device
    ranks: int
    rank: int | None
    """Bytes that one rank may use; None where that is not known."""

    stages: list[StageMemory]


class Disk(StrictModel):
    """Bytes that a run's checkpoints take in storage, estimated from the sizes of its tensors."""

    checkpoints: int
    """At most, where it may end early."""

    model: int
    """One checkpoint's model."""

    state: int
    """One checkpoint's state to resume from."""

    kept: int
    """When the run is over: every checkpoint's model."""

    peak: int
    """While it runs: with the newest states."""


class Prepared(StrictModel):
    training: TrainingSpec
    """The user's spec without any "auto"."""

    values: dict[str, Value]
    report: Report
    memory: MemoryReport
    disk: Disk
    reference_group: str | None
    """Which cached log-probabilities are of this run's reference (dpo_core/reference_group.py)."""

    total_steps: int
    trained_tokens_estimate: int
    """Tokens of all sequences that the run's steps will read."""


def read_prepared(directory: RunDirectory) -> Prepared:
    """Raises FileNotFoundError as long as the preparation has not succeeded."""
    return Prepared.model_validate_json(directory.prepared_file.read_bytes())
