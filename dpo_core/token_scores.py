"""log π of tokens from logits, with a backward pass that keeps nothing but the logits. Imports torch alone.

`cross_entropy` on bfloat16 logits keeps a float32 copy and its log-softmax, three times as much again, and reads and
writes them all. Here the logits stay as they are; what is float32 lives for a block of rows, or in a fused kernel.

Shapes: N tokens, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

BLOCK_BYTES = {"cpu": 2**22, "cuda": 2**28}
"""Wide copies of one block of rows; a CPU's fit into its cache."""


class Kernels(NamedTuple):
    """How the two passes over the logits run."""

    normalizer: Callable[[Tensor, float | None], Tensor]
    """log Σ exp of every row, its logits capped: [N, V] → [N], float32 or wider."""

    gradient: Callable[[Tensor, Tensor, Tensor, Tensor, float | None], Tensor]
    """From logits, tokens, normalizers, the gradient of every token's log π and the cap to the logits' gradient."""


def token_log_probabilities(
    logits: Tensor, tokens: Tensor, kernels: Kernels | None = None, cap: float | None = None
) -> Tensor:
    """log π(token | everything before it). Differentiable once.

    Args:
        logits: [N, V]; row n predicts `tokens[n]` (the caller has shifted them).
        tokens: [N] int64.
        kernels: block by block where not given.
        cap: bounds the logits softly (`capped`), where the model does so.

    Returns:
        [N] float32, or float64 where the logits are; natural logarithms.
    """
    apply: Callable[..., Tensor] = _TokenLogProbabilities.apply
    return apply(logits, tokens, kernels or BLOCKWISE, cap)


class _TokenLogProbabilities(torch.autograd.Function):
    """∂ log π(t) / ∂ z_v = 1[v = t] − softmax(z)_v; with a cap times its slope, 1 − (z_v / cap)² of the capped z."""

    @staticmethod
    def forward(ctx: Any, logits: Tensor, tokens: Tensor, kernels: Kernels, cap: float | None) -> Tensor:
        normalizer = kernels.normalizer(logits, cap)
        ctx.save_for_backward(logits, tokens, normalizer)
        ctx.kernels, ctx.cap = kernels, cap
        return capped(logits.gather(1, tokens.unsqueeze(1)).squeeze(1), cap) - normalizer

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None, None]:
        return ctx.kernels.gradient(*ctx.saved_tensors, gradient, ctx.cap), None, None, None


def capped(logits: Tensor, cap: float | None) -> Tensor:
    """In float32 or wider: cap · tanh(z / cap) (Gemma 2, arXiv:2408.00118, section 2), or z where there is no cap."""
    wide = logits.to(torch.promote_types(logits.dtype, torch.float32))
    return wide if cap is None else torch.tanh(wide / cap) * cap


def fused_normalizer(logits: Tensor, cap: float | None) -> Tensor:
    """In one pass where it is compiled."""
    return torch.logsumexp(capped(logits, cap), 1)


def fused_gradient(logits: Tensor, tokens: Tensor, normalizer: Tensor, gradient: Tensor, cap: float | None) -> Tensor:
    """In one pass where it is compiled."""
    found = torch.arange(logits.shape[1], device=logits.device) == tokens.unsqueeze(1)
    scores = capped(logits, cap)
    probabilities = torch.exp(scores - normalizer.unsqueeze(1))
    result = (found.to(probabilities.dtype) - probabilities) * gradient.unsqueeze(1)
    return (result if cap is None else result * (1 - (scores / cap).square())).to(logits.dtype)


def blockwise_normalizer(logits: Tensor, cap: float | None) -> Tensor:
    return torch.cat([fused_normalizer(block, cap) for block in torch.split(logits, _rows(logits))])


def blockwise_gradient(
    logits: Tensor, tokens: Tensor, normalizer: Tensor, gradient: Tensor, cap: float | None
) -> Tensor:
    result, rows = torch.empty_like(logits), _rows(logits)
    parts = (torch.split(tensor, rows) for tensor in (result, logits, tokens, normalizer, gradient))
    for target, block, some, normal, weights in zip(*parts, strict=True):
        scores = capped(block, cap)
        scaled = torch.exp(scores - normal.unsqueeze(1)).mul_(-weights.unsqueeze(1))
        scaled.scatter_add_(1, some.unsqueeze(1), weights.unsqueeze(1))
        target.copy_(scaled if cap is None else scaled.mul_(1 - (scores / cap).square()))
    return result


def _rows(logits: Tensor) -> int:
    return max(1, BLOCK_BYTES[logits.device.type] // (4 * logits.shape[1]))


BLOCKWISE = Kernels(blockwise_normalizer, blockwise_gradient)


def compiled_kernels() -> Kernels:
    """For any number of tokens, from the first on: otherwise the second batch would compile them anew."""
    return Kernels(torch.compile(fused_normalizer, dynamic=True), torch.compile(fused_gradient, dynamic=True))
