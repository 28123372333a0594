"""How the rows of a file are to be read."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from dpo_core.spec import Method, ScoredAnswers, TrainingFields


@dataclass(frozen=True, slots=True)
class ReadOptions:
    """What a job says about its files; picklable."""

    method: Method
    columns: Mapping[str, str] = field(default_factory=dict)
    """The file's column for a field of `dpo_core.data.fields.COLUMNS`, where detection would take another."""

    scored: ScoredAnswers = "best_worst"
    """Which pairs are made of N scored answers to one prompt."""

    @classmethod
    def of(cls, training: TrainingFields) -> ReadOptions:
        return cls(training.method, training.columns, training.scored_answers)
