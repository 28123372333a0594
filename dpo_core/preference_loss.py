"""The loss of a run over preference pairs: a weighted sum of `dpo_core.losses`, as one callable."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Self

import torch
from torch import Tensor

from dpo_core import losses
from dpo_core.loss_table import DISCOPOP_TAU, GAMMA_BETA_RATIO, weights_of
from dpo_core.settings import given
from dpo_core.spec import TrainingSpec


@dataclass(frozen=True, slots=True)
class PreferenceLoss:
    """Σ weight · loss. The parameters are the same for all losses of the sum."""

    weights: tuple[tuple[str, float], ...]
    """Names of losses, as in `dpo_core.loss_table`, and what each is multiplied by."""

    beta: float
    label_smoothing: float = 0.0
    """ε of `sigmoid`, `robust` and `exo_pair`."""

    gamma: float = 0.0
    """`simpo`'s target margin γ, in units of its reward."""

    tau: float = DISCOPOP_TAU
    """`discopop`'s temperature."""

    @classmethod
    def of(cls, training: TrainingSpec) -> Self:
        """The loss that a resolved spec asks for.

        Raises:
            RunError: kind `user`; beta is still "auto".
        """
        beta, ratio, tau = given(training.beta, "beta"), training.gamma_beta_ratio, training.discopop_tau
        return cls(
            weights=tuple(weights_of(training.loss).items()),
            beta=beta,
            label_smoothing=training.label_smoothing,
            gamma=beta * (GAMMA_BETA_RATIO if ratio is None else ratio),
            tau=DISCOPOP_TAU if tau is None else tau,
        )

    def __call__(self, policy: Tensor, reference: Tensor, tokens: Tensor) -> Tensor:
        """One value per pair.

        Args:
            policy, reference: [2, B] float64 sums of log-probabilities; row 0 chosen, row 1 rejected.
            tokens: [2, B] numbers of response tokens.

        Returns:
            [B] float64.
        """
        parts = self.parts(policy, reference, tokens)
        return torch.stack([weight * parts[name]() for name, weight in self.weights]).sum(0)

    def parts(self, policy: Tensor, reference: Tensor, tokens: Tensor) -> Mapping[str, Callable[[], Tensor]]:
        """Every loss there is, by name, still to be computed: a sum takes those it needs."""
        beta, smoothing = self.beta, self.label_smoothing
        return {
            "sigmoid": lambda: losses.sigmoid_loss(policy, reference, beta=beta, label_smoothing=smoothing),
            "robust": lambda: losses.robust_loss(policy, reference, beta=beta, label_smoothing=smoothing),
            "hinge": lambda: losses.hinge_loss(policy, reference, beta=beta),
            "ipo": lambda: losses.ipo_loss(policy, reference, tokens, beta=beta),
            "exo_pair": lambda: losses.exo_pair_loss(policy, reference, beta=beta, label_smoothing=smoothing),
            "nca_pair": lambda: losses.nca_pair_loss(policy, reference, beta=beta),
            "sppo_hard": lambda: losses.sppo_hard_loss(policy, reference, beta=beta),
            "apo_zero": lambda: losses.apo_zero_loss(policy, reference, beta=beta),
            "apo_down": lambda: losses.apo_down_loss(policy, reference, beta=beta),
            "discopop": lambda: losses.discopop_loss(policy, reference, beta=beta, tau=self.tau),
            "sigmoid_norm": lambda: losses.sigmoid_norm_loss(policy, reference, tokens, beta=beta),
            "simpo": lambda: losses.simpo_loss(policy, tokens, beta=beta, gamma=self.gamma),
            "orpo": lambda: losses.orpo_loss(policy, tokens, beta=beta),
            "cpo": lambda: losses.cpo_loss(policy, tokens, beta=beta),
            "sft": lambda: losses.sft_loss(policy, tokens),
        }
