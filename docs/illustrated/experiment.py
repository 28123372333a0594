"""What is computed once, for the page, for its figures and for the tests of the theory."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from illustrated.policy import answer_log_probabilities, random_model, train
from illustrated.world import BETA, all_comparisons, divergence, optimum, rewards, sampled_comparisons

MODEL_SEED = 1
STEPS = 200
SAMPLE_SIZES = (1_000, 10_000, 100_000, 1_000_000)
SAMPLE_SEEDS = (0, 1, 2)
SAMPLE_STEPS = 100
"""Enough to be much nearer to the optimum of a sample than that one is to π*."""


@dataclass(frozen=True, slots=True)
class Results:
    """Tables are log-probabilities, [X, Y] float64."""

    reward: Tensor
    reference: Tensor
    optimum: Tensor

    tables: list[Tensor]
    """The policy before each step on endlessly many comparisons, and after the last."""

    sampled: dict[int, list[float]]
    """By the number of comparisons that were drawn: KL(π* ‖ π) after training on them, one for each seed."""

    @property
    def trained(self) -> Tensor:
        return self.tables[-1]

    def distance(self, policy: Tensor) -> float:
        """KL(π* ‖ π), the mean over prompts, in nats."""
        return divergence(self.optimum, policy).mean().item()


def run() -> Results:
    """Trains thirteen tiny models: a matter of seconds, on one thread (more only wait for each other)."""
    reward = rewards()
    reference = answer_log_probabilities(random_model(MODEL_SEED)).detach()
    tables = train(random_model(MODEL_SEED), all_comparisons(reward), BETA, STEPS)
    results = Results(reward, reference, optimum(reference, reward, BETA), tables, {})
    for count in SAMPLE_SIZES:
        results.sampled[count] = [results.distance(trained_on(reward, count, seed)) for seed in SAMPLE_SEEDS]
    return results


def trained_on(reward: Tensor, count: int, seed: int) -> Tensor:
    return train(random_model(MODEL_SEED), sampled_comparisons(reward, count, seed), BETA, SAMPLE_STEPS)[-1]
