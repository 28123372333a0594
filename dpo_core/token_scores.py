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

    normalizer: Callable[[Tensor], Tensor]
    """log Σ exp of every row: [N, V] → [N], float32 or wider."""

    gradient: Callable[[Tensor, Tensor, Tensor, Tensor], Tensor]
    """From logits, tokens, normalizers and the gradient of every token's log π to the gradient of the logits."""


def token_log_probabilities(logits: Tensor, tokens: Tensor, kernels: Kernels | None = None) -> Tensor:
    """log π(token | everything before it). Differentiable once.

    Args:
        logits: [N, V]; row n predicts `tokens[n]` (the caller has shifted them).
        tokens: [N] int64.
        kernels: block by block where not given.

    Returns:
        [N] float32, or float64 where the logits are; natural logarithms.
    """
    apply: Callable[..., Tensor] = _TokenLogProbabilities.apply
    return apply(logits, tokens, kernels or BLOCKWISE)


class _TokenLogProbabilities(torch.autograd.Function):
    """∂ log π(t) / ∂ z_v = 1[v = t] − softmax(z)_v."""

    @staticmethod
    def forward(ctx: Any, logits: Tensor, tokens: Tensor, kernels: Kernels) -> Tensor:
        normalizer = kernels.normalizer(logits)
        ctx.save_for_backward(logits, tokens, normalizer)
        ctx.kernels = kernels
        return logits.gather(1, tokens.unsqueeze(1)).squeeze(1).to(normalizer.dtype) - normalizer

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None]:
        return ctx.kernels.gradient(*ctx.saved_tensors, gradient), None, None


def wide(logits: Tensor) -> Tensor:
    return logits.to(torch.promote_types(logits.dtype, torch.float32))


def fused_normalizer(logits: Tensor) -> Tensor:
    """In one pass where it is compiled."""
    return torch.logsumexp(wide(logits), 1)


def fused_gradient(logits: Tensor, tokens: Tensor, normalizer: Tensor, gradient: Tensor) -> Tensor:
    """In one pass where it is compiled."""
    found = torch.arange(logits.shape[1], device=logits.device) == tokens.unsqueeze(1)
    probabilities = torch.exp(wide(logits) - normalizer.unsqueeze(1))
    return ((found.to(probabilities.dtype) - probabilities) * gradient.unsqueeze(1)).to(logits.dtype)


def blockwise_normalizer(logits: Tensor) -> Tensor:
    return torch.cat([fused_normalizer(block) for block in torch.split(logits, _rows(logits))])


def blockwise_gradient(logits: Tensor, tokens: Tensor, normalizer: Tensor, gradient: Tensor) -> Tensor:
    result, rows = torch.empty_like(logits), _rows(logits)
    parts = (torch.split(tensor, rows) for tensor in (result, logits, tokens, normalizer, gradient))
    for target, block, some, normal, weights in zip(*parts, strict=True):
        scaled = torch.exp(wide(block) - normal.unsqueeze(1)).mul_(-weights.unsqueeze(1))
        target.copy_(scaled.scatter_add_(1, some.unsqueeze(1), weights.unsqueeze(1)))
    return result


def _rows(logits: Tensor) -> int:
    return max(1, BLOCK_BYTES[logits.device.type] // (4 * logits.shape[1]))


BLOCKWISE = Kernels(blockwise_normalizer, blockwise_gradient)


def compiled_kernels() -> Kernels:
    """For any number of tokens, from the first on: otherwise the second batch would compile them anew."""
    return Kernels(torch.compile(fused_normalizer, dynamic=True), torch.compile(fused_gradient, dynamic=True))
