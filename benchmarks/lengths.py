"""How long real preference pairs are, in tokens: drawn at random where the real data is absent.

The tables are hh-rlhf's `harmless-base` test set (Bai et al. 2022, arXiv:2204.05862; 2,303 good pairs), rendered
with a ChatML template and a vocabulary of 6,400: the 0th, 5th … 100th percentile. Means: prompt 182.6, chosen 53.6,
rejected 68.1. The three are drawn independently; the correlations of their logarithms are 0.21 to 0.31.
"""

from __future__ import annotations

import random
from dataclasses import dataclass

PROMPT = (21, 28, 31, 35, 40, 51, 76, 96, 113, 129, 149, 167, 183, 205, 224, 251, 286, 325, 395, 494, 964)
CHOSEN = (2, 8, 11, 14, 16, 19, 22, 25, 28, 32, 36, 40, 45, 51, 60, 70, 82, 99, 121, 159, 361)
REJECTED = (2, 9, 12, 16, 20, 24, 27, 31, 36, 41, 48, 54, 61, 69, 78, 89, 103, 119, 146, 194, 768)


@dataclass(frozen=True, slots=True)
class PairLengths:
    """Tokens of one pair; `chosen` and `rejected` are the answers alone, their end-of-turn token included."""

    prompt: int
    chosen: int
    rejected: int

    @property
    def unique(self) -> int:
        """Tokens of the pair when its prompt counts once."""
        return self.prompt + self.chosen + self.rejected


def like_hh_rlhf(count: int, seed: int) -> list[PairLengths]:
    """`count` pairs with hh-rlhf's lengths."""
    generator = random.Random(seed)
    return [
        PairLengths(*(between(table, generator.random()) for table in (PROMPT, CHOSEN, REJECTED))) for _ in range(count)
    ]


def between(percentiles: tuple[int, ...], share: float) -> int:
    """The value below which `share` of a distribution lies, interpolated between equally spaced percentiles."""
    position = share * (len(percentiles) - 1)
    below = min(int(position), len(percentiles) - 2)
    low, high = percentiles[below], percentiles[below + 1]
    return round(low + (position - below) * (high - low))


def with_ratio(count: int, ratio: float, answers: int, seed: int) -> list[PairLengths]:
    """`count` pairs with P/(C+R) = `ratio`; C+R is `answers` on average, and C and R differ as they do in real data."""
    generator = random.Random(seed)
    pairs = []
    for _ in range(count):
        both = round(answers * generator.uniform(0.75, 1.25))
        chosen = max(2, round(both * generator.uniform(0.3, 0.6)))
        pairs.append(PairLengths(max(1, round(ratio * both)), chosen, both - chosen))
    return pairs
