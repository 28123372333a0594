"""Which preference losses there are, and what each of them takes. Imports no torch: specs are checked with it.

`dpo_core.losses` has their formulas and papers.
"""

from __future__ import annotations

import difflib
import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Literal, get_args

LossName = Literal[
    "sigmoid",
    "robust",
    "hinge",
    "ipo",
    "exo_pair",
    "nca_pair",
    "sppo_hard",
    "apo_zero",
    "apo_down",
    "discopop",
    "sigmoid_norm",
    "simpo",
    "orpo",
    "cpo",
    "sft",
]
Parameter = Literal["label_smoothing", "gamma_beta_ratio", "discopop_tau"]


@dataclass(frozen=True, slots=True)
class LossFacts:
    beta: float | None = 0.1
    """β where none is given; None for a loss that has no β."""

    needs_reference: bool = True
    parameter: Parameter | None = None
    """What it takes beside β."""


LOSSES: Mapping[LossName, LossFacts] = {
    "sigmoid": LossFacts(parameter="label_smoothing"),
    "robust": LossFacts(parameter="label_smoothing"),
    "hinge": LossFacts(),
    "ipo": LossFacts(),
    "exo_pair": LossFacts(parameter="label_smoothing"),
    "nca_pair": LossFacts(),
    "sppo_hard": LossFacts(),
    "apo_zero": LossFacts(beta=0.05),
    "apo_down": LossFacts(),
    "discopop": LossFacts(parameter="discopop_tau"),
    "sigmoid_norm": LossFacts(beta=5.0),
    "simpo": LossFacts(beta=2.0, needs_reference=False, parameter="gamma_beta_ratio"),
    "orpo": LossFacts(needs_reference=False),
    "cpo": LossFacts(needs_reference=False),
    "sft": LossFacts(beta=None, needs_reference=False),
}

GAMMA_BETA_RATIO = 0.5
"""SimPO's γ/β where none is given: the ratio that its authors recommend to start from."""

DISCOPOP_TAU = 0.05
"""DiscoPOP's τ where none is given: the paper's."""

Loss = LossName | dict[LossName, float]


def weights_of(loss: Loss) -> dict[LossName, float]:
    """Losses and their weights; a loss named alone weighs 1."""
    return {loss: 1.0} if isinstance(loss, str) else loss


def needing_reference(loss: Loss) -> list[LossName]:
    return [name for name in weights_of(loss) if LOSSES[name].needs_reference]


def taking(loss: Loss, parameter: Parameter) -> list[LossName]:
    """The losses of a sum that take `parameter`."""
    return [name for name in weights_of(loss) if LOSSES[name].parameter == parameter]


def takers_of(parameter: Parameter) -> list[LossName]:
    return [name for name, facts in LOSSES.items() if facts.parameter == parameter]


def usual_betas(loss: Loss) -> dict[float, LossName]:
    """Every β that is usual for a loss of the sum, with the first loss that has it."""
    found: dict[float, LossName] = {}
    for name in weights_of(loss):
        beta = LOSSES[name].beta
        if beta is not None:
            found.setdefault(beta, name)
    return found or {0.1: next(iter(weights_of(loss)))}


def what_is_wrong(loss: object) -> str | None:
    """Why `loss` is no loss and no weighted sum of losses, in a sentence with the way out; None where it is one."""
    if isinstance(loss, str):
        return _unknown([loss])
    if not isinstance(loss, dict):
        return "`loss` must be the name of a loss, or an object of names and weights."
    if not loss:
        return '`loss` names no loss. Give one, such as "sigmoid", or names and weights.'
    for name, weight in loss.items():
        if (
            isinstance(weight, bool)
            or not isinstance(weight, int | float)
            or not (math.isfinite(weight) and weight > 0)
        ):
            return f"The weight of {name!r} in `loss` must be a finite number above 0, not {weight!r}."
    return _unknown(loss)


def _unknown(names: Iterable[object]) -> str | None:
    known = get_args(LossName)
    for name in names:
        if name not in known:
            near = difflib.get_close_matches(str(name), known, n=1)
            hint = f" Did you mean `{near[0]}`?" if near else ""
            return f"There is no loss {name!r}.{hint} Known: {', '.join(known)}."
    return None
