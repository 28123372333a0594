"""What a step minimises: preference pairs (DPO) or supervised examples, behind one small interface.

Shapes: N predicted tokens of a forward pass, B items, S sequences.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Protocol

import torch
from torch import Tensor

from dpo_core.batches import Cost, Share, deal
from dpo_core.data.records import TokenItem
from dpo_core.engine import World
from dpo_core.flops import Work
from dpo_core.losses import supervised_loss
from dpo_core.metrics import (
    SUPERVISED_VALUES,
    preference_intervals,
    preference_means,
    preference_values,
    supervised_intervals,
    supervised_means,
    supervised_values,
)
from dpo_core.packing import Batch, arrange, response_tokens, rows_of, sent
from dpo_core.preference_loss import PreferenceLoss
from dpo_core.spec import Way


class Score(Protocol):
    """Log-probabilities [N] of a batch's targets, and which of them rank first: Engine.score is one."""

    def __call__(self, batch: Batch, chunks: int = 1, ranks_first: bool = False) -> tuple[Tensor, Tensor | None]: ...


@dataclass(frozen=True, slots=True)
class Packer:
    """How items become forward passes."""

    way: Way
    budget: int
    """Input tokens of one forward pass."""

    chunk: int
    """Predicted tokens for which the head runs at once."""

    device: torch.device

    def batch(self, items: Sequence[TokenItem]) -> Batch:
        """One forward pass, on the device."""
        return arrange(items, self.way).to(self.device)

    def deal(self, items: Sequence[TokenItem], world: World) -> list[Share]:
        """This rank's micro-batches."""
        costs = [Cost.of(item, self.way) for item in items]
        return deal(costs, self.way, self.budget, self.chunk, world.size)[world.rank]

    def measure(self, score: Score, items: Sequence[TokenItem], chunks: int = 1) -> Tensor:
        """log π(y|x) of every sequence of one forward pass, with its graph: [S] float64, in the order of `rows_of`."""
        batch = self.batch(items)
        return batch.sums(score(batch, chunks)[0])


@dataclass(frozen=True, slots=True)
class MicroBatch:
    """A forward pass with all that its loss needs, on the device."""

    share: Share
    batch: Batch
    responses: Tensor
    """[rows of an item, B] float64: response tokens."""

    reference: Tensor | None = None
    """[2, B] float64: the reference's log-probabilities of preference pairs."""


class Objective(Protocol):
    """One split of the data and its loss."""

    def shares(self, indices: Sequence[int], world: World) -> list[Share]:
        """This rank's micro-batches of a global batch; indices are the split's."""

    def divisor(self, indices: Sequence[int]) -> float:
        """What the summed loss of a global batch is divided by."""

    def micro_batch(self, share: Share) -> MicroBatch:
        """Makes a micro-batch ready to run."""

    def loss_of(self, score: Score, micro_batch: MicroBatch) -> tuple[Tensor, Tensor]:
        """The summed loss (with its graph) and the sums of the metrics, both zero where the share doesn't count."""

    def means(self, sums: list[float]) -> dict[str, float]:
        """Metrics from sums over a whole batch or split."""

    def evaluate(self, score: Score, world: World) -> dict[str, float]:
        """Metrics of the whole split, the same on every rank; rank 0 has 95 % intervals besides. All ranks call it."""

    def not_finite(self, indices: Sequence[int], score: Score, world: World) -> list[int]:
        """Those of these items whose own log-probabilities are not finite. All ranks call it."""

    def tokens(self, indices: Sequence[int]) -> int:
        """Tokens of all rows of these items, prompts included, padding not."""

    def unique_tokens(self, indices: Sequence[int]) -> int:
        """Tokens that these items need the model to read at least: prompts once, last tokens not."""

    def operations(self, indices: Sequence[int], work: Work) -> int:
        """The fewest floating-point operations of a step on these items."""


class Split:
    """Items of one split."""

    def __init__(self, items: Sequence[TokenItem], packer: Packer) -> None:
        self.items = items
        self.packer = packer
        self.device = packer.device

    def shares(self, indices: Sequence[int], world: World) -> list[Share]:
        shares = self.packer.deal([self.items[index] for index in indices], world)
        return [Share([indices[place] for place in share.indices], share.counts, share.chunks) for share in shares]

    def micro_batch(self, share: Share) -> MicroBatch:
        batch = self.packer.batch([self.items[index] for index in share.indices])
        return MicroBatch(share, batch, self.responses(share.indices))

    def tokens(self, indices: Sequence[int]) -> int:
        return sum(len(tokens) for index in indices for tokens in self.items[index].sequences)

    def unique_tokens(self, indices: Sequence[int]) -> int:
        return sum(Cost.of(self.items[index], "shared").tokens for index in indices)

    def not_finite(self, indices: Sequence[int], score: Score, world: World) -> list[int]:
        """One item a forward pass: attention that masks by adding lets a NaN through to its neighbours."""
        alone = replace(self.packer, budget=1)
        items = [self.items[index] for index in indices]
        found = torch.zeros(len(items), device=self.device)
        with torch.no_grad():
            for share in alone.deal(items, world):
                sums = alone.measure(score, [items[place] for place in share.indices], share.chunks)
                if share.counts:
                    found[share.indices] = float(not bool(sums.isfinite().all()))
        return [index for index, bad in zip(indices, world.sum(found).tolist(), strict=True) if bad]

    def operations(self, indices: Sequence[int], work: Work) -> int:
        return work.operations(self.items[index] for index in indices)

    def responses(self, indices: Sequence[int]) -> Tensor:
        """Response tokens of each row: [rows of an item, B] float64."""
        counts = [[row.response for row in rows_of(self.items[index])] for index in indices]
        return sent(torch.tensor(counts, dtype=torch.float64), self.device).T


