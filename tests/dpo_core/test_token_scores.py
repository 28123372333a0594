"""log π of tokens from logits: values and gradients by hand, beside torch's own, block by block and fused."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F  # noqa: N812 (its usual name)
from torch import Tensor

from dpo_core import token_scores
from dpo_core.token_scores import BLOCKWISE, Kernels, fused_gradient, fused_normalizer, token_log_probabilities

FUSED = Kernels(fused_normalizer, fused_gradient)
BOTH = pytest.mark.parametrize("kernels", [BLOCKWISE, FUSED], ids=["blockwise", "fused"])


@pytest.fixture(autouse=True)
def small_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Three rows of 7 columns."""
    monkeypatch.setattr(token_scores, "BLOCK_BYTES", {"cpu": 3 * 4 * 7})


def drawn(rows: int, dtype: torch.dtype = torch.float64) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    logits = 3 * torch.randn(rows, 7, generator=generator, dtype=torch.float64)
    return logits.to(dtype).requires_grad_(), torch.randint(7, (rows,), generator=generator)


@BOTH
def test_two_tokens_by_hand(kernels: Kernels) -> None:
    # Logits 0 and ln 3: probabilities 1/4 and 3/4; weighed by 2, the gradient of log p(first) is 2·(3/4, −3/4).
    logits = torch.tensor([[0.0, math.log(3)]], dtype=torch.float64, requires_grad=True)
    value = token_log_probabilities(logits, torch.tensor([0]), kernels)
    assert value.tolist() == pytest.approx([-math.log(4)])
    (gradient,) = torch.autograd.grad(2 * value.sum(), logits)
    assert gradient.tolist() == [pytest.approx([1.5, -1.5])]


@BOTH
@pytest.mark.parametrize("rows", [0, 1, 3, 8])
def test_values_and_gradients_are_those_of_cross_entropy(kernels: Kernels, rows: int) -> None:
    logits, tokens = drawn(rows)
    weights = torch.linspace(-2, 2, rows, dtype=torch.float64)
    found = token_log_probabilities(logits, tokens, kernels)
    expected = -F.cross_entropy(logits, tokens, reduction="none")
    torch.testing.assert_close(found, expected, rtol=1e-14, atol=1e-14)
    pair = [torch.autograd.grad((weights * values).sum(), logits)[0] for values in (found, expected)]
    torch.testing.assert_close(*pair, rtol=1e-13, atol=1e-14)


@BOTH
def test_the_gradient_is_the_slope(kernels: Kernels) -> None:
    logits, tokens = drawn(4)
    assert torch.autograd.gradcheck(lambda given: token_log_probabilities(given, tokens, kernels), logits)


@BOTH
def test_capped_logits_by_hand_and_by_their_slope(kernels: Kernels) -> None:
    # A cap of 2 makes 2 tanh(ln 3 / 2) = 2 · (3 − 1)/(3 + 1) = 1 of ln 3: p(first) = 1 / (1 + e).
    logits = torch.tensor([[0.0, math.log(3)]], dtype=torch.float64, requires_grad=True)
    value = token_log_probabilities(logits, torch.tensor([0]), kernels, 2.0)
    assert value.tolist() == pytest.approx([-math.log(1 + math.e)])
    (gradient,) = torch.autograd.grad(value.sum(), logits)
    other = math.e / (1 + math.e)  # the second column's slope is 1 − (1/2)²
    assert gradient.tolist() == [pytest.approx([other, -0.75 * other])]
    drawn_logits, tokens = drawn(4)
    assert torch.autograd.gradcheck(lambda given: token_log_probabilities(given, tokens, kernels, 2.0), drawn_logits)


@BOTH
def test_bfloat16_logits_are_raised_and_their_gradient_is_rounded_once(kernels: Kernels) -> None:
    logits, tokens = drawn(8, torch.bfloat16)
    exact = logits.detach().double().requires_grad_()
    values = token_log_probabilities(logits, tokens, kernels)
    assert values.dtype == torch.float32
    expected = token_log_probabilities(exact, tokens)
    torch.testing.assert_close(values.double(), expected, rtol=1e-6, atol=1e-6)
    (found,), (right,) = torch.autograd.grad(values.sum(), logits), torch.autograd.grad(expected.sum(), exact)
    assert found.dtype == torch.bfloat16
    torch.testing.assert_close(found.double(), right, rtol=2**-8, atol=1e-6)


def test_float64_logits_keep_their_digits() -> None:
    # sigmoid(2e-12) = (1 + 1e-12)/2: the excess is gone in float32.
    logits = torch.tensor([[2e-12, 0.0]], dtype=torch.float64)
    assert token_log_probabilities(logits, torch.tensor([0])).item() - math.log(0.5) == pytest.approx(1e-12, rel=1e-3)


def test_huge_logits_stay_finite() -> None:
    logits = torch.tensor([[1e4, -1e4]], requires_grad=True)
    value = token_log_probabilities(logits, torch.tensor([1]))
    assert value.tolist() == [-2e4]
    assert torch.autograd.grad(value.sum(), logits)[0].tolist() == [[-1.0, 1.0]]
