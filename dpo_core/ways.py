"""Which way of packing a model takes: the fastest that gives its own numbers, never silently another one.

A model takes the packed way if transformers lets us replace its attention, if every layer's attention is full
and causal, and if a small packed batch gives what the model's own attention gives on padded rows.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from dpo_core import attention
from dpo_core.objective import Score
from dpo_core.packing import arrange
from dpo_core.records import TokenPair
from dpo_core.run_directory import Event
from dpo_core.scorer import Scorer
from dpo_core.spec import Way

if TYPE_CHECKING:
    from transformers import PreTrainedModel

FULL = frozenset({"full_attention", "attention"})
"""transformers' names for layers that see everything before them."""
EXACT = 1e-4
"""Largest difference of a token's log-probability between two ways in float32."""
COARSE = 0.05
"""Mean difference in bfloat16; also the relative error of a half-precision attention kernel."""


@dataclass(frozen=True, slots=True)
class Choice:
    way: Way
    event: Event | None
    """Where the model could not take the way that was asked for."""


def choose(scorer: Scorer, score: Score, asked: Way, *, bfloat16: bool) -> Choice:
    """Settles how `scorer` runs its head and its attention; `score` runs it. All ranks call it.

    `scorer.whole` and the model's attention implementation are set as they have to be.
    """
    causal = scorer.causal
    own = causal.config._attn_implementation
    trial = Trial(score, sample(causal.config.get_text_config().vocab_size), bfloat16)
    notes = []
    scorer.whole = True
    expected = trial.measure("padded")
    scorer.whole = False
    if (reason := head_differs(trial, expected)) is not None:
        scorer.whole = True
        notes.append(f"its head runs on all positions, as {reason}")
    way: Way = asked
    if asked != "padded" and (reason := packing_differs(causal, trial, asked, expected)) is not None:
        causal.set_attn_implementation(own)
        way = "padded"
        notes.append(f"its rows are padded and prompts are computed twice, as {reason}")
    if not notes:
        return Choice(way, None)
    message = f"{type(causal).__name__} trains exactly, but not the fastest way: {'; '.join(notes)}."
    return Choice(way, Event(level="info", code="packing_limited", message=message, data={"way": way}))


def sample(vocabulary_size: int) -> list[TokenPair]:
    """Two made-up pairs with prompts and answers of different lengths."""
    generator = torch.Generator().manual_seed(0)
    pairs = []
    for prompt, chosen, rejected in ((19, 9, 13), (7, 12, 5)):
        tokens = torch.randint(vocabulary_size, (prompt + chosen + rejected,), generator=generator).tolist()
        answers = tokens[prompt : prompt + chosen], tokens[prompt + chosen :]
        pairs.append(TokenPair(0, tokens[:prompt] + answers[0], tokens[:prompt] + answers[1], prompt, prompt))
    return pairs


@dataclass(frozen=True, slots=True)
class Trial:
    """One small batch, measured in several ways."""

    score: Score
    pairs: list[TokenPair]
    bfloat16: bool

    def measure(self, way: Way) -> Tensor:
        """Every sequence's token log-probabilities, one after the other, the same order for all ways."""
        batch = arrange(self.pairs, way)
        with torch.no_grad():
            values = self.score(batch)[0]
        return values[batch.entries.to(values.device)]

    def differs(self, found: Tensor, expected: Tensor, what: str) -> str | None:
        difference = (found - expected).abs()
        largest, mean = float(difference.max()), float(difference.mean())
        if (mean <= COARSE) if self.bfloat16 else (largest <= EXACT):
            return None
        return f"{what} gave log-probabilities up to {largest:.2g} off"


def head_differs(trial: Trial, expected: Tensor) -> str | None:
    """Why the head can't be used by itself, if it can't."""
    try:
        found = trial.measure("padded")
    except (AttributeError, TypeError, IndexError, NotImplementedError) as error:
        return f"it can't be called by itself ({error})"
    return trial.differs(found, expected, "its head by itself")


def packing_differs(causal: PreTrainedModel, trial: Trial, way: Way, expected: Tensor) -> str | None:
    """Puts our attention into the model; says why it can't be used, if it can't."""
    kinds = set(getattr(causal.config.get_text_config(), "layer_types", None) or ()) - FULL
    if kinds:
        return f"it has layers of {', '.join(sorted(kinds))}"
    if causal.device.type == "cuda" and trial.bfloat16:
        error = attention.flash_error(causal.device, torch.bfloat16)
        if not error <= COARSE:
            return f"this machine's variable-length attention is {error:.2g} off"
    attention.register()
    try:
        causal.set_attn_implementation(attention.NAME)
        found = trial.measure(way)
    except (attention.UnsupportedAttentionError, ValueError, TypeError, AttributeError) as error:
        return f"its attention can't be replaced ({error})"
    return trial.differs(found, expected, "a packed row")
