"""A world small enough to enumerate: a language of three letters, and a reward that is known.

A prompt is one letter, an answer two, so that every prompt has nine answers and a model of this vocabulary can
give no others: its probabilities of the nine sum to one, and every expectation is a sum.
Shapes: X = 3 prompts, Y = 9 answers, B pairs. All numbers are float64; logarithms are natural.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass

import torch
from torch import Tensor

from dpo_core.losses import gradient_weight, preference_probability, sigmoid_loss

LETTERS = "abc"
ANSWERS = tuple(first + second for first in LETTERS for second in LETTERS)
BETA = 0.5

REWARDS = (
    #  aa    ab    ac    ba    bb    bc    ca    cb    cc
    (-0.8, 0.4, 0.9, -0.3, 0.7, -0.1, 0.2, 1.0, -0.5),  # to a
    (0.3, -0.6, 0.1, 0.8, -0.9, 0.5, -0.2, 0.6, 0.0),  # to b
    (-0.4, 0.2, -0.7, 1.0, 0.6, -0.1, 0.4, -0.9, 0.9),  # to c
)
"""What each answer is worth: made up, in steps of a tenth so that a figure shows them apart."""


def rewards() -> Tensor:
    """r(x, y): [X, Y]."""
    return torch.tensor(REWARDS, dtype=torch.float64)


def sequences() -> list[list[int]]:
    """Every prompt with every answer, as token ids: X·Y of them, three tokens each, in the order of an [X, Y] table."""
    return [list(tokens) for tokens in itertools.product(range(len(LETTERS)), repeat=3)]


# -- what the theory says ----------------------------------------------------------------------------


def log_partition(reference: Tensor, reward: Tensor, beta: float) -> Tensor:
    """log Z(x) = log Σ_y π_ref(y|x) exp(r(x, y)/β) (arXiv:2305.18290, equation 4).

    Args:
        reference: [X, Y] log π_ref(y|x).
        reward: [X, Y].

    Returns:
        [X].
    """
    return (reference + reward / beta).logsumexp(-1)


def optimum(reference: Tensor, reward: Tensor, beta: float) -> Tensor:
    """log π*(y|x), where π*(y|x) = π_ref(y|x) exp(r(x, y)/β) / Z(x) (equation 4); shapes as in `log_partition`.

    Returns:
        [X, Y].
    """
    return reference + reward / beta - log_partition(reference, reward, beta).unsqueeze(-1)


def divergence(of: Tensor, from_: Tensor) -> Tensor:
    """KL(of ‖ from_) for every prompt, in nats.

    Args:
        of, from_: [X, Y] log-probabilities.

    Returns:
        [X].
    """
    return (of.exp() * (of - from_)).sum(-1)


def objective(policy: Tensor, reference: Tensor, reward: Tensor, beta: float) -> Tensor:
    """What alignment maximises: E_π[r(x, y)] − β KL(π ‖ π_ref) for every prompt (equation 3).

    Args:
        policy, reference: [X, Y] log-probabilities.
        reward: [X, Y].

    Returns:
        [X].
    """
    return (policy.exp() * reward).sum(-1) - beta * divergence(policy, reference)


# -- what a person says ------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Comparisons:
    """Pairs of two different answers to one prompt, and the share of each among all judgements."""

    prompt: Tensor
    """[B] int64, as are the two below: indices into an [X, Y] table."""

    chosen: Tensor
    rejected: Tensor

    weight: Tensor
    """[B] float64, sums to one."""

    def loss(self, policy: Tensor, reference: Tensor, beta: float) -> Tensor:
        """The weighted mean of dpo_core's DPO loss.

        Args:
            policy, reference: [X, Y] log-probabilities.

        Returns:
            A scalar.
        """
        sides = torch.stack([self.chosen, self.rejected])
        losses = sigmoid_loss(policy[self.prompt, sides], reference[self.prompt, sides], beta=beta)
        return (self.weight * losses).sum()


def all_comparisons(reward: Tensor) -> Comparisons:
    """Endlessly many judgements: every ordered pair, weighted by how often Bradley–Terry would see it.

    Prompts and pairs of answers are asked for equally often; y_w is preferred to y_l with σ(r_w − r_l).

    Args:
        reward: [X, Y].
    """
    prompt, chosen, rejected = (reward.new_ones(*reward.shape, reward.shape[1]) > 0).nonzero().unbind(-1)
    different = chosen != rejected
    prompt, chosen, rejected = prompt[different], chosen[different], rejected[different]
    preferred = preference_probability(reward[prompt, chosen], reward[prompt, rejected])
    return Comparisons(prompt, chosen, rejected, preferred / preferred.sum())


def sampled_comparisons(reward: Tensor, count: int, seed: int) -> Comparisons:
    """`count` judgements drawn as `all_comparisons` weighs them; equal ones are counted together."""
    every = all_comparisons(reward)
    generator = torch.Generator().manual_seed(seed)
    # By the cumulated shares and not by torch.multinomial, so that any machine draws the same pairs.
    draws = torch.rand(count, generator=generator, dtype=torch.float64)
    drawn = torch.searchsorted(every.weight.cumsum(0), draws).clamp(max=len(every.weight) - 1)
    counts = torch.bincount(drawn, minlength=len(every.weight)).double()
    return Comparisons(every.prompt, every.chosen, every.rejected, counts / count)


def expected_divergence(policy: Tensor, reward: Tensor, beta: float, count: int) -> float:
    """What `count` judgements leave of KL(π* ‖ π), by the asymptotics of maximum likelihood: the mean over prompts.

    DPO is maximum likelihood of Bradley–Terry, so its rewards scatter around the true ones with the covariance F⁻¹/n,
    F the Fisher information of one judgement: the mean of the squared slope of its log-likelihood, which for the pair
    (w, l) is σ(r_l − r_w) (e_w − e_l). To second order KL(π* ‖ π) = ½ Var_π*[δ] where log π = log π* + δ and δ = δr/β.

    Args:
        policy: [X, Y] log π*.
        reward: [X, Y].
    """
    every = all_comparisons(reward)
    prompts, answers = reward.shape
    slope = torch.nn.functional.one_hot(every.chosen, answers) - torch.nn.functional.one_hot(every.rejected, answers)
    won, lost = reward[every.prompt, every.chosen], reward[every.prompt, every.rejected]
    slopes = gradient_weight(won, lost).unsqueeze(-1) * slope
    total = 0.0
    for prompt in range(prompts):
        here = every.prompt == prompt
        information = slopes[here].T @ (every.weight[here].unsqueeze(-1) * slopes[here])
        shares = policy[prompt].exp()
        spread = shares.diag() - shares.outer(shares)
        # A constant added to all rewards of a prompt is not observed and does not matter: hence the pseudo-inverse.
        total += (spread @ torch.linalg.pinv(information, hermitian=True)).trace().item() / (2 * count * beta**2)
    return total / prompts
