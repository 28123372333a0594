"""Against attention with a dense mask, value and gradient."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from dpo_core import attention
from dpo_core.attention import UnsupportedAttentionError, packed_attention
from dpo_core.packing import Block, Layout

LAYOUT = Layout((Block(5, 3, 4), Block(0, 2, 3), Block(4, 0), Block(3, 0, 2), Block(6, 7, 1)))
TOKENS = sum(block.trunk + block.first + block.second for block in LAYOUT.blocks)


def dense_mask(layout: Layout) -> Tensor:
    """[T, T] bool; true where a query may look."""
    owner, branch = [], []
    for number, block in enumerate(layout.blocks):
        for kind, length in enumerate((block.trunk, block.first, block.second)):
            owner += [number] * length
            branch += [kind] * length
    size = len(owner)
    mask = torch.zeros(size, size, dtype=torch.bool)
    for query in range(size):
        for key in range(query + 1):
            mask[query, key] = owner[query] == owner[key] and branch[key] in (0, branch[query])
    return mask


def tensors(key_heads: int) -> list[Tensor]:
    generator = torch.Generator().manual_seed(1)
    shapes = [(1, heads, TOKENS, 8) for heads in (4, key_heads, key_heads)]
    return [torch.randn(shape, generator=generator, dtype=torch.float64, requires_grad=True) for shape in shapes]


@pytest.mark.parametrize("key_heads", [4, 2])
@pytest.mark.parametrize("query_rows", [512, 2])
def test_equals_dense_attention(monkeypatch: pytest.MonkeyPatch, key_heads: int, query_rows: int) -> None:
    monkeypatch.setattr(attention, "QUERY_ROWS", query_rows)
    query, key, value = tensors(key_heads)
    weight = torch.randn(1, TOKENS, 4, 8, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    output, _ = packed_attention(nn.Identity(), query, key, value, None, layout=LAYOUT, scaling=0.3)
    found = torch.autograd.grad((output * weight).sum(), (query, key, value))

    repeated = [tensor.repeat_interleave(4 // key_heads, dim=1) for tensor in (key, value)]
    scores = (query @ repeated[0].transpose(2, 3) * 0.3).masked_fill(~dense_mask(LAYOUT), -torch.inf)
    expected = (scores.softmax(-1) @ repeated[1]).transpose(1, 2)
    gradients = torch.autograd.grad((expected * weight).sum(), (query, key, value))
    assert torch.allclose(output, expected, atol=1e-12)
    for ours, theirs in zip(found, gradients, strict=True):
        assert torch.allclose(ours, theirs, atol=1e-12)


@pytest.mark.parametrize("query_rows", [512, 2])
def test_what_nobody_wants_is_left_out(monkeypatch: pytest.MonkeyPatch, query_rows: int) -> None:
    """Late ones of a run, early ones, a second branch alone, none of a block; in any order, and one of them twice."""
    monkeypatch.setattr(attention, "QUERY_ROWS", query_rows)
    wanted = torch.tensor([11, 6, 7, 6, 12, 16, 25, 39, 38, 36])
    weight = torch.zeros(1, TOKENS, 4, 8, dtype=torch.float64)
    weight[:, wanted] = torch.randn(1, len(wanted), 4, 8, generator=torch.Generator().manual_seed(2)).double()
    given = tensors(2)
    found = []
    for options in ({}, {"wanted": wanted}):
        output, _ = packed_attention(nn.Identity(), *given, None, layout=LAYOUT, **options)
        found.append([output[:, wanted], *torch.autograd.grad((output * weight).sum(), given)])
    assert (output[:, 17:21] == 0).all()
    for ours, whole in zip(*found, strict=True):
        assert torch.allclose(ours, whole, atol=1e-12)


@pytest.mark.parametrize("asked", [{"sliding_window": 4}, {"softcap": 30.0}, {"s_aux": 1}, {"dropout": 0.1}])
def test_what_it_does_not_do_is_refused(asked: dict[str, float]) -> None:
    with pytest.raises(UnsupportedAttentionError, match=next(iter(asked))):
        packed_attention(nn.Identity(), *tensors(4), None, layout=LAYOUT, **asked)


def test_a_layout_that_got_lost_on_the_way_is_refused() -> None:
    with pytest.raises(UnsupportedAttentionError, match="no layout"):
        packed_attention(nn.Identity(), *tensors(4), None)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="variable-length flash attention needs a GPU")
def test_flash_attention_agrees_with_its_gradients() -> None:
    assert attention.flash_error(torch.device("cuda"), torch.bfloat16, 8, 2, 64) < 0.02
