"""Token items as the tensors of one forward pass, with every token that both answers share computed once.

A pair becomes one block `[P|C|R]`: P is the longest common prefix of its two sequences, C and R are what is
left of chosen and rejected. R attends to P and itself, never to C, and its positions start again behind P.
Blocks follow each other in one row without padding. The last token of a sequence predicts nothing and is
left out, so a pair costs |P| + |C| + |R| − 2 tokens instead of 2|P| + |C| + |R|.

`shared` is that; `separate` packs whole sequences, prompts twice; `padded` is one row a sequence.

Shapes: T tokens of the packed row (padded: R rows of T positions), N predicted tokens, S sequences.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import accumulate
from typing import Any

import torch
from torch import Tensor

from dpo_core.data.prefix import common_prefix
from dpo_core.data.records import Spans, TokenItem, TokenPair
from dpo_core.spec import Way


@dataclass(frozen=True, slots=True)
class Row:
    """One sequence; its first `prompt` tokens, at least one, carry no loss, nor do those of `silent` behind them."""

    tokens: list[int]
    prompt: int
    silent: Spans = ()

    @property
    def response(self) -> int:
        """Number of tokens that carry loss."""
        return len(self.tokens) - self.prompt - sum(end - start for start, end in self.silent)

    def learned(self) -> Tensor:
        """Places of the tokens that carry loss: [response] int64, ascending."""
        starts = [self.prompt, *(end for _, end in self.silent)]
        ends = [*(start for start, _ in self.silent), len(self.tokens)]
        return torch.cat([torch.arange(start, end) for start, end in zip(starts, ends, strict=True)])


def rows_of(item: TokenItem) -> list[Row]:
    """A pair's chosen and rejected row, or an example's only row."""
    if isinstance(item, TokenPair):
        return [
            Row(item.chosen, item.chosen_prompt, item.chosen_silent),
            Row(item.rejected, item.rejected_prompt, item.rejected_silent),
        ]
    return [Row(item.tokens, item.prompt, item.silent)]


@dataclass(frozen=True, slots=True)
class Block:
    """Numbers of input tokens: `trunk` is seen by both branches, no branch sees the other."""

    trunk: int
    first: int
    second: int = 0


class Layout:
    """Who attends to whom in a packed row.

    No dataclass: torch.compile would take the contents of a frozen one for constants, and compile for every row anew.
    """

    def __init__(self, blocks: tuple[Block, ...]) -> None:
        self.blocks = blocks

    @cached_property
    def query_lengths(self) -> list[int]:
        """Runs of queries: per block the trunk with its first branch, then the second branch if there is one."""
        return [length for block in self.blocks for length in (block.trunk + block.first, block.second) if length]

    @cached_property
    def key_lengths(self) -> list[int]:
        """The keys that each run of queries sees, causally from the end: its own, behind the trunk's."""
        lengths = []
        for block in self.blocks:
            runs = (block.trunk + block.first, block.trunk + block.second if block.second else 0)
            lengths += [length for length in runs if length]
        return lengths

    @cached_property
    def key_index(self) -> Tensor:
        """Where the keys of all runs stand in the row, trunks of second branches again: [sum(key_lengths)]."""
        parts, start = [], 0
        for block in self.blocks:
            second = start + block.trunk + block.first
            parts.append(torch.arange(start, second))
            if block.second:
                parts += [torch.arange(start, start + block.trunk), torch.arange(second, second + block.second)]
            start = second + block.second
        return torch.cat(parts)

    def runs(self, device: torch.device) -> tuple[Tensor, Tensor, Tensor]:
        """On `device`, once for all layers: where query runs and key runs begin, [runs + 1] int32, and `key_index`."""
        if device not in self._runs:
            found = offsets(self.query_lengths), offsets(self.key_lengths), self.key_index
            self._runs[device] = sent(found[0], device), sent(found[1], device), sent(found[2], device)
        return self._runs[device]

    @cached_property
    def _runs(self) -> dict[torch.device, tuple[Tensor, Tensor, Tensor]]:
        return {}


@dataclass(frozen=True, slots=True)
class Batch:
    """The tensors of one forward pass."""

    tokens: Tensor
    """[1, T] int64; padded: [R, T], 0 on the right, where no token that counts looks."""

    positions: Tensor
    """As `tokens`: each token's place in its own sequence."""

    layout: Layout | None
    """None where every row is one sequence, which the model's own causal attention reads."""

    predictors: Tensor
    """[N] int64: where in `tokens`, flattened, the hidden state that predicts each target stands."""

    targets: Tensor
    """[N] int64: the predicted tokens; one that both answers share is here once."""

    entries: Tensor
    """[M] int64: which of the N belong to each sequence, sequence after sequence."""

    lengths: Tensor
    """[S] int64: how many of `entries` each sequence has."""

    def sums(self, values: Tensor) -> Tensor:
        """Adds up values of predicted tokens [N] by sequence: [S] float64 (float32 would miss ln 2 by 4e-6)."""
        return torch.segment_reduce(values.double()[self.entries], "sum", lengths=self.lengths, unsafe=True)

    def to(self, device: torch.device) -> Batch:
        moved: dict[str, Any] = {name: sent(getattr(self, name), device) for name in TENSORS}
        if self.layout is not None and device.type == "cuda":
            self.layout.runs(device)  # now, not in the first layer, which torch.compile may look into
        return replace(self, **moved)


TENSORS = ("tokens", "positions", "predictors", "targets", "entries", "lengths")


