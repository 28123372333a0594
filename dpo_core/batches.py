"""Which items a step trains on, and how ranks and micro-batches share them."""

from __future__ import annotations

import heapq
from collections.abc import Sequence
from dataclasses import dataclass

import torch

from dpo_core.data.records import TokenItem
from dpo_core.packing import input_tokens, response_tokens
from dpo_core.spec import Way


class Sampler:
    """The order of the data: a permutation per epoch, drawn from (seed, epoch) alone.

    The last batch of an epoch may be smaller; its loss is normalised by its own size. No batch spans two
    epochs, so that every item is seen exactly once in each.
    """

    def __init__(self, count: int, batch_size: int, seed: int) -> None:
        self.count = count
        self.batch_size = batch_size
        self.seed = seed
        self.steps_per_epoch = -(-count // batch_size)
        self._epoch = -1
        self._order: list[int] = []

    def visited(self, steps: int) -> list[int]:
        """Indices of all items that the first `steps` updates train on, in the order of the data."""
        if steps >= self.steps_per_epoch:
            return list(range(self.count))
        return sorted(index for step in range(steps) for index in self.batch(step))

    def batch(self, step: int) -> list[int]:
        """Indices of the global batch of the update that follows `step` updates."""
        epoch, position = divmod(step, self.steps_per_epoch)
        if epoch != self._epoch:
            # the multiplier keeps (seed, epoch) and (seed + 1, epoch - 1) apart
            generator = torch.Generator().manual_seed(self.seed * 1_000_003 + epoch)
            self._order = torch.randperm(self.count, generator=generator).tolist()
            self._epoch = epoch
        start = position * self.batch_size
        return self._order[start : start + self.batch_size]


@dataclass(frozen=True, slots=True)
class Cost:
    """What an item needs in a forward pass."""

    tokens: int
    """Input tokens; padded: of its longest row."""

    rows: int
    responses: int
    """Predicted tokens at most."""

    @classmethod
    def of(cls, item: TokenItem, way: Way) -> Cost:
        return cls(input_tokens(item, way), len(item.sequences), response_tokens(item))


@dataclass(frozen=True, slots=True)
class Share:
    """One micro-batch of one rank: indices into the list that was dealt."""

    indices: list[int]
    counts: bool
    """False for work at zero weight, which only keeps the ranks in step."""

    chunks: int
    """Pieces of the head's work, the same on every rank."""


def deal(costs: Sequence[Cost], way: Way, budget: int, chunk: int, ranks: int) -> list[list[Share]]:
    """Deals items to micro-batches of at most `budget` tokens, and those to ranks: [ranks][rounds].

    Every rank gets the same number of micro-batches, and in each round the same number of head chunks of at
    most `chunk` tokens: ZeRO 2 and 3 hang otherwise. An item larger than the budget is a micro-batch by itself.
    Micro-batches of one round have about the same size, so that no rank waits for another. Where there are too
    few, the smallest item is repeated at zero weight.
    """
    order = sorted(range(len(costs)), key=lambda index: (-costs[index].tokens, index))
    groups = rectangles(order, costs, budget, ranks) if way == "padded" else even(order, costs, budget, ranks)
    groups.sort(key=lambda group: -sum(costs[index].tokens for index in group))
    dealt: list[list[Share]] = [[] for _ in range(ranks)]
    for start in range(0, len(groups), ranks):
        together = groups[start : start + ranks]
        filled = together + [[order[-1]]] * (ranks - len(together))
        chunks = max(-(-sum(costs[index].responses for index in group) // chunk) for group in filled)
        for rank, group in enumerate(filled):
            dealt[rank].append(Share(group, rank < len(together), max(chunks, 1)))
    return dealt


def even(order: Sequence[int], costs: Sequence[Cost], budget: int, ranks: int) -> list[list[int]]:
    """As few groups as hold `budget` tokens each, and about equally full: the longest item first, each into the
    emptiest group (Graham 1969). Their number is a multiple of `ranks` where there are items enough."""
    total = sum(costs[index].tokens for index in order)
    rounds = max(1, -(-total // (budget * ranks)))
    while True:
        count = min(rounds * ranks, len(order))
        groups: list[list[int]] = [[] for _ in range(count)]
        emptiest = [(0, place) for place in range(count)]
        for index in order:
            size, place = emptiest[0]
            groups[place].append(index)
            heapq.heapreplace(emptiest, (size + costs[index].tokens, place))
        if all(size <= budget or len(groups[place]) == 1 for size, place in emptiest):
            return groups
        rounds += max(1, rounds // 50)


def rectangles(order: Sequence[int], costs: Sequence[Cost], budget: int, ranks: int) -> list[list[int]]:
    """Neighbours in length, so that little is padding; rows × width is at most `budget`, a rank's share of the
    items at most one group."""
    most = -(-len(order) // ranks)
    groups: list[list[int]] = []
    for index in order:
        rows = costs[index].rows
        if groups and len(groups[-1]) < most:
            width = costs[groups[-1][0]].tokens
            if (len(groups[-1]) + 1) * rows * width <= budget:
                groups[-1].append(index)
                continue
        groups.append([index])
    return groups
