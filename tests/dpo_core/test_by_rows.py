"""Norms and gated products in pieces: the same numbers and gradients, and less that is kept."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.autograd.graph import saved_tensors_hooks
from transformers import AutoConfig, AutoModelForCausalLM

from dpo_core import by_rows
from tests.dpo_core.test_ways import SIZES


def product(gate: Tensor, up: Tensor) -> Tensor:
    return nn.functional.silu(gate) * up


@pytest.fixture(autouse=True)
def small_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(by_rows, "PIECE_BYTES", 256)


def test_a_gradient_in_pieces_is_the_gradient() -> None:
    torch.manual_seed(0)
    inputs = [torch.randn(2, 7, 6, dtype=torch.float64, requires_grad=True) for _ in range(2)]
    assert torch.autograd.gradcheck(lambda *given: by_rows.ByRows.apply(product, 0, *given), inputs)
    norm = nn.LayerNorm(6, dtype=torch.float64)
    forward = by_rows.norm_forward(norm)
    weights = tuple(norm.parameters())
    assert torch.autograd.gradcheck(lambda hidden, *_: forward(hidden), (inputs[0], *weights))


def test_inputs_that_are_not_contiguous_are_read_as_they_are() -> None:
    torch.manual_seed(0)
    gate, up = (torch.randn(7, 2, 6, requires_grad=True).transpose(0, 1) for _ in range(2))
    ours, plain = by_rows.ByRows.apply(product, 0, gate, up), product(gate, up)
    assert torch.allclose(ours, plain)
    weights = torch.randn_like(plain)
    found, expected = (torch.autograd.grad((it * weights).sum(), (gate, up)) for it in (ours, plain))
    assert all(torch.allclose(one, other) for one, other in zip(found, expected, strict=True))


def model(kind: str, **changes: Any) -> Any:
    torch.manual_seed(0)
    return AutoModelForCausalLM.from_config(AutoConfig.for_model(kind, **SIZES | {"pad_token_id": 0} | changes)).eval()


def gradients(causal: Any, tokens: Tensor) -> tuple[Tensor, list[Tensor], int]:
    """Logits, gradients of all trained parameters, and the bytes that were kept for the backward pass."""
    kept: dict[int, int] = {}

    def pack(tensor: Tensor) -> Tensor:
        kept[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    with saved_tensors_hooks(pack, lambda tensor: tensor):
        logits = causal(input_ids=tokens, use_cache=False).logits
    trained = [weight for weight in causal.parameters() if weight.requires_grad]
    return logits, list(torch.autograd.grad(logits.square().mean(), trained)), sum(kept.values())


@pytest.mark.parametrize("kind", ["llama", "qwen2", "qwen3", "gemma", "phi", "mistral", "olmo2"])
def test_a_model_in_pieces_has_the_same_logits_and_gradients(kind: str) -> None:
    causal = model(kind)
    tokens = torch.randint(96, (2, 40))
    logits, expected, before = gradients(causal, tokens)
    assert by_rows.take_apart(causal)
    again, found, after = gradients(causal, tokens)
    assert torch.allclose(again, logits, atol=1e-6)
    for ours, theirs in zip(found, expected, strict=True):
        assert (ours - theirs).norm() <= 1e-5 * theirs.norm()
    assert after < before
    by_rows.restore(causal)
    assert gradients(causal, tokens)[2] == before


@pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing`:FutureWarning")
def test_frozen_weights_and_adapters_get_the_same_gradients() -> None:
    import peft

    config = peft.LoraConfig(r=4, target_modules="all-linear", init_lora_weights=False)
    causal: Any = peft.get_peft_model(model("llama"), config).eval()
    tokens = torch.randint(96, (2, 40))
    _, expected, _ = gradients(causal, tokens)
    assert by_rows.take_apart(causal)
    for ours, theirs in zip(gradients(causal, tokens)[1], expected, strict=True):
        assert (ours - theirs).norm() <= 1e-5 * theirs.norm()


def test_other_modules_stay_as_they_are() -> None:
    assert not by_rows.take_apart(nn.Sequential(nn.Linear(4, 4), nn.GELU()))
    batch = torch.randn(10, 4)
    sizes = [len(pieces[0]) for pieces in by_rows.taken_apart(batch, batch)]
    assert sum(sizes) == 10
    assert all(earlier >= later for earlier, later in pairwise(sizes))
