"""Training losses as pure functions of log-probabilities. Imports torch alone.

Shapes: B sequences (or pairs), T positions, V vocabulary. Everything per sequence is float64: a sum of
a hundred float32 log-probabilities is off by more than the 1e-5 to which runs are compared.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F  # noqa: N812 (its usual name)
from torch import Tensor


def token_log_probabilities(logits: Tensor, tokens: Tensor) -> Tensor:
    """log π(token | everything before it).

    Args:
        logits: [..., V]; `logits[t]` predicts `tokens[t]` (the caller has shifted them).
        tokens: [...] int64.

    Returns:
        [...] float32, or float64 where the logits are; natural logarithms.
    """
    raised = logits.to(torch.promote_types(logits.dtype, torch.float32))
    return -F.cross_entropy(raised.flatten(0, -2), tokens.flatten(), reduction="none").view(tokens.shape)


def sequence_log_probabilities(logits: Tensor, tokens: Tensor, mask: Tensor) -> Tensor:
    """log π(y|x) = Σ_t log π(y_t | x, y_<t), over the positions where `mask` is true.

    Args:
        logits: [B, T, V]; `logits[:, t]` predicts `tokens[:, t]`.
        tokens: [B, T] int64.
        mask: [B, T] bool; true on response tokens, false on prompt and padding.

    Returns:
        [B] float64, natural logarithms.
    """
    return (token_log_probabilities(logits, tokens).double() * mask).sum(-1)


def sigmoid_loss(
    policy_chosen: Tensor,
    policy_rejected: Tensor,
    reference_chosen: Tensor,
    reference_rejected: Tensor,
    *,
    beta: float,
    label_smoothing: float = 0.0,
) -> Tensor:
    """The DPO loss (Rafailov et al. 2023, arXiv:2305.18290, equation 7), one value a pair.

    With Δ = (log π(y_w|x) − log π_ref(y_w|x)) − (log π(y_l|x) − log π_ref(y_l|x)) and ε = label_smoothing:

        −(1−ε) log σ(βΔ) − ε log σ(−βΔ)

    ε > 0 is conservative DPO: a label is taken to be flipped with probability ε (Mitchell 2023, "A note on
    DPO with noisy preferences", equation 3).

    Args:
        policy_chosen, policy_rejected, reference_chosen, reference_rejected: [B] sums of log-probabilities.

    Returns:
        [B], in the dtype of the arguments.
    """
    scaled = beta * ((policy_chosen - reference_chosen) - (policy_rejected - reference_rejected))
    return -(1 - label_smoothing) * F.logsigmoid(scaled) - label_smoothing * F.logsigmoid(-scaled)


def supervised_loss(log_probabilities: Tensor) -> Tensor:
    """Cross-entropy of the completion, −log π(y|x), summed over its tokens.

    The mean over tokens is the caller's: its divisor is the number of completion tokens of the whole
    batch, which no single rank or micro-batch knows.

    Args:
        log_probabilities: [B] sums over each completion.

    Returns:
        [B].
    """
    return -log_probabilities


def implicit_reward(policy: Tensor, reference: Tensor, beta: float) -> Tensor:
    """r̂(x, y) = β (log π(y|x) − log π_ref(y|x)), up to a constant per prompt (arXiv:2305.18290, section 4).

    Args:
        policy, reference: [B] sums of log-probabilities.
    """
    return beta * (policy - reference)


def preference_probability(reward_chosen: Tensor, reward_rejected: Tensor) -> Tensor:
    """Bradley–Terry: P(y_w ≻ y_l) = σ(r̂_w − r̂_l) (Bradley and Terry 1952; arXiv:2305.18290, equation 1)."""
    return torch.sigmoid(reward_chosen - reward_rejected)


def gradient_weight(reward_chosen: Tensor, reward_rejected: Tensor) -> Tensor:
    """σ(r̂_l − r̂_w): how strongly a pair pulls on the policy (arXiv:2305.18290, section 4, the gradient of eq. 7).

    ∂loss/∂log π(y_w|x) = −β σ(r̂_l − r̂_w): near 1 where the implicit reward ranks the pair wrongly.
    """
    return torch.sigmoid(reward_rejected - reward_chosen)
