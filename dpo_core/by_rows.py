"""Norms and gated products on a CPU: computed in pieces that its cache holds, and computed again instead of kept.

What a feed-forward part down(act(gate(x)) · up(x)) keeps for its backward pass falls from four intermediate tensors to
three, what a norm keeps from three to two. Every number stays the same: only rows are taken apart, and no row looks at
another one.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor, nn

PIECE_BYTES = 2**19
"""Of each tensor in a piece: a few of them fit into the second-level caches of two cores."""
NORMS = ("RMSNorm", "LayerNorm")
"""How classes of norms over the last dimension are called."""


class ByRows(torch.autograd.Function):
    """`function` of tensors [..., D] that all have one shape, row by row; of them alone something is kept."""

    @staticmethod
    def forward(ctx: Any, function: Callable[..., Tensor], weights: int, *tensors: Tensor) -> Tensor:
        """The last `weights` of `tensors` are parameters that `function` finds by itself."""
        ctx.function, ctx.weights = function, tensors[len(tensors) - weights :]
        inputs = tensors[: len(tensors) - weights]
        ctx.save_for_backward(*inputs)
        output = torch.empty_like(inputs[0], memory_format=torch.contiguous_format)
        for pieces in taken_apart(*inputs, output):
            pieces[-1].copy_(function(*pieces[:-1]))
        return output

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        inputs, weights = ctx.saved_tensors, ctx.weights
        learned = [weight for weight in weights if weight.requires_grad]
        ours = [torch.empty_like(tensor, memory_format=torch.contiguous_format) for tensor in inputs]
        sums: list[Tensor | None] = [None for _ in learned]
        for pieces in taken_apart(*inputs, gradients[0], *ours):
            given = [piece.detach().requires_grad_() for piece in pieces[: len(inputs)]]
            with torch.enable_grad():
                output = ctx.function(*given)
            found = torch.autograd.grad(output, (*given, *learned), pieces[len(inputs)])
            for piece, gradient in zip(pieces[len(inputs) + 1 :], found, strict=False):
                piece.copy_(gradient)
            parts = found[len(inputs) :]
            sums = [part if total is None else total.add_(part) for total, part in zip(sums, parts, strict=True)]
        of_learned = iter(sums)
        return None, None, *ours, *(next(of_learned) if weight.requires_grad else None for weight in weights)


def taken_apart(*tensors: Tensor) -> Iterator[list[Tensor]]:
    """Tensors [..., D] of one shape as pieces [rows, D] of about PIECE_BYTES each."""
    flat = [tensor.reshape(-1, tensor.shape[-1]) for tensor in tensors]
    rows = max(1, PIECE_BYTES // (flat[0].shape[1] * flat[0].element_size()))
    yield from ([tensor[start : start + rows] for tensor in flat] for start in range(0, len(flat[0]), rows))


def take_apart(model: nn.Module) -> bool:
    """Changes how `model` computes the parts that are known here; whether there are any. `restore` undoes it."""
    known = False
    for module in model.modules():
        if is_norm(module):
            module.forward, known = norm_forward(module), True
        elif is_gated(module):
            module.forward, known = gated_forward(module), True
    return known


def restore(model: nn.Module) -> None:
    for module in model.modules():
        if is_norm(module) or is_gated(module):
            vars(module).pop("forward", None)


def is_norm(module: nn.Module) -> bool:
    """ZeRO-3 holds a norm's weight only while the module itself runs, not while its results are computed again."""
    weights = list(module.parameters())
    sharded = any(hasattr(weight, "ds_id") for weight in weights)
    named = type(module).__name__.endswith(NORMS)
    return named and not sharded and not list(module.children()) and all(weight.dim() == 1 for weight in weights)


def is_gated(module: nn.Module) -> bool:
    """Has the parts of down(act(gate(x)) · up(x)), under transformers' usual names, and no others."""
    children = dict(module.named_children())
    if children.keys() != {"gate_proj", "up_proj", "down_proj", "act_fn"}:
        return False
    return not list(children["act_fn"].parameters()) and not list(module.parameters(recurse=False))


def norm_forward(norm: nn.Module) -> Callable[[Tensor], Tensor]:
    own, weights = norm.forward, tuple(norm.parameters())

    def forward(hidden: Tensor) -> Tensor:
        normed: Tensor = ByRows.apply(own, len(weights), hidden, *weights)  # type: ignore[no-untyped-call]
        return normed

    return forward


def gated_forward(module: Any) -> Callable[[Tensor], Tensor]:
    def product(gate: Tensor, up: Tensor) -> Tensor:
        activated: Tensor = module.act_fn(gate)
        return activated * up

    def forward(hidden: Tensor) -> Tensor:
        gate, up = module.gate_proj(hidden), module.up_proj(hidden)
        together: Tensor = ByRows.apply(product, 0, gate, up)  # type: ignore[no-untyped-call]
        output: Tensor = module.down_proj(together)
        return output

    return forward
