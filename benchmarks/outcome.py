"""What one run of one contender came to."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from statistics import median


@dataclass(frozen=True, slots=True)
class Outcome:
    seconds: list[float]
    """Wall-clock time of every step but the first, which warms up."""

    losses: list[float]
    """Mean over the pairs of every step, the first included."""

    memory: int
    """Bytes at the peak: resident above the imported process, or allocated on the GPU."""

    reference_seconds: float
    """Spent on the reference's log-probabilities of all pairs, before the first step."""


def fastest_seconds(rounds: Iterable[Sequence[float]]) -> float:
    """Seconds of all steps, each the fastest of its rounds: whatever else a host does makes it slower, never faster."""
    return math.fsum(map(min, zip(*rounds, strict=True)))


def median_seconds(rounds: Iterable[Sequence[float]]) -> float:
    """Seconds of all steps, each the median over rounds."""
    return math.fsum(map(median, zip(*rounds, strict=True)))


def largest_difference(one: Sequence[float], other: Sequence[float]) -> float:
    return max(abs(a - b) for a, b in zip(one, other, strict=True))
