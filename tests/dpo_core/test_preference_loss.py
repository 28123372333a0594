"""Every loss by hand: the comments work out each number from the formula in the docstring."""

from __future__ import annotations

import math
from typing import Any, get_args

import pytest
import torch
from torch import Tensor

from dpo_core.loss_table import LOSSES, LossName
from dpo_core.preference_loss import PreferenceLoss
from dpo_core.spec import TrainingSpec

LN_3 = math.log(3)
NAMES = get_args(LossName)

# log π and log π_ref of one pair, and its tokens: d_w = 1, d_l = −1, Δ = 2; per token d_w/m_w = 1/2, d_l/m_l = −1/4.
POLICY, REFERENCE, TOKENS = [-1.0, -4.0], [-2.0, -3.0], [2.0, 4.0]

# With β = ln(3)/2: σ(βΔ) = 3/4, and σ(βd_w) = √3/(1+√3) = 0.6339746, σ(βd_l) = 0.3660254.
HALF = LN_3 / 2


def column(*numbers: float) -> Tensor:
    """One pair: [2, 1]."""
    return torch.tensor(numbers, dtype=torch.float64).unsqueeze(1)


def one(name: str, **parameters: Any) -> PreferenceLoss:
    return PreferenceLoss(((name, 1.0),), **{"beta": HALF} | parameters)


def measured(
    loss: PreferenceLoss, policy: list[float], reference: list[float] = REFERENCE
) -> tuple[float, list[float]]:
    """The loss of a pair, and its gradient by log π_w and log π_l."""
    leaf = column(*policy).requires_grad_()
    value = loss(leaf, column(*reference), column(*TOKENS))
    assert value.shape == (1,)
    value.sum().backward()
    assert leaf.grad is not None
    return value.item(), leaf.grad.squeeze(1).tolist()


CASES = [
    # −0.9 ln(3/4) − 0.1 ln(1/4); slope in βΔ: 3/4 − 0.9
    (one("sigmoid", label_smoothing=0.1), 0.3975433, [-0.15 * HALF, 0.15 * HALF]),
    # [−0.9 ln(3/4) + 0.1 ln(1/4)] / 0.8; slope: [−0.9 · 1/4 − 0.1 · 3/4] / 0.8
    (one("robust", label_smoothing=0.1), 0.1503556, [-0.375 * HALF, 0.375 * HALF]),
    # 1 − 2/4
    (one("hinge", beta=0.25), 0.5, [-0.25, 0.25]),
    # (1/2 + 1/4 − 1/2)²; twice the root, by m_w and m_l
    (one("ipo", beta=1.0), 0.0625, [0.5 / 2, -0.5 / 4]),
    # 3/4 ln(0.75/0.9) + 1/4 ln(0.25/0.1); slope: q(1−q) [ln(q/(1−q)) − ln(0.9/0.1)] = 3/16 (ln 3 − ln 9)
    (one("exo_pair", label_smoothing=0.1), 0.0923315, [-3 / 16 * LN_3 * HALF, 3 / 16 * LN_3 * HALF]),
    # −3/2 ln 0.6339746 − 1/2 ln 0.3660254; slopes: −0.3660254 + 0.6339746/2, and 0.3660254/2
    (one("nca_pair"), 1.1861459, [-0.0490381 * HALF, 0.1830127 * HALF]),
    # (1 − 1/2)² + (−1 + 1/2)²
    (one("sppo_hard", beta=1.0), 0.5, [1.0, -1.0]),
    # 1 − 0.6339746 + 0.3660254 = √3 − 1; σ' is 0.6339746 · 0.3660254 = 0.2320508 on both sides
    (one("apo_zero"), 0.7320508, [-0.2320508 * HALF, 0.2320508 * HALF]),
    # 0.6339746 + 1 − 3/4; slopes: 0.2320508 − 3/16, and 3/16
    (one("apo_down"), 0.8839746, [0.0445508 * HALF, 0.1875 * HALF]),
    # k = 3/4: 1/4 · −ln(3/4) + 3/4 · 1/3; slope: k' (1/3 + ln(3/4)) − 1/4 · 1/4 − 3/4 · 1/3 with k' = 3/16
    (one("discopop", tau=1.0), 0.3219205, [-0.3039404 * HALF, 0.3039404 * HALF]),
    # β (1/2 + 1/4) = ln 3: −ln(3/4); slope −1/4, by m_w and m_l
    (one("sigmoid_norm", beta=4 / 3 * LN_3), 0.2876821, [-LN_3 / 6, LN_3 / 12]),
    # Means −1/2 and −1: 2(ln 3 + 1) · 1/2 − 1 = ln 3
    (one("simpo", beta=2 * (LN_3 + 1), gamma=1.0), 0.2876821, [-(LN_3 + 1) / 4, (LN_3 + 1) / 8]),
    # ln(3)/3 · 3 = ln 3: −ln(3/4) + 1/2
    (one("cpo", beta=LN_3 / 3), 0.7876821, [-LN_3 / 12 - 1 / 2, LN_3 / 12]),
    (one("sft"), 0.5, [-0.5, 0.0]),
]