class Preference(Split):
    """A preference loss against frozen reference log-probabilities."""

    def __init__(self, items: Sequence[TokenItem], reference: Tensor, packer: Packer, loss: PreferenceLoss) -> None:
        """`reference`: [2, N] float64; row 0 chosen, row 1 rejected."""
        super().__init__(items, packer)
        self.reference = reference.to(packer.device)
        self.loss = loss

    def divisor(self, indices: Sequence[int]) -> float:
        return len(indices)

    def loss_of(self, score: Score, micro_batch: MicroBatch) -> tuple[Tensor, Tensor]:
        share, batch = micro_batch.share, micro_batch.batch
        policy = batch.sums(score(batch, share.chunks)[0]).view(-1, 2).T
        assert micro_batch.reference is not None  # noqa: S101 (preference pairs have one)
        losses, values = self.losses(policy, micro_batch.reference, micro_batch.responses)
        return losses.sum() * share.counts, values.sum(1) * share.counts

    def micro_batch(self, share: Share) -> MicroBatch:
        return replace(super().micro_batch(share), reference=self.reference_of(share.indices))

    def reference_of(self, indices: Sequence[int]) -> Tensor:
        return self.reference[:, sent(torch.tensor(indices, dtype=torch.int64), self.device)]

    def known(self, indices: Sequence[int]) -> tuple[Tensor, Tensor]:
        """The pairs' reference log-probabilities and numbers of response tokens, both [2, B]."""
        return self.reference_of(indices), self.responses(indices)

    def losses(self, policy: Tensor, reference: Tensor, tokens: Tensor) -> tuple[Tensor, Tensor]:
        """Losses [B] and metric values [18, B] from the policy's log-probabilities [2, B] and what is `known`."""
        losses = self.loss(policy, reference, tokens)
        return losses, preference_values(losses.detach(), policy.detach(), reference, tokens, self.loss.beta)

    def loss_at_reference(self, indices: Sequence[int]) -> float:
        """The mean loss of a policy that equals the reference."""
        reference, tokens = self.known(indices)
        return self.losses(reference, reference, tokens)[0].mean().item()

    def means(self, sums: list[float]) -> dict[str, float]:
        return preference_means(sums)

    def evaluate(self, score: Score, world: World) -> dict[str, float]:
        policy = log_probabilities(score, self.items, self.packer, world).to(self.device)
        values = self.losses(policy, *self.known(range(len(self.items))))[1]
        return self.means(values.sum(1).tolist()) | (preference_intervals(values) if world.rank == 0 else {})


class Supervised(Split):
    """Cross-entropy of the completion, averaged over completion tokens."""

    def divisor(self, indices: Sequence[int]) -> float:
        return float(sum(response_tokens(self.items[index]) for index in indices))

    def loss_of(self, score: Score, micro_batch: MicroBatch) -> tuple[Tensor, Tensor]:
        loss, values = self.measure(score, micro_batch)
        return loss * micro_batch.share.counts, values.sum(1) * micro_batch.share.counts

    def measure(self, score: Score, micro_batch: MicroBatch) -> tuple[Tensor, Tensor]:
        """The summed loss (with its graph) and the metric values [4, B] of one forward pass."""
        batch = micro_batch.batch
        values, first = score(batch, micro_batch.share.chunks, ranks_first=True)
        assert first is not None  # noqa: S101 (it was asked for)
        policy, correct = batch.sums(values), batch.sums(first)
        known = supervised_values(policy.detach(), correct, micro_batch.responses[0])
        return supervised_loss(policy).sum(), known

    def means(self, sums: list[float]) -> dict[str, float]:
        return supervised_means(sums)

    def evaluate(self, score: Score, world: World) -> dict[str, float]:
        shape = len(SUPERVISED_VALUES), len(self.items)
        values = torch.zeros(shape, dtype=torch.float64, device=self.device)
        with torch.no_grad():
            for share in self.shares(range(len(self.items)), world):
                measured = self.measure(score, self.micro_batch(share))[1]
                if share.counts:
                    values[:, share.indices] = measured
        values = world.sum(values)
        return self.means(values.sum(1).tolist()) | (supervised_intervals(values) if world.rank == 0 else {})


def log_probabilities(
    score: Score,
    items: Sequence[TokenItem],
    packer: Packer,
    world: World,
) -> Tensor:
    """log π(y|x) of all pairs [2, N] float64 on the CPU, row 0 chosen, row 1 rejected; the same on every rank.

    All ranks call it and share the work.
    """
    values = torch.zeros(2, len(items), dtype=torch.float64, device=world.device)
    shares = packer.deal(items, world)
    with torch.no_grad():
        for share in shares:
            policy = packer.measure(score, [items[index] for index in share.indices], share.chunks)
            if share.counts:
                values[:, share.indices] = policy.view(-1, 2).T
    return world.sum(values)
