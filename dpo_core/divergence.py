"""Steps whose loss or gradient is not finite: skipped, as many as the spec allows, and then the end of the run.

No rank updates anything in such a step, at any ZeRO stage (`Engine.step`), so the weights stay as good as they were and
the step's pairs can be asked one by one which of them it was.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from dpo_core.data.token_table import Selection
from dpo_core.errors import RunError
from dpo_core.recorder import Recorder
from dpo_core.run_directory import Failure
from dpo_core.spec import RunSpec

LINES_NAMED = 10
"""In words; an event's data have all."""


@dataclass(slots=True)
class Divergence:
    """What one run met of it so far."""

    run: RunSpec
    recorder: Recorder
    skipped: int = 0
    """Steps, those of earlier attempts included."""

    def meet(self, step: int, metrics: dict[str, float], batch: Rows, culprits: Rows) -> None:
        """Counts a step that has to be skipped, and says which rows it was.

        `batch`: the step's rows; `culprits`: those whose own log-probabilities are not finite.

        Raises:
            RunError: kind `divergence`; the spec allows no more of them, or the update was made.
        """
        allowed = self.run.training.skip_nonfinite_steps
        finite_gradient = math.isfinite(metrics["grad_norm"])
        stops = self.skipped >= allowed or finite_gradient
        what = "the gradient is not finite" if math.isfinite(metrics["loss"]) else f"the loss is {metrics['loss']}"
        whose = culprits.in_words(self.run) if culprits.rows else f"one of {batch.in_words(self.run)}"
        found = f"At step {step} {what}: {whose}."
        if not stops:
            self.skipped += 1
            found += f" The step was skipped, so no weight changed: {self.skipped} of {allowed} that may be."
        named = culprits if culprits.rows else batch
        self.recorder.event("not_finite", found, warn=True, step=step, pairs=named.as_data(), skipped=self.skipped)
        if stops:
            message = (
                f"{found} The last checkpoint is still good. Look at these rows, or lower the learning rate; "
                f"`training.skip_nonfinite_steps` lets such steps be skipped, and is {allowed}."
            )
            line = named.rows[0][1] if named.rows else None
            raise RunError(Failure(kind="divergence", code="not_finite", message=message, line=line))


@dataclass(frozen=True, slots=True)
class Rows:
    """Rows of the training files, as (place of the file, line)."""

    rows: list[tuple[int, int]]
    names: list[str]
    """Ids of the training files, where there are several."""

    @classmethod
    def of(cls, items: Selection, indices: Sequence[int], run: RunSpec) -> Rows:
        known = items.table.rows["known"][items.places[list(indices)]]
        rows = sorted(set(zip(known["file"].tolist(), known["line"].tolist(), strict=True)))
        return cls(rows, [file.id for file in run.training_files])

    def in_words(self, run: RunSpec) -> str:
        what = "pair" if run.training.method == "dpo" else "example"
        lines = [f"line {line}{self._of(file)}" for file, line in self.rows[:LINES_NAMED]]
        more = len(self.rows) - len(lines)
        return f"{what}{'' if len(self.rows) == 1 else 's'} at {', '.join(lines)}{f' and {more} more' if more else ''}"

    def as_data(self) -> list[dict[str, Any]]:
        return [{"file": self.names[file] if self.names else None, "line": line} for file, line in self.rows]

    def _of(self, file: int) -> str:
        return f" of {self.names[file]}" if self.names else ""