@pytest.mark.parametrize(("loss", "value", "gradient"), CASES, ids=[case[0].weights[0][0] for case in CASES])
def test_by_hand(loss: PreferenceLoss, value: float, gradient: list[float]) -> None:
    found, slopes = measured(loss, POLICY)
    assert found == pytest.approx(value, abs=1e-7)
    assert slopes == pytest.approx(gradient, abs=1e-7)


def test_orpo_by_hand() -> None:
    # P_w = 3/4 and P_l = 1/2 per token: odds 3 and 1. −ln(3/4) − 0.1 ln(3/4).
    # d log odds / d log P = 1/(1−P), so 4 and 2: −1/2 − 0.1 · 1/4 · 4/2, and 0.1 · 1/4 · 2/4.
    value, gradient = measured(one("orpo", beta=0.1), [2 * math.log(3 / 4), 4 * math.log(1 / 2)])
    assert value == pytest.approx(0.3164503, abs=1e-7)
    assert gradient == pytest.approx([-0.55, 0.0125], abs=1e-9)


def test_every_name_has_a_loss_and_a_case() -> None:
    nothing = column(0.0, 0.0)
    assert set(one("sft").parts(nothing, nothing, nothing)) == set(LOSSES) == set(NAMES)
    assert {loss.weights[0][0] for loss, *_ in CASES} | {"orpo"} == set(NAMES)


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("sigmoid", math.log(2)),
        ("robust", math.log(2)),
        ("sigmoid_norm", math.log(2)),
        ("hinge", 1),
        ("ipo", 1 / 4),  # (1/(2β))²
        ("exo_pair", -math.log(0.4 * 0.6) / 2 - math.log(2)),  # −½ ln(4 ε (1−ε))
        ("nca_pair", 2 * math.log(2)),
        ("sppo_hard", 1 / 2),
        ("apo_zero", 1),
        ("apo_down", 1),
        ("discopop", math.log(2) / 2 + 1 / 2),
    ],
)
def test_at_the_reference(name: str, expected: float) -> None:
    loss = one(name, beta=1.0, label_smoothing=0.4)
    assert measured(loss, POLICY, POLICY)[0] == pytest.approx(expected, abs=1e-12)


@pytest.mark.parametrize("name", NAMES)
def test_gradcheck_and_the_need_of_a_reference(name: LossName) -> None:
    generator = torch.Generator().manual_seed(7)
    policy, reference = -5 * torch.rand(2, 2, 6, generator=generator, dtype=torch.float64) - 0.1
    tokens = torch.tensor([[1.0, 2, 3, 4, 5, 6], [6.0, 5, 4, 3, 2, 1]], dtype=torch.float64)
    loss = one(name, beta=0.3, label_smoothing=0.2, gamma=0.5, tau=0.4)
    assert torch.autograd.gradcheck(lambda it: loss(it, reference, tokens), policy.requires_grad_())
    same = torch.equal(loss(policy, reference, tokens), loss(policy, 0 * reference, tokens))
    assert same is not LOSSES[name].needs_reference


