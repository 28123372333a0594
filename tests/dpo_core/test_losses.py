"""Expected numbers are worked out by hand, from the formulas in the docstrings."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from dpo_core.losses import (
    gradient_weight,
    implicit_reward,
    preference_probability,
    sigmoid_loss,
    supervised_loss,
)


def values(*numbers: float) -> Tensor:
    return torch.tensor(numbers, dtype=torch.float64)


def two_plus_two(beta: float = 0.1, label_smoothing: float = 0.0) -> float:
    """ "What is 2+2?": reference -1.0 for "4" and -2.0 for "5"; the policy after a step -0.8 and -2.5."""
    loss = sigmoid_loss(values(-0.8, -2.5), values(-1.0, -2.0), beta=beta, label_smoothing=label_smoothing)
    return loss.item()


def test_two_plus_two_by_hand() -> None:
    # delta = (-0.8 + 1.0) - (-2.5 + 2.0) = 0.7; sigmoid(0.07) = 0.5174929; -log of it = 0.6587596
    chosen = implicit_reward(values(-0.8), values(-1.0), 0.1)
    rejected = implicit_reward(values(-2.5), values(-2.0), 0.1)
    assert (chosen.item(), rejected.item()) == pytest.approx((0.02, -0.05))
    assert preference_probability(chosen, rejected).item() == pytest.approx(0.5174929, abs=1e-7)
    assert gradient_weight(chosen, rejected).item() == pytest.approx(0.4825071, abs=1e-7)
    assert two_plus_two() == pytest.approx(0.6587596, abs=1e-7)


def test_label_smoothing_by_hand() -> None:
    # 0.9 * 0.6587596 + 0.1 * (0.6587596 + 0.07), as -log sigmoid(-x) = -log sigmoid(x) + x
    assert two_plus_two(label_smoothing=0.1) == pytest.approx(0.6657596, abs=1e-7)


def test_policy_equal_to_reference_gives_ln_2() -> None:
    same = values(-123.456, -3.0)
    loss = sigmoid_loss(torch.stack([same, same - 1]), torch.stack([same, same - 1]), beta=0.3)
    assert loss.tolist() == pytest.approx([math.log(2)] * 2, abs=1e-15)


@pytest.mark.parametrize("label_smoothing", [0.0, 0.2])
def test_gradient_is_beta_times_its_weight(label_smoothing: float) -> None:
    policy = values(-0.8, -2.5).requires_grad_()
    reference = values(-1.0, -2.0)
    loss = sigmoid_loss(policy, reference, beta=0.1, label_smoothing=label_smoothing)
    loss.backward()
    # Cross-entropy of a sigmoid: d loss / d(beta delta) = P - (1 - epsilon)
    slope = 0.1 * (0.5174929 - (1 - label_smoothing))
    assert policy.grad is not None
    assert policy.grad.tolist() == pytest.approx([slope, -slope], abs=1e-8)


def test_small_beta_tends_to_ln_2_minus_half_the_margin() -> None:
    # log sigmoid(x) = -ln 2 + x/2 - x^2/8 + ...
    assert (two_plus_two(1e-6) - math.log(2)) / 1e-6 == pytest.approx(-0.35, abs=1e-6)


def test_large_beta_tends_to_zero_or_to_the_margin() -> None:
    assert two_plus_two(1e4) == 0.0
    swapped = sigmoid_loss(values(-2.5, -0.8), values(-2.0, -1.0), beta=1e4)
    assert swapped.item() == pytest.approx(7000.0)


def test_supervised_loss_is_the_negative_log_likelihood() -> None:
    assert supervised_loss(values(-1.5, -0.25)).tolist() == [1.5, 0.25]
