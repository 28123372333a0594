"""Every loss beside TRL's own code for it, in float64: values and gradients by the log-probability of each token.

`make bench-losses` runs it in TRL's environment. The trainers' methods are called as they are, on a stand-in for the
trainer that holds the settings they read, and on a model that answers with log-probabilities made here.
"""

from __future__ import annotations

import sys
from collections import defaultdict
from collections.abc import Callable
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor
from trl import DPOTrainer, __version__
from trl.experimental.cpo import CPOTrainer
from trl.experimental.orpo import ORPOTrainer

from dpo_core.preference_loss import PreferenceLoss

PAIRS, PROMPT, LONGEST = 8, 3, 12
TOLERANCE = 1e-6


@dataclass(frozen=True)
class Batch:
    """Log-probabilities of each token; B pairs, T = LONGEST tokens of an answer, padding included."""

    policy: Tensor
    """[2, B, T], chosen then rejected; 0 on padding. A leaf, whose gradient is compared."""

    reference: Tensor
    """[2, B] sums."""

    mask: Tensor
    """[2, B, T] bool."""

    @classmethod
    def make(cls, seed: int) -> Batch:
        generator = torch.Generator().manual_seed(seed)
        lengths = torch.randint(2, LONGEST + 1, (2, PAIRS, 1), generator=generator)
        mask = torch.arange(LONGEST) < lengths
        # From an almost certain token to an unlikely one; the reference is a few tenths of a nat a token away.
        drawn = -4 * torch.rand(2, PAIRS, LONGEST, generator=generator, dtype=torch.float64) - 0.01
        moved = drawn + 0.4 * torch.randn(drawn.shape, generator=generator, dtype=torch.float64)
        return cls((drawn * mask).requires_grad_(), (moved * mask).sum(-1), mask)

    def of(self, pair: int) -> Batch:
        policy, reference, mask = (it[:, pair : pair + 1] for it in (self.policy, self.reference, self.mask))
        return Batch(policy.detach().requires_grad_(), reference, mask)

    @property
    def sums(self) -> Tensor:
        return (self.policy * self.mask).sum(-1)

    @property
    def tokens(self) -> Tensor:
        return self.mask.sum(-1)


def ours(loss: PreferenceLoss, batch: Batch) -> Tensor:
    return loss(batch.sums, batch.reference, batch.tokens.double()).mean()


def dpo_trainer(loss: PreferenceLoss, batch: Batch) -> Tensor:
    """DPOTrainer's loss, with its reference precomputed."""
    accelerator = SimpleNamespace(device=torch.device("cpu"), gather=lambda it: it, gather_for_metrics=lambda it: it)
    trainer = SimpleNamespace(
        model=SimpleNamespace(training=True),
        accelerator=accelerator,
        args=SimpleNamespace(discopop_tau=loss.tau),
        loss_types=[name for name, _ in loss.weights],
        loss_weights=[weight for _, weight in loss.weights],
        beta=loss.beta,
        label_smoothing=loss.label_smoothing,
        f_divergence_type="reverse_kl",
        ld_alpha=None,
        use_weighting=False,
        aux_loss_enabled=False,
        precompute_ref_logps=True,
        _metrics={"train": defaultdict(list)},
        _total_train_tokens=0,
        _tp_size=1,
    )
    answers = (batch.policy * batch.mask).flatten(0, 1)  # as transformers answers: 0 where there is no label
    rows = len(answers)
    prompt = torch.zeros(rows, PROMPT, dtype=torch.bool)
    # A token's log-probability stands one place before it: the prompt's last place is the answer's first token.
    log_probs = torch.cat([torch.zeros(rows, PROMPT - 1, dtype=torch.float64), answers], dim=1)
    mask = torch.cat([prompt, batch.mask.flatten(0, 1)], dim=1)
    inputs = {
        "input_ids": torch.zeros_like(mask, dtype=torch.int64),
        "attention_mask": mask | torch.cat([~prompt, torch.zeros_like(batch.mask.flatten(0, 1))], dim=1),
        "completion_mask": mask.long(),
        "ref_chosen_logps": batch.reference[0],
        "ref_rejected_logps": batch.reference[1],
    }
    unused = torch.zeros_like(log_probs)
    outputs = SimpleNamespace(log_probs=log_probs, entropy=unused, mean_logits=unused, is_top1=unused.bool())
    value: Tensor = DPOTrainer._compute_loss(trainer, lambda **_: outputs, inputs, return_outputs=False)
    return value


def reference_free(trainer_class: Any, batch: Batch, *, mean: bool, **settings: Any) -> Tensor:
    """The whole loss of the CPO or ORPO trainer; its cross-entropy is given as the mean over the answer's tokens."""
    log_probabilities = batch.sums / batch.tokens if mean else batch.sums
    cross_entropy = -batch.policy[0][batch.mask[0]].mean()
    nothing = torch.zeros(1)
    trainer = SimpleNamespace(
        accelerator=SimpleNamespace(device=torch.device("cpu"), gather_for_metrics=lambda it: it),
        aux_loss_enabled=False,
        concatenated_forward=lambda *_: (*log_probabilities, nothing, nothing, cross_entropy),
        **settings,
    )
    for name in ("cpo_loss", "odds_ratio_loss"):
        if hasattr(trainer_class, name):
            setattr(trainer, name, getattr(trainer_class, name).__get__(trainer))
    value: Tensor = trainer_class.get_batch_loss_metrics(trainer, None, {})[0]
    return value