def input_tokens(item: TokenItem, way: Way) -> int:
    """Tokens that the model reads for this item; padded: of its longest row."""
    rows = rows_of(item)
    lengths = [len(row.tokens) - 1 for row in rows]
    if way == "padded":
        return max(lengths)
    if way == "shared" and len(rows) == 2:
        trunk = common_prefix(rows[0].tokens, rows[1].tokens)
        return trunk + sum(max(length - trunk, 0) for length in lengths)
    return sum(lengths)


def response_tokens(item: TokenItem) -> int:
    """Tokens that carry loss, both answers together; what they share counts twice."""
    return sum(row.response for row in rows_of(item))


class _Builder:
    """Collects blocks one after the other."""

    def __init__(self) -> None:
        self.tokens: list[int] = []
        self.positions: list[Tensor] = []
        self.blocks: list[Block] = []
        self.predictors: list[Tensor] = []
        self.targets: list[Tensor] = []
        self.predicted = 0
        self.entries: list[Tensor] = []
        self.lengths: list[int] = []

    def add(self, trunk: list[int], branches: list[list[int]]) -> None:
        """Input tokens of a block."""
        self.tokens += trunk
        self.positions.append(torch.arange(len(trunk)))
        for branch in branches:
            self.tokens += branch
            self.positions.append(torch.arange(len(trunk), len(trunk) + len(branch)))
        self.blocks.append(Block(len(trunk), *map(len, branches)))

    def predict(self, tokens: Tensor, predictors: Tensor) -> Tensor:
        """`tokens` are predicted at `predictors`, both [n]; returns their places among the N."""
        start = self.predicted
        self.predicted += len(tokens)
        self.targets.append(tokens)
        self.predictors.append(predictors)
        return torch.arange(start, self.predicted)

    def sequence(self, parts: list[Tensor]) -> None:
        """The next sequence's predicted tokens."""
        self.entries += parts
        self.lengths.append(sum(map(len, parts)))

    def single(self, row: Row) -> None:
        start, learned = len(self.tokens), row.learned()
        self.add(row.tokens[:-1], [[]])
        self.sequence([self.predict(torch.tensor(row.tokens)[learned], start + learned - 1)])

    def pair(self, chosen: Row, rejected: Row) -> None:
        start, trunk = len(self.tokens), common_prefix(chosen.tokens, rejected.tokens)
        branches = [row.tokens[trunk:-1] for row in (chosen, rejected)]
        self.add(chosen.tokens[:trunk], branches)
        learned = [row.learned() for row in (chosen, rejected)]
        inside = [places[places < trunk] for places in learned]
        either = torch.zeros(trunk, dtype=torch.bool)
        either[torch.cat(inside)] = True  # what one answer learns in the trunk, the other may not
        common = either.nonzero().flatten()
        shared = self.predict(torch.tensor(chosen.tokens)[common], start + common - 1)
        behind = start + trunk
        for row, places, within, branch in zip((chosen, rejected), learned, inside, branches, strict=True):
            own = places[len(within) :]
            # The trunk's last token predicts the first of both branches, whatever stands between it and them.
            predictors = torch.where(own == trunk, start + trunk - 1, behind + own - 1 - trunk)
            known = shared[torch.searchsorted(common, within)]
            self.sequence([known, self.predict(torch.tensor(row.tokens)[own], predictors)])
            behind += len(branch)

    def build(self) -> Batch:
        return Batch(
            tokens=torch.tensor([self.tokens]),
            positions=torch.cat(self.positions).unsqueeze(0),
            layout=Layout(tuple(self.blocks)),
            predictors=torch.cat(self.predictors),
            targets=torch.cat(self.targets),
            entries=torch.cat(self.entries),
            lengths=torch.tensor(self.lengths),
        )


def pack(items: Sequence[TokenItem], *, share: bool) -> Batch:
    """One row; sequences in the order of the items, of a pair first chosen, then rejected."""
    builder = _Builder()
    for item in items:
        rows = rows_of(item)
        if share and len(rows) == 2:
            builder.pair(*rows)
        else:
            for row in rows:
                builder.single(row)
    return builder.build()


def pad(items: Sequence[TokenItem]) -> Batch:
    """One row a sequence, padded on the right; there no token that counts ever looks."""
    rows = [row for item in items for row in rows_of(item)]
    width = max(len(row.tokens) for row in rows) - 1
    tokens = torch.zeros(len(rows), width, dtype=torch.int64)
    predictors, targets, lengths = [], [], [row.response for row in rows]
    for place, row in enumerate(rows):
        sequence, learned = torch.tensor(row.tokens), row.learned()
        tokens[place, : len(sequence) - 1] = sequence[:-1]
        predictors.append(learned - 1 + place * width)
        targets.append(sequence[learned])
    return Batch(
        tokens=tokens,
        positions=torch.arange(width).expand(len(rows), -1),
        layout=None,
        predictors=torch.cat(predictors),
        targets=torch.cat(targets),
        entries=torch.arange(sum(lengths)),
        lengths=torch.tensor(lengths),
    )


def arrange(items: Sequence[TokenItem], way: Way) -> Batch:
    return pad(items) if way == "padded" else pack(items, share=way == "shared")


def sent(tensor: Tensor, device: torch.device) -> Tensor:
    """On `device`; from pinned memory, as any other copy to a GPU waits until all that is queued there is done."""
    if device.type != "cuda" or tensor.is_cuda:
        return tensor.to(device)
    return tensor.contiguous().pin_memory().to(device, non_blocking=True)


def offsets(lengths: Sequence[int]) -> Tensor:
    """[len + 1] int32: where each run begins, and the end, as variable-length kernels want it."""
    return torch.tensor([0, *accumulate(lengths)], dtype=torch.int32)
