"""Runs contenders on one workload and turns their outcomes into figures."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from itertools import count
from pathlib import Path
from statistics import median
from typing import Any

from benchmarks import ours, theirs
from benchmarks.lengths import PairLengths
from benchmarks.outcome import Outcome, fastest_seconds, median_seconds
from benchmarks.theirs import Recipe, TrlSettings
from benchmarks.workload import Workload
from dpo_core.run_directory import RunDirectory

MEBIBYTE = 2**20
COLUMNS = ("", "s/step", "pairs/s", "unique tokens/s", "pairs/s with reference", "peak MiB")


@dataclass(slots=True)
class Ring:
    """Where contenders run: one workload, one recipe, and a new folder for every run."""

    workload: Workload
    folder: Path
    recipe: Recipe
    imported: int = 0
    """Resident bytes of a process of ours that has imported everything; 0 where memory is a GPU's."""

    ranks: int = 1
    """Processes of ours."""

    numbers: count[int] = field(default_factory=count)

    def new_folder(self) -> Path:
        return self.folder / f"run-{next(self.numbers)}"

    def trl(self, settings: TrlSettings, gradients: Path | None = None) -> Outcome:
        return theirs.train(self.workload, self.new_folder(), settings, self.recipe, gradients)

    def trl_several(self, grid: Sequence[TrlSettings]) -> dict[TrlSettings, Outcome]:
        """Those that fit into memory, in one process."""
        found = theirs.train_several(self.workload, self.new_folder(), grid, self.recipe)
        return {settings: outcome for settings, outcome in found.items() if outcome is not None}

    def directory(self, cache: Path | None = None, **training: Any) -> RunDirectory:
        """A run of ours; `training` are fields of TrainingSpec beside the recipe's."""
        recipe = self.recipe
        fields: dict[str, Any] = {"beta": recipe.beta, "learning_rate": recipe.learning_rate}
        if recipe.lora_rank:
            fields["lora"] = {"rank": recipe.lora_rank, "alpha": recipe.lora_rank}
        return ours.make_run(
            self.workload,
            self.new_folder(),
            fields | training,
            ranks=self.ranks,
            device=recipe.device,
            reference_cache=cache,
        )

    def ours(self, cache: Path | None = None, **training: Any) -> Outcome:
        return ours.train(self.directory(cache, **training), self.imported)

    def entry(self, name: str, rounds: list[Outcome]) -> Entry:
        return Entry(name, rounds, self.workload.steps())


@dataclass(frozen=True, slots=True)
class Entry:
    """One contender's rounds, as figures."""

    name: str
    rounds: list[Outcome]
    steps: list[list[PairLengths]]

    @property
    def seconds(self) -> float:
        """Of all timed steps, undisturbed."""
        return fastest_seconds(outcome.seconds for outcome in self.rounds)

    @property
    def median_seconds(self) -> float:
        """Of all timed steps."""
        return median_seconds(outcome.seconds for outcome in self.rounds)

    @property
    def reference_seconds(self) -> float:
        """Of measuring the reference of all pairs, those of the warm-up step too."""
        return median(outcome.reference_seconds for outcome in self.rounds)

    @property
    def seconds_with_reference(self) -> float:
        """Of all timed steps and of measuring their pairs' reference once."""
        return self.seconds + self.reference_seconds * len(self.timed) / len(self.steps)

    @property
    def timed(self) -> list[list[PairLengths]]:
        return self.steps[1:]

    @property
    def memory(self) -> float:
        return median(outcome.memory for outcome in self.rounds)

    @property
    def pairs_per_second(self) -> float:
        return sum(map(len, self.timed)) / self.seconds

    def row(self) -> list[str]:
        pairs = sum(map(len, self.timed))
        tokens = sum(pair.unique for step in self.timed for pair in step)
        return [
            self.name,
            f"{self.seconds / len(self.timed):.2f}",
            f"{self.pairs_per_second:.2f}",
            f"{tokens / self.seconds:,.0f}",
            f"{pairs / self.seconds_with_reference:.2f}",
            f"{self.memory / MEBIBYTE:,.0f}",
        ]

    def record(self) -> dict[str, Any]:
        return {"name": self.name, "rounds": [asdict(outcome) for outcome in self.rounds]}


def tokens_for(steps: Sequence[Sequence[PairLengths]], pairs: int) -> int:
    """A budget of tokens that lets every micro-batch hold at least so many pairs."""
    return max(sum(sorted(pair.unique for pair in step)[-pairs:]) for step in steps)
