"""What a step minimises: preference pairs (DPO) or supervised examples, behind one small interface.

Shapes: N items of a split, B items of a micro-batch.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Protocol

import torch
from torch import Tensor

from dpo_core.batches import Row, deal, pad, rows_of
from dpo_core.engine import World
from dpo_core.losses import sequence_log_probabilities, sigmoid_loss, supervised_loss
from dpo_core.metrics import preference_means, preference_sums, supervised_means, supervised_sums
from dpo_core.records import TokenItem

LogitsOf = Callable[[Tensor, int], Tensor]
"""(tokens [R, T], first) → logits [R, T-first, V] that predict `tokens[:, first:]`; Engine.logits is one."""


class Objective(Protocol):
    """One split of the data and its loss."""

    def lengths(self, indices: Sequence[int]) -> list[int]:
        """Tokens of the longest row of each item."""

    def tokens(self, indices: Sequence[int]) -> int:
        """Tokens of all rows of these items, prompts included, padding not."""

    def divisor(self, indices: Sequence[int]) -> float:
        """What the summed loss of a global batch is divided by."""

    def micro_batch(self, logits_of: LogitsOf, indices: Sequence[int], fillers: int) -> tuple[Tensor, Tensor]:
        """The summed loss (with its graph) and the sums of the metrics; the last `fillers` items don't count."""

    def means(self, sums: list[float]) -> dict[str, float]:
        """Metrics from sums over a whole batch or split."""

    def evaluate(self, logits_of: LogitsOf, micro_batch_size: int, world: World) -> dict[str, float]:
        """Metrics of the whole split, the same on every rank. All ranks call it."""


class Split:
    """Items of one split, as rows."""

    def __init__(self, items: Sequence[TokenItem], device: torch.device) -> None:
        self.device = device
        self.rows = [rows_of(item) for item in items]

    def lengths(self, indices: Sequence[int]) -> list[int]:
        return [max(len(row.tokens) for row in self.rows[index]) for index in indices]

    def tokens(self, indices: Sequence[int]) -> int:
        return sum(len(row.tokens) for index in indices for row in self.rows[index])

    def column(self, indices: Sequence[int], place: int) -> list[Row]:
        return [self.rows[index][place] for index in indices]

    def responses(self, indices: Sequence[int], place: int) -> Tensor:
        """Response tokens of each item's row at `place`: [B] float64."""
        counts = [row.response for row in self.column(indices, place)]
        return torch.tensor(counts, dtype=torch.float64, device=self.device)


class Preference(Split):
    """The DPO loss against frozen reference log-probabilities."""

    def __init__(
        self,
        items: Sequence[TokenItem],
        reference: Tensor,
        device: torch.device,
        *,
        beta: float,
        label_smoothing: float,
    ) -> None:
        """`reference`: [2, N] float64; row 0 chosen, row 1 rejected."""
        super().__init__(items, device)
        self.reference = reference.to(device)
        self.beta = beta
        self.label_smoothing = label_smoothing

    def divisor(self, indices: Sequence[int]) -> float:
        return len(indices)

    def micro_batch(self, logits_of: LogitsOf, indices: Sequence[int], fillers: int) -> tuple[Tensor, Tensor]:
        padded = pad([*self.column(indices, 0), *self.column(indices, 1)], self.device)
        first = padded.first
        logits = logits_of(padded.tokens, first)
        both = sequence_log_probabilities(logits, padded.tokens[:, first:], padded.mask[:, first:])
        counted = len(indices) - fillers
        policy = both.view(2, -1)[:, :counted]
        losses, sums = self.losses(policy, indices[:counted])
        return losses.sum(), sums

    def losses(self, policy: Tensor, indices: Sequence[int]) -> tuple[Tensor, Tensor]:
        """Losses [B] and metric sums from the policy's log-probabilities [2, B]."""
        reference = self.reference[:, list(indices)]
        losses = sigmoid_loss(
            policy[0], policy[1], reference[0], reference[1], beta=self.beta, label_smoothing=self.label_smoothing
        )
        tokens = torch.stack([self.responses(indices, 0), self.responses(indices, 1)])
        return losses, preference_sums(losses.detach(), policy.detach(), reference, tokens, self.beta)

    def means(self, sums: list[float]) -> dict[str, float]:
        return preference_means(sums)

    def evaluate(self, logits_of: LogitsOf, micro_batch_size: int, world: World) -> dict[str, float]:
        indices = range(len(self.rows))
        rows = [*self.column(indices, 0), *self.column(indices, 1)]
        policy = score(logits_of, rows, 2 * micro_batch_size, world)[0].view(2, -1).to(self.device)
        return self.means(self.losses(policy, indices)[1].tolist())


class Supervised(Split):
    """Cross-entropy of the completion, averaged over completion tokens."""

    def divisor(self, indices: Sequence[int]) -> float:
        return float(self.responses(indices, 0).sum())

    def micro_batch(self, logits_of: LogitsOf, indices: Sequence[int], fillers: int) -> tuple[Tensor, Tensor]:
        padded = pad(self.column(indices, 0), self.device)
        summed, correct = measure(logits_of, padded.tokens, padded.mask, padded.first)
        counted = len(indices) - fillers
        tokens = self.responses(indices[:counted], 0)
        sums = supervised_sums(summed[:counted].detach(), correct[:counted], tokens)
        return supervised_loss(summed[:counted]).sum(), sums

    def means(self, sums: list[float]) -> dict[str, float]:
        return supervised_means(sums)

    def evaluate(self, logits_of: LogitsOf, micro_batch_size: int, world: World) -> dict[str, float]:
        indices = range(len(self.rows))
        summed, correct = score(logits_of, self.column(indices, 0), micro_batch_size, world)
        return self.means(supervised_sums(summed, correct, self.responses(indices, 0).cpu()).tolist())


def measure(logits_of: LogitsOf, tokens: Tensor, mask: Tensor, first: int) -> tuple[Tensor, Tensor]:
    """log π(y|x) and the number of response tokens that the model ranks first, both [R] float64."""
    logits = logits_of(tokens, first)
    targets, counted = tokens[:, first:], mask[:, first:]
    correct = ((logits.detach().argmax(-1) == targets) & counted).sum(-1).double()
    return sequence_log_probabilities(logits, targets, counted), correct


def score(
    logits_of: LogitsOf,
    rows: Sequence[Row],
    micro_batch_size: int,
    world: World,
    measured: Callable[[float], None] = lambda _: None,
) -> Tensor:
    """`measure` for many rows [S], shared by all ranks: [2, S] float64 on the CPU, the same on every rank.

    Every rank runs the same number of forward passes, which ZeRO-3 needs. `measured` is told the share that
    is done, after each.
    """
    scores = torch.zeros(2, len(rows), dtype=torch.float64, device=world.device)
    shares = deal([len(row.tokens) for row in rows], micro_batch_size, world.size, world.rank)
    with torch.no_grad():
        for place, share in enumerate(shares, start=1):
            padded = pad([rows[index] for index in share.indices], world.device)
            values = torch.stack(measure(logits_of, padded.tokens, padded.mask, padded.first))
            counted = len(share.indices) - share.fillers
            scores[:, share.indices[:counted]] = values[:, :counted]
            measured(place / len(shares))
    return world.sum(scores)
