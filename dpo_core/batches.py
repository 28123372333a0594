"""Which items a step trains on, how ranks and micro-batches share them, and the padded tensors.

Shapes: R rows (sequences) of a micro-batch, T positions of its longest row.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from dpo_core.records import TokenItem, TokenPair


@dataclass(frozen=True, slots=True)
class Row:
    """One sequence; its first `prompt` tokens, at least one, carry no loss."""

    tokens: list[int]
    prompt: int

    @property
    def response(self) -> int:
        """Number of tokens that carry loss."""
        return len(self.tokens) - self.prompt


def rows_of(item: TokenItem) -> list[Row]:
    """A pair's chosen and rejected row, or an example's only row."""
    if isinstance(item, TokenPair):
        return [Row(item.chosen, item.chosen_prompt), Row(item.rejected, item.rejected_prompt)]
    return [Row(item.tokens, item.prompt)]


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
class Share:
    """One micro-batch of one rank: positions in the list that was dealt; the last `fillers` count for nothing."""

    indices: list[int]
    fillers: int


def deal(lengths: Sequence[int], micro_batch_size: int, ranks: int, rank: int) -> list[Share]:
    """Deals items to ranks and micro-batches; returns this rank's.

    Every rank gets the same number of micro-batches, at least one, of the same number of items: ZeRO 2
    and 3 hang otherwise. Items are sorted by length first, so that little of a micro-batch is padding.
    What is missing at the end is filled with the shortest item, at zero weight. The micro-batches go to the
    ranks to and fro, so that none of them always gets the longer ones.
    """
    order = sorted(range(len(lengths)), key=lambda index: lengths[index], reverse=True)
    # Smaller than asked where a micro-batch would not be full on every rank.
    size = min(micro_batch_size, -(-len(order) // ranks))
    chunks = [order[start : start + size] for start in range(0, len(order), size)]
    shares = [Share(chunk + [order[-1]] * (size - len(chunk)), size - len(chunk)) for chunk in chunks]
    while len(shares) % ranks:
        shares.append(Share([order[-1]] * size, size))
    rounds = [shares[start : start + ranks] for start in range(0, len(shares), ranks)]
    return [dealt[rank] if place % 2 == 0 else dealt[-1 - rank] for place, dealt in enumerate(rounds)]


@dataclass(frozen=True, slots=True)
class Padded:
    """Rows padded on the right.

    There is no attention mask: in a causal model no token attends to what stands behind it, so padding
    on the right changes nothing that is read, and attention keeps its fast unmasked path.
    """

    tokens: Tensor
    """[R, T] int64; 0 where padded, which is never read."""

    mask: Tensor
    """[R, T] bool; true on response tokens."""

    first: int
    """No row has a response token before this position; at least 1."""


def pad(rows: Sequence[Row], device: torch.device) -> Padded:
    longest = max(len(row.tokens) for row in rows)
    tokens = torch.zeros(len(rows), longest, dtype=torch.int64)
    mask = torch.zeros(len(rows), longest, dtype=torch.bool)
    for index, row in enumerate(rows):
        tokens[index, : len(row.tokens)] = torch.tensor(row.tokens, dtype=torch.int64)
        mask[index, row.prompt : len(row.tokens)] = True
    return Padded(tokens.to(device), mask.to(device), min(row.prompt for row in rows))