def cpo_trainer(loss: PreferenceLoss, batch: Batch) -> Tensor:
    """CPOTrainer as CPO, or as SimPO, which it is without the cross-entropy."""
    name = loss.weights[0][0]
    return reference_free(
        CPOTrainer,
        batch,
        mean=name == "simpo",
        loss_type="simpo" if name == "simpo" else "sigmoid",
        beta=loss.beta,
        simpo_gamma=loss.gamma,
        cpo_alpha=float(name == "cpo"),
        alpha=0.0,
        label_smoothing=0.0,
    )


def orpo_trainer(loss: PreferenceLoss, batch: Batch) -> Tensor:
    return reference_free(ORPOTrainer, batch, mean=True, beta=loss.beta)


def difference(loss: PreferenceLoss, theirs: Callable[[PreferenceLoss, Batch], Tensor], batch: Batch) -> list[float]:
    """Of the value, and the largest of the gradient by any token."""
    found = []
    for function in (ours, theirs):
        value = function(loss, batch)
        (gradient,) = torch.autograd.grad(value, batch.policy)
        found.append((value.detach(), gradient))
    (our_value, our_gradient), (their_value, their_gradient) = found
    return [(our_value - their_value).abs().item(), (our_gradient - their_gradient).abs().max().item()]


def sole(name: str, **parameters: Any) -> PreferenceLoss:
    return PreferenceLoss(((name, 1.0),), **{"beta": 0.1} | parameters)


BY_TOKENS = "TRL weighs pairs by their tokens; here each counts once, however the batch is split"
CASES: list[tuple[PreferenceLoss, Callable[[PreferenceLoss, Batch], Tensor], str]] = [
    (sole("sigmoid"), dpo_trainer, ""),
    (sole("sigmoid", label_smoothing=0.1), dpo_trainer, "TRL ignores label_smoothing for sigmoid"),
    (sole("robust", label_smoothing=0.1), dpo_trainer, ""),
    (sole("hinge"), dpo_trainer, ""),
    (sole("ipo"), dpo_trainer, ""),
    (sole("exo_pair", label_smoothing=1e-3), dpo_trainer, ""),
    (sole("nca_pair"), dpo_trainer, ""),
    (sole("sppo_hard"), dpo_trainer, ""),
    (sole("apo_zero", beta=0.05), dpo_trainer, ""),
    (sole("apo_down"), dpo_trainer, ""),
    (sole("discopop"), dpo_trainer, ""),
    (sole("sigmoid_norm", beta=5.0), dpo_trainer, ""),
    (sole("simpo", beta=2.0, gamma=1.0), cpo_trainer, ""),
    (sole("orpo"), orpo_trainer, BY_TOKENS),
    (sole("cpo"), cpo_trainer, BY_TOKENS),
    (sole("sft"), dpo_trainer, BY_TOKENS),
    (PreferenceLoss((("sigmoid", 0.8), ("apo_zero", 0.2)), beta=0.1), dpo_trainer, ""),
]


def main() -> int:
    """0 where every pair by itself agrees, but for the label smoothing that TRL leaves out."""
    sys.stdout.write(
        f"TRL {__version__}, torch {torch.__version__}, float64; the largest difference of value, gradient\n"
    )
    sys.stdout.write(f"{'loss':30} {'one pair at a time':>21} {f'batches of {PAIRS}':>21}\n")
    wrong = []
    batches = [Batch.make(seed) for seed in range(4)]
    pairs = [batch.of(pair) for batch in batches for pair in range(PAIRS)]
    for loss, theirs, reason in CASES:
        name = " + ".join(f"{weight:g} {name}" if weight != 1 else name for name, weight in loss.weights)
        name += f", ε = {loss.label_smoothing:g}" if loss.label_smoothing else ""
        alone, together = (
            torch.tensor([difference(loss, theirs, it) for it in those]).amax(0).tolist() for those in (pairs, batches)
        )
        columns = " ".join(f"{value:9.1e}, {gradient:9.1e}" for value, gradient in (alone, together))
        sys.stdout.write(f"{name:30} {columns}  {reason if max(alone + together) > TOLERANCE else ''}\n")
        known = reason if reason != BY_TOKENS else ""  # one pair by itself weighs as much here as there
        if (max(alone) > TOLERANCE and not known) or (max(together) > TOLERANCE and not reason):
            wrong.append(name)
    sys.stdout.write(f"not as TRL's: {', '.join(wrong)}\n" if wrong else "all as expected\n")
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
