"""Exact attention over a packed row, in place of the model's own.

Registered with transformers' AttentionInterface under NAME; the layout travels as a keyword argument of the
model's forward. On a GPU in bfloat16 or float16: one call of torch's variable-length flash attention, in which
a second branch's keys are the trunk's and its own. Elsewhere: scaled_dot_product_attention run by run.

Shapes: Q query heads, K key heads, T tokens, D head size.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import torch
import torch.nn.functional as F  # noqa: N812 (its usual name)
from torch import Tensor, nn

from dpo_core.last_layer import KEPT
from dpo_core.packing import Block, Layout

NAME = "dpo_packed"
HARMLESS = frozenset({"position_ids", "use_cache", KEPT, "output_attentions", "output_hidden_states", "is_causal"})
"""Arguments that models hand to their attention and that change nothing here. `is_causal` is what we do anyway."""
QUERY_ROWS = 512
"""Queries behind other keys that share one mask: bounds the mask's size for long answers."""


class UnsupportedAttentionError(ValueError):
    """The model asks its attention for something that a packed row does not do."""


def register(*, opaque: bool = False) -> None:
    """`opaque`: torch.compile leaves it as it is, as the layout is no tensor."""
    from transformers import AttentionInterface

    hidden: Any = torch.compiler.disable  # which has no types
    AttentionInterface.register(NAME, hidden(packed_attention) if opaque else packed_attention)


def packed_attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    *,
    layout: Layout | None = None,
    scaling: float | None = None,
    dropout: float = 0.0,
    wanted: Tensor | None = None,
    **others: Any,
) -> tuple[Tensor, None]:
    """Attention of `query` [1, Q, T, D] to `key` and `value` [1, K, T, D] by `layout`: [1, T, Q, D].

    `wanted`: the places [N] whose result is read, where not all are; what others get is undefined.

    Raises:
        UnsupportedAttentionError: the layout did not arrive, or the model wants a window, sinks, a soft cap,
            dropout or anything else that would be left out silently.
    """
    asked = sorted(name for name, given in others.items() if given is not None and name not in HARMLESS)
    if layout is None or attention_mask is not None or dropout or asked:
        what = ", ".join(asked) or ("dropout" if dropout else "a mask of its own or no layout")
        raise UnsupportedAttentionError(f"{type(module).__name__} uses {what}")
    if query.dtype != value.dtype:  # under autocast rotary embeddings widen queries and keys
        query, key = query.to(value.dtype), key.to(value.dtype)
    if query.is_cuda and query.dtype in (torch.bfloat16, torch.float16):
        return flash(query, key, value, layout, scaling), None
    return run_by_run(query, key, value, layout, scaling, wanted=wanted), None


def flash(query: Tensor, key: Tensor, value: Tensor, layout: Layout, scaling: float | None) -> Tensor:
    """One variable-length call; flash attention aligns the causal diagonal to the last query and the last key."""
    from torch.nn.attention.varlen import varlen_attn

    query_offsets, key_offsets, index = layout.runs(query.device)
    keys, values = (tensor[0].transpose(0, 1).index_select(0, index) for tensor in (key, value))
    output = varlen_attn(
        query[0].transpose(0, 1).contiguous(),
        keys,
        values,
        query_offsets,
        key_offsets,
        max(layout.query_lengths),
        max(layout.key_lengths),
        scale=scaling,
        window_size=(-1, 0),
        enable_gqa=query.shape[1] != key.shape[1],
    )
    assert isinstance(output, Tensor)  # noqa: S101 (no auxiliary output was asked for)
    return output.unsqueeze(0)


