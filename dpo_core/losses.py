"""Training losses as pure functions of log-probabilities. Imports torch alone.

Shapes: B sequences (or pairs). Everything per sequence is float64: a sum of
a hundred float32 log-probabilities is off by more than the 1e-5 to which runs are compared.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F  # noqa: N812 (its usual name)
from torch import Tensor


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


# The losses over preference pairs. All take
#     policy, reference: [2, B] log π(y|x) and log π_ref(y|x); row 0 chosen (w), row 1 rejected (l),
#     tokens: [2, B] numbers of response tokens m ≥ 1,
# as far as they need them, and return [B]. In their formulas
#     d = log π − log π_ref,  Δ = d_w − d_l,  σ the logistic function,  ε = label_smoothing,  β > 0.


def sigmoid_loss(policy: Tensor, reference: Tensor, *, beta: float, label_smoothing: float = 0.0) -> Tensor:
    """The DPO loss (Rafailov et al. 2023, arXiv:2305.18290, equation 7).

        −(1−ε) log σ(βΔ) − ε log σ(−βΔ),    0 ≤ ε < ½

    ε > 0 is conservative DPO: a label is taken to be flipped with probability ε (Mitchell 2023, "A note on
    DPO with noisy preferences & relationship to IPO", equation 3).
    """
    scaled = beta * _margin(policy - reference)
    return -(1 - label_smoothing) * F.logsigmoid(scaled) - label_smoothing * F.logsigmoid(-scaled)


def robust_loss(policy: Tensor, reference: Tensor, *, beta: float, label_smoothing: float) -> Tensor:
    """Robust DPO: unbiased where labels are flipped with probability ε (Chowdhury et al. 2024, arXiv:2403.00409, §3.1).

        [−(1−ε) log σ(βΔ) + ε log σ(−βΔ)] / (1−2ε),    0 ≤ ε < ½

    Its mean over flipped and unflipped labels is the DPO loss of the true label. Not bounded from below.
    """
    scaled = beta * _margin(policy - reference)
    difference = -(1 - label_smoothing) * F.logsigmoid(scaled) + label_smoothing * F.logsigmoid(-scaled)
    return difference / (1 - 2 * label_smoothing)


def hinge_loss(policy: Tensor, reference: Tensor, *, beta: float) -> Tensor:
    """SLiC's hinge on normalised likelihoods (Zhao et al. 2023, arXiv:2305.10425; Liu et al. 2023, arXiv:2309.06657).

        max(0, 1 − βΔ)

    The gradient is 0 from Δ = 1/β on: 1/β is the margin.
    """
    return torch.relu(1 - beta * _margin(policy - reference))


def ipo_loss(policy: Tensor, reference: Tensor, tokens: Tensor, *, beta: float) -> Tensor:
    """IPO: a margin to reach, not to exceed (Azar et al. 2023, arXiv:2310.12036, equation 17, with τ = β).

        (d_w/m_w − d_l/m_l − 1/(2β))²

    Equation 17 has d instead of d/m. Per token is what TRL does, after asking the authors: with sums, one β
    would mean another strength at every length.
    """
    return (_margin((policy - reference) / tokens) - 1 / (2 * beta)).square()


def exo_pair_loss(policy: Tensor, reference: Tensor, *, beta: float, label_smoothing: float) -> Tensor:
    """EXO for pairs: the reverse KL from labels that are right by 1−ε (Ji et al. 2024, arXiv:2402.00856, equation 16).

        q [log q − log(1−ε)] + (1−q) [log(1−q) − log ε],    q = σ(βΔ),  0 < ε < ½

    Zero where q = 1−ε.
    """
    scaled = beta * _margin(policy - reference)
    chosen = F.logsigmoid(scaled) - math.log1p(-label_smoothing)
    rejected = F.logsigmoid(-scaled) - math.log(label_smoothing)
    return torch.sigmoid(scaled) * chosen + torch.sigmoid(-scaled) * rejected


def nca_pair_loss(policy: Tensor, reference: Tensor, *, beta: float) -> Tensor:
    """Noise-contrastive alignment with K = 2 (Chen et al. 2024, arXiv:2402.05369, section 4).

        −log σ(βd_w) − ½ log σ(−βd_w) − ½ log σ(−βd_l)

    Holds the chosen answer's own likelihood up, where DPO only looks at the difference.
    """
    chosen, rejected = (beta * (policy - reference)).unbind()
    return -F.logsigmoid(chosen) - (F.logsigmoid(-chosen) + F.logsigmoid(-rejected)) / 2


def sppo_hard_loss(policy: Tensor, reference: Tensor, *, beta: float) -> Tensor:
    """SPPO where the chosen answer wins with probability 1 (Wu et al. 2024, arXiv:2405.00675, equation 4.12, η = 1/β).

        (d_w − 1/(2β))² + (d_l + 1/(2β))²

    Equation 4.7 is the same for one answer.
    """
    chosen, rejected = (policy - reference).unbind()
    return (chosen - 1 / (2 * beta)).square() + (rejected + 1 / (2 * beta)).square()


def apo_zero_loss(policy: Tensor, reference: Tensor, *, beta: float) -> Tensor:
    """APO-zero: chosen up, rejected down (D'Oosterlinck et al. 2024, arXiv:2408.06266, equation 7, plus 1).

    1 − σ(βd_w) + σ(βd_l)
    """
    chosen, rejected = (beta * (policy - reference)).unbind()
    return torch.sigmoid(-chosen) + torch.sigmoid(rejected)


def apo_down_loss(policy: Tensor, reference: Tensor, *, beta: float) -> Tensor:
    """APO-down: both down, rejected further (D'Oosterlinck et al. 2024, arXiv:2408.06266, equation 8, plus 1).

    σ(βd_w) + 1 − σ(βΔ)
    """
    ratios = policy - reference
    return torch.sigmoid(beta * ratios[0]) + torch.sigmoid(-beta * _margin(ratios))


def discopop_loss(policy: Tensor, reference: Tensor, *, beta: float, tau: float) -> Tensor:
    """DiscoPOP, the log-ratio modulated loss (Lu et al. 2024, arXiv:2406.08414, equation 5).

        (1−k) (−log σ(u)) + k e^(−u),    u = βΔ,  k = σ(u/τ),  τ > 0 (the paper's: 0.05)

    k e^(−u) is taken as exp(log k − u): for a large negative u its factors are 0 and infinity.
    """
    scaled = beta * _margin(policy - reference)
    exponential = torch.exp(F.logsigmoid(scaled / tau) - scaled)
    return exponential - torch.sigmoid(-scaled / tau) * F.logsigmoid(scaled)


def sigmoid_norm_loss(policy: Tensor, reference: Tensor, tokens: Tensor, *, beta: float) -> Tensor:
    """DPO with length-normalised rewards (Lambert et al. 2024, Tülu 3, arXiv:2411.15124, equation 6).

        −log σ(β (d_w/m_w − d_l/m_l))

    β is per token here: 5 is usual, where `sigmoid` takes 0.1.
    """
    return -F.logsigmoid(beta * _margin((policy - reference) / tokens))


def simpo_loss(policy: Tensor, tokens: Tensor, *, beta: float, gamma: float) -> Tensor:
    """SimPO: mean log-probabilities, a target margin, no reference (Meng et al. 2024, arXiv:2405.14734, equation 6).

    −log σ(β log π_w/m_w − β log π_l/m_l − γ),    γ ≥ 0
    """
    return -F.logsigmoid(beta * _margin(policy / tokens) - gamma)


def orpo_loss(policy: Tensor, tokens: Tensor, *, beta: float) -> Tensor:
    """ORPO: cross-entropy of the chosen answer and an odds ratio (Hong et al. 2024, arXiv:2403.07691, eq. 6 and 7).

        −log π_w/m_w − β log σ(log odds_w − log odds_l),    odds = P/(1−P),  P = exp(log π/m)

    β is the paper's λ. The cross-entropy is the answer's alone, as the paper has it; TRL's is the prompt's too.
    """
    mean = policy / tokens
    # A certain answer has infinite odds, and NaN for their gradient: 1 − P is held at float32's epsilon or above.
    bounded = mean.clamp(max=-torch.finfo(torch.float32).eps)
    log_odds = bounded - torch.log(-torch.expm1(bounded))
    return -mean[0] - beta * F.logsigmoid(_margin(log_odds))


def cpo_loss(policy: Tensor, tokens: Tensor, *, beta: float) -> Tensor:
    """CPO: DPO with a uniform reference, and cross-entropy of the chosen answer (Xu et al. 2024, arXiv:2401.08417, §3).

        −log σ(β (log π_w − log π_l)) − log π_w/m_w

    The paper writes the second term as a sum over tokens; per token is what its authors and TRL compute.
    """
    return -F.logsigmoid(beta * _margin(policy)) + sft_loss(policy, tokens)


def sft_loss(policy: Tensor, tokens: Tensor) -> Tensor:
    """Cross-entropy per token of the chosen answer (as in Pang et al. 2024, arXiv:2404.19733, equation 1).

        −log π_w/m_w

    Every pair counts the same, so that the loss of a batch does not depend on how it is split; TRL takes
    the mean over all tokens of a micro-batch, where a pair counts by its length.
    """
    return -policy[0] / tokens[0]


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


def _margin(values: Tensor) -> Tensor:
    """[2, B] → [B]: chosen − rejected."""
    return values[0] - values[1]