def test_a_sum_is_the_weighted_sum_of_its_losses_and_of_their_gradients() -> None:
    value, gradient = measured(PreferenceLoss((("apo_zero", 0.5), ("sft", 2.0)), beta=HALF), POLICY)
    assert value == pytest.approx(0.5 * 0.7320508 + 2 * 0.5, abs=1e-7)
    assert gradient == pytest.approx([-0.1160254 * HALF - 1, 0.1160254 * HALF], abs=1e-7)


def test_robust_is_the_sigmoid_loss_in_the_mean_over_flips() -> None:
    # (1−ε) L(pair) + ε L(pair with its answers exchanged) = −log σ(βΔ)
    loss = one("robust", label_smoothing=0.3)
    right, flipped = measured(loss, POLICY)[0], measured(loss, POLICY[::-1], REFERENCE[::-1])[0]
    assert 0.7 * right + 0.3 * flipped == pytest.approx(-math.log(3 / 4), abs=1e-12)


def test_large_beta() -> None:
    # The margin 1/β of hinge and the target 1/(2β) of ipo vanish; apo_zero becomes a step; discopop goes to 0.
    assert measured(one("hinge", beta=1e6), POLICY) == (0.0, [0.0, 0.0])
    assert measured(one("ipo", beta=1e6), POLICY)[0] == pytest.approx((3 / 4) ** 2, abs=1e-5)
    assert measured(one("apo_zero", beta=1e6), POLICY)[0] == 0.0
    assert measured(one("discopop", beta=1e6), POLICY) == (0.0, [0.0, 0.0])


def test_small_beta() -> None:
    # With u = βΔ → 0 a loss is its value at the reference and a slope in u: −1/2 for sigmoid, −1/4 − 1/2 for discopop
    # with a τ so hot that k stays 1/2.
    small = 1e-6
    assert measured(one("sigmoid", beta=small), POLICY)[0] == pytest.approx(math.log(2) - small, abs=1e-11)
    hot = measured(one("discopop", beta=small, tau=1e6), POLICY)[0]
    assert hot == pytest.approx(math.log(2) / 2 + 1 / 2 - 3 / 2 * small, abs=1e-11)


def test_exo_pair_rests_where_the_policy_doubts_as_the_labels_do() -> None:
    # ε = 1/4 = σ(−βΔ)
    value, gradient = measured(one("exo_pair", label_smoothing=1 / 4), POLICY)
    assert [value, *gradient] == pytest.approx([0, 0, 0], abs=1e-12)


def test_pairs_that_are_far_off_stay_finite() -> None:
    # u = −20,000 · ln(3)/2: e^(−u) is infinite and k is 0, their product is 0; what is left is −log σ(u) = −u.
    value, gradient = measured(one("discopop"), [-10_000.0, 10_000.0], [0.0, 0.0])
    assert value == pytest.approx(20_000 * HALF)
    assert gradient == pytest.approx([-HALF, HALF])
    # A chosen answer of probability 1 has infinite odds; one of probability 0 has none.
    for policy in ([0.0, -4.0], [-1.0, 0.0], [-1e5, -4.0]):
        value, gradient = measured(one("orpo"), policy)
        assert all(map(math.isfinite, [value, *gradient]))


def test_from_a_spec() -> None:
    loss = {"simpo": 1.0, "discopop": 0.5}
    training = TrainingSpec(loss=loss, beta=2.5, gamma_beta_ratio=0.4, discopop_tau=0.1)  # type: ignore[arg-type]
    expected = PreferenceLoss((("simpo", 1.0), ("discopop", 0.5)), beta=2.5, gamma=1.0, tau=0.1)
    assert PreferenceLoss.of(training) == expected
    assert PreferenceLoss.of(TrainingSpec(loss="simpo", beta=2)).gamma == 1.0