def flash_error(device: torch.device, dtype: torch.dtype, queries: int, keys: int, size: int) -> float:
    """How far `flash` is from `run_by_run` in float32: the largest relative error of the output and the gradients.

    Tried with the model's own numbers of query and key heads and size of a head.

    Kernels differ in where they put the causal diagonal when queries and keys differ in number.
    """
    layout = Layout((Block(70, 20, 40), Block(9, 33, 5)))
    tokens = sum(layout.query_lengths)
    generator = torch.Generator().manual_seed(0)
    shapes = [(1, heads, tokens, size) for heads in (queries, keys, keys)]
    exact = [torch.randn(shape, generator=generator).to(device, dtype).float() for shape in shapes]
    found = []
    for attend, given in ((flash, [tensor.to(dtype) for tensor in exact]), (run_by_run, exact)):
        query, key, value = (tensor.detach().requires_grad_() for tensor in given)
        output = attend(query, key, value, layout, None)
        found.append([output, *torch.autograd.grad(output.float().square().sum(), (query, key, value))])
    pairs = zip(*found, strict=True)
    return max(float((ours.float() - theirs).detach().norm() / theirs.detach().norm()) for ours, theirs in pairs)


def run_by_run(
    query: Tensor, key: Tensor, value: Tensor, layout: Layout, scaling: float | None, *, wanted: Tensor | None = None
) -> Tensor:
    """`split` and `cat` and no slices of the whole row: a slice's gradient would be as long as the row."""
    sizes = [block.trunk + block.first + block.second for block in layout.blocks]
    unread = [0 for _ in sizes] if wanted is None else unread_starts(sizes, wanted)
    tensors = (torch.split(tensor, sizes, dim=2) for tensor in (query, key, value))
    parts = zip(layout.blocks, unread, *tensors, strict=True)
    outputs = [out for block, skip, *these in parts for out in block_attention(block, skip, *these, scaling=scaling)]
    return torch.cat(outputs, dim=2).transpose(1, 2)


def unread_starts(sizes: Sequence[int], wanted: Tensor) -> list[int]:
    """How many places at the start of each block nobody wants."""
    ends = torch.tensor(sizes).cumsum(0)
    block = torch.searchsorted(ends, wanted.cpu(), right=True)
    first = ends.clone().scatter_reduce(0, block, wanted.cpu(), "amin")
    return (first - ends + torch.tensor(sizes)).tolist()


def block_attention(
    block: Block, skip: int, query: Tensor, key: Tensor, value: Tensor, *, scaling: float | None
) -> Iterator[Tensor]:
    """The trunk with its first branch is causal; the second branch sees the trunk and itself. Zeros for unread ones."""
    run = block.trunk + block.first
    (query, second_query), (key, second_key), (value, second_value) = (
        torch.split(tensor, [run, block.second], dim=2) for tensor in (query, key, value)
    )
    if 2 * min(skip, run) > run:  # fewer scores than a causal half
        skip = min(skip, run)
        yield torch.zeros_like(query[:, :, :skip])
        if skip < run:
            yield from last_queries(query[:, :, skip:], key, value, scaling)
    else:
        grouped = query.shape[1] != key.shape[1]
        yield F.scaled_dot_product_attention(query, key, value, is_causal=True, scale=scaling, enable_gqa=grouped)
    if block.second:
        keys = torch.cat([key[:, :, : block.trunk], second_key], dim=2)
        values = torch.cat([value[:, :, : block.trunk], second_value], dim=2)
        yield from last_queries(second_query, keys, values, scaling)


def last_queries(query: Tensor, key: Tensor, value: Tensor, scaling: float | None) -> Iterator[Tensor]:
    """Causal attention of queries that stand at the end of a run of keys."""
    behind = key.shape[2] - query.shape[2]
    grouped = query.shape[1] != key.shape[1]
    for start in range(0, query.shape[2], QUERY_ROWS):
        queries = query[:, :, start : start + QUERY_ROWS]
        seen = behind + start + queries.shape[2]
        mask = torch.ones(queries.shape[2], seen, dtype=torch.bool, device=query.device).tril(behind + start)
        yield F.scaled_dot_product_attention(
            queries, key[:, :, :seen], value[:, :, :seen], attn_mask=mask, scale=scaling, enable_gqa=grouped
        )
