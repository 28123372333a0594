"""What the rows of a file are like, in numbers, gathered in constant memory; parts of a file can be added up."""

from __future__ import annotations

import math
from collections import Counter
from dataclasses import dataclass, field, fields

from dpo_core.data.file_report import LengthBias, Statistics
from dpo_core.data.records import Example, Message, Pair, Text
from dpo_core.prepare_report import Lengths

EXACT_BELOW = 1 << 16
"""Smaller values are counted one by one; larger ones in classes, 128 to each power of two (less than 1 % wide)."""


class Histogram:
    """Counts of non-negative whole numbers."""

    def __init__(self) -> None:
        self._counts: Counter[int] = Counter()
        """By value, or by the smallest value of its class."""

        self._sum = 0
        self._largest = 0

    def add(self, value: int) -> None:
        self._counts[_class_of(value)] += 1
        self._sum += value
        self._largest = max(self._largest, value)

    def merge(self, other: Histogram) -> None:
        self._counts.update(other._counts)
        self._sum += other._sum
        self._largest = max(self._largest, other._largest)

    @property
    def count(self) -> int:
        return self._counts.total()

    def count_above(self, value: int) -> int:
        """How many are larger; exact for a `value` below EXACT_BELOW."""
        return sum(count for smallest, count in self._counts.items() if smallest > value)

    def lengths(self) -> Lengths:
        """Nearest-rank percentiles, as `Lengths.of`."""
        if not self.count:
            return Lengths.of({})
        p50, p90, p99 = (self._percentile(percent) for percent in (50, 90, 99))
        return Lengths(mean=self._sum / self.count, p50=p50, p90=p90, p99=p99, longest=self._largest)

    def _percentile(self, percent: int) -> int:
        rank, passed = math.ceil(self.count * percent / 100), 0
        for value in sorted(self._counts):
            passed += self._counts[value]
            if passed >= rank:
                return value
        raise ValueError("the histogram is empty")


def _class_of(value: int) -> int:
    if value < EXACT_BELOW:
        return value
    shift = value.bit_length() - 8
    return value >> shift << shift


@dataclass(slots=True)
class Gathered:
    """Of the good rows of a file, or of a part of it. Lengths are in characters."""

    turns: Histogram = field(default_factory=Histogram)
    prompt: Histogram = field(default_factory=Histogram)
    chosen: Histogram = field(default_factory=Histogram)
    rejected: Histogram = field(default_factory=Histogram)
    completion: Histogram = field(default_factory=Histogram)
    system: int = 0
    tools: int = 0
    reasoning: int = 0
    longer_chosen: int = 0
    shorter_chosen: int = 0

    def add(self, row: Pair | Example) -> None:
        self.prompt.add(characters(row.prompt))
        answer = row.chosen if isinstance(row, Pair) else row.completion
        self.turns.add(len(_turns(row.prompt)) + len(_turns(answer)))
        if isinstance(row, Pair):
            chosen, rejected = characters(row.chosen), characters(row.rejected)
            self.chosen.add(chosen)
            self.rejected.add(rejected)
            self.longer_chosen += chosen > rejected
            self.shorter_chosen += chosen < rejected
            turns = (*_messages(row.prompt), *_messages(row.chosen), *_messages(row.rejected))
        else:
            self.completion.add(characters(row.completion))
            turns = (*_messages(row.prompt), *_messages(row.completion))
        self.system += any(turn.role == "system" for turn in turns)
        self.tools += row.tools is not None or any(turn.tool_calls or turn.role == "tool" for turn in turns)
        self.reasoning += any(turn.reasoning is not None for turn in turns)

    def merge(self, other: Gathered) -> None:
        """Takes in what was gathered of other rows of the file."""
        for each in fields(self):
            mine, theirs = getattr(self, each.name), getattr(other, each.name)
            if isinstance(mine, Histogram):
                mine.merge(theirs)
            else:
                setattr(self, each.name, mine + theirs)

    def statistics(self, *, prompts: int) -> Statistics:
        """`prompts`: how many different ones there are."""
        return Statistics(
            turns=self.turns.lengths(),
            prompt_characters=self.prompt.lengths(),
            chosen_characters=self.chosen.lengths() if self.chosen.count else None,
            rejected_characters=self.rejected.lengths() if self.rejected.count else None,
            completion_characters=self.completion.lengths() if self.completion.count else None,
            prompts=prompts,
            system_turns=self.system,
            tools=self.tools,
            reasoning=self.reasoning,
            length_bias=self._length_bias(),
        )

    def _length_bias(self) -> LengthBias | None:
        unequal = self.longer_chosen + self.shorter_chosen
        if not unequal:
            return None
        low, high = wilson_interval(self.longer_chosen, unequal)
        equal = self.chosen.count - unequal
        return LengthBias(share=self.longer_chosen / unequal, low=low, high=high, pairs=unequal, equal=equal)


def wilson_interval(successes: int, trials: int) -> tuple[float, float]:
    """95 % interval of a proportion (Wilson 1927); `trials` is at least 1."""
    z = 1.959964
    share = successes / trials
    center = (share + z * z / (2 * trials)) / (1 + z * z / trials)
    spread = z / (1 + z * z / trials) * math.sqrt(share * (1 - share) / trials + z * z / (4 * trials * trials))
    return max(0.0, center - spread), min(1.0, center + spread)


def characters(text: Text) -> int:
    return len(text) if isinstance(text, str) else sum(len(turn.content) for turn in text)


def _turns(text: Text) -> tuple[object, ...]:
    return (text,) if isinstance(text, str) else text


def _messages(text: Text) -> tuple[Message, ...]:
    return () if isinstance(text, str) else text
