"""Which rate a step trains at: a pure function of the step, so that a resumed run needs no scheduler state."""

from __future__ import annotations

import math
from typing import Literal


def learning_rate(
    step: int,
    total_steps: int,
    *,
    peak: float,
    schedule: Literal["linear", "cosine", "constant"],
    warmup_ratio: float,
) -> float:
    """The learning rate of the update that follows `step` updates, 0 ≤ step < total_steps.

    Warm-up takes ceil(warmup_ratio · total_steps) steps and rises linearly from peak / warm-up steps to
    peak; then the rate falls towards 0, which the step after the last would have.
    """
    warmup_steps = math.ceil(warmup_ratio * total_steps)
    if step < warmup_steps:
        return peak * (step + 1) / warmup_steps
    if schedule == "constant":
        return peak
    remaining = (total_steps - step) / (total_steps - warmup_steps)
    if schedule == "linear":
        return peak * remaining
    return peak * 0.5 * (1 - math.cos(math.pi * remaining))
