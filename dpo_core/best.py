"""Which checkpoint of a run is its best by validation, and when a run that no longer improves ends.

What counts is a function of the step alone, never of when somebody stopped the run, so that a run that was killed
and resumed names the same best as one that was not:

- with `early_stopping`, every evaluation behind the first update; one that improves makes a checkpoint;
- without, the evaluations at steps of which the schedule makes a checkpoint, by the loss.

The evaluation before the first update does not count: it is the starting model, of which there is no checkpoint.
Imports no torch.
"""

from __future__ import annotations

from dataclasses import dataclass

from dpo_core.judged_metrics import BETTER, Direction
from dpo_core.spec import EarlyStopping, StrictModel, TrainingSpec


class Best(StrictModel):
    """The evaluation that no later one has improved on."""

    step: int
    """Optimizer updates behind the weights that were measured, which is the checkpoint's step."""

    metric: str
    value: float


class Standing(StrictModel):
    """How a run stands by its evaluations so far; part of `state/progress.json`."""

    best: Best | None = None
    without_improvement: int = 0
    """Evaluations since the best."""


@dataclass(slots=True)
class Judge:
    """Follows the evaluations of one run."""

    metric: str
    direction: Direction
    min_delta: float
    patience: int | None
    """Evaluations without improvement after which the run ends; None: it never does so early."""

    standing: Standing

    @classmethod
    def of(cls, training: TrainingSpec) -> Judge:
        asked = training.early_stopping
        rule = asked or EarlyStopping()
        patience = asked.patience if asked else None
        return cls(rule.metric, BETTER[training.method][rule.metric], rule.min_delta, patience, Standing())

    @property
    def exhausted(self) -> bool:
        return self.patience is not None and self.standing.without_improvement >= self.patience

    def counts(self, *, scheduled: bool) -> bool:
        """Whether an evaluation is judged; `scheduled`: the step makes a checkpoint whatever is measured."""
        return scheduled or self.patience is not None

    def improves(self, step: int, values: dict[str, float]) -> bool:
        """Judges the evaluation `values` of the weights after `step` updates."""
        value, best = values[self.metric], self.standing.best
        sign = 1 if self.direction == "higher" else -1
        if best is not None and sign * (value - best.value) <= self.min_delta:
            self.standing = Standing(best=best, without_improvement=self.standing.without_improvement + 1)
            return False
        self.standing = Standing(best=Best(step=step, metric=self.metric, value=value))
        return True

    def last_word(self, step: int, total_steps: int, values: dict[str, float]) -> str:
        """Why a run that is `exhausted` ends at `step`, with the evaluation `values`."""
        best = self.standing.best
        if best is None:
            raise ValueError("no evaluation was judged yet")
        evaluations = "1 evaluation" if self.patience == 1 else f"{self.patience} evaluations in a row"
        by = f" by more than {self.min_delta:g}" if self.min_delta else ""
        return (
            f"Training ends early at step {step} of {total_steps}: {evaluations} did not improve{by} on validation "
            f"{self.metric} {best.value:.6g} at step {best.step}; it is {values[self.metric]:.6g} now."
        )
