"""DPO on endlessly many comparisons ends at the closed-form optimum, which is the best there is."""

from __future__ import annotations

import pytest
import torch

from dpo_core.losses import implicit_reward
from illustrated.experiment import MODEL_SEED, Results
from illustrated.policy import random_model, train
from illustrated.world import (
    BETA,
    Comparisons,
    all_comparisons,
    divergence,
    log_partition,
    objective,
    optimum,
    rewards,
)


def test_the_formula_by_hand() -> None:
    # π_ref = (1/4, 3/4), r = (ln 3, 0), β = 1: weights 3/4 and 3/4, so Z = 3/2 and π* = (1/2, 1/2).
    reference = torch.tensor([[0.25, 0.75]], dtype=torch.float64).log()
    reward = torch.tensor([[3.0, 1.0]], dtype=torch.float64).log()
    assert log_partition(reference, reward, 1.0).exp().tolist() == pytest.approx([1.5])
    assert optimum(reference, reward, 1.0).exp().flatten().tolist() == pytest.approx([0.5, 0.5])


def test_the_world_is_whole(results: Results) -> None:
    """Every answer that the model can give is there."""
    for table in (results.reference, results.optimum, results.trained):
        assert table.exp().sum(-1).tolist() == pytest.approx([1.0] * 3, abs=1e-14)


def test_comparisons_weigh_as_bradley_terry_says() -> None:
    every = all_comparisons(rewards())
    # 3 prompts with 36 unordered pairs each, asked for equally often; r = -0.8 for aa, 0.4 for ab.
    assert every.weight.sum().item() == pytest.approx(1)
    ab_over_aa = (every.prompt == 0) & (every.chosen == 1) & (every.rejected == 0)
    assert every.weight[ab_over_aa].tolist() == pytest.approx([0.7685248 / 108], rel=1e-6)  # sigmoid(1.2)


def test_training_reaches_the_optimum(results: Results) -> None:
    assert divergence(results.optimum, results.reference).min() > 0.1
    assert divergence(results.optimum, results.trained).max() < 1e-8
    torch.testing.assert_close(results.trained.exp(), results.optimum.exp(), rtol=0, atol=1e-4)


@pytest.mark.parametrize("seed", [0, 5])
@pytest.mark.parametrize("beta", [0.2, 1.0])
def test_it_does_from_any_start_at_any_beta(seed: int, beta: float) -> None:
    tables = train(random_model(seed), all_comparisons(rewards()), beta, 150)
    best = optimum(tables[0], rewards(), beta)
    assert divergence(best, tables[0]).max() > 0.02
    assert divergence(best, tables[-1]).max() < 1e-3


def test_a_chain_of_comparisons_is_enough() -> None:
    """Which pairs people were asked about doesn't matter, as long as a chain of them links all answers."""
    every = all_comparisons(rewards())
    linked = (every.chosen - every.rejected).abs() == 1
    weight = every.weight[linked]
    chain = Comparisons(every.prompt[linked], every.chosen[linked], every.rejected[linked], weight / weight.sum())
    tables = train(random_model(MODEL_SEED), chain, BETA, 400)
    assert divergence(optimum(tables[0], rewards(), BETA), tables[-1]).max() < 1e-3


def test_implicit_rewards_are_the_true_ones_up_to_a_constant_per_prompt(results: Results) -> None:
    shift = implicit_reward(results.trained, results.reference, BETA) - results.reward
    assert (shift.max(-1).values - shift.min(-1).values).max() < 1e-3
    # The constant is not any: -β log Z(x).
    expected = -BETA * log_partition(results.reference, results.reward, BETA)
    torch.testing.assert_close(shift.mean(-1), expected, rtol=0, atol=1e-3)
    assert expected.max() - expected.min() > 0.1


def test_the_rlhf_objective_reaches_its_maximum(results: Results) -> None:
    maximum = BETA * log_partition(results.reference, results.reward, BETA)
    reached = objective(results.trained, results.reference, results.reward, BETA)
    torch.testing.assert_close(reached, maximum, rtol=0, atol=1e-6)
    # What is missing anywhere is β KL(π ‖ π*): so the maximum is one, and no other policy has it.
    for policy in (results.reference, results.tables[10], results.tables[40]):
        missing = maximum - objective(policy, results.reference, results.reward, BETA)
        torch.testing.assert_close(missing, BETA * divergence(policy, results.optimum), rtol=1e-9, atol=1e-14)
        assert (missing > 0).all()
