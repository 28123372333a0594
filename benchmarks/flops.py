"""Floating-point operations of one forward and backward pass, counted from the model's shape and the pairs' lengths.

Linear layers cost 2 operations per weight and token, attention 4 per score (2 for q·k, 2 for p·v) and channel, the
head 2 per weight and predicted token; the backward pass costs twice the forward pass (Kaplan et al. 2020,
arXiv:2001.08361, section 2.1). The last token of a sequence predicts nothing and is not read. Norms, activations and
the optimizer are left out.
"""

from __future__ import annotations

from collections.abc import Iterable

from benchmarks.lengths import PairLengths
from benchmarks.shape import Shape


def shared(shape: Shape, pairs: Iterable[PairLengths], *, lora: bool = False) -> int:
    """Every prompt once: rows `[P|C|R]` in which both answers attend to the prompt and to themselves.

    `lora`: the weights need no gradient of their own, so the backward pass of their layers costs as much as the forward
    pass; the adapter's own operations are left out. This is the minimum that utilisation is counted by.
    """
    total = 0
    for pair in pairs:
        branches = pair.chosen - 1, pair.rejected - 1
        scores = triangle(pair.prompt) + sum(branch * pair.prompt + triangle(branch) for branch in branches)
        total += _operations(shape, pair.prompt + sum(branches), scores, pair.chosen + pair.rejected, lora=lora)
    return total


def separate(shape: Shape, pairs: Iterable[PairLengths]) -> int:
    """Every prompt twice: two sequences a pair, each with its own copy, without padding."""
    total = 0
    for pair in pairs:
        for answer in (pair.chosen, pair.rejected):
            length = pair.prompt + answer - 1
            total += _operations(shape, length, triangle(length), answer)
    return total


def triangle(length: int) -> int:
    """Scores of causal attention over `length` tokens."""
    return length * (length + 1) // 2


def _operations(shape: Shape, tokens: int, scores: int, responses: int, *, lora: bool = False) -> int:
    linear = 2 * shape.backbone_weights * tokens
    attention = 4 * shape.layers * shape.hidden * scores
    head = 2 * shape.hidden * shape.vocabulary * responses
    return (2 if lora else 3) * (linear + head) + 3 * attention
