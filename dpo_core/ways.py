"""Which way of packing a model takes: the fastest that gives its own numbers, never silently another one.

A model takes the packed way if transformers lets us replace its attention, if every layer's attention is full
and causal, and if a small packed batch gives what the model's own attention gives on padded rows.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from dpo_core import attention, by_rows, compiling, last_layer
from dpo_core.data.records import TokenPair
from dpo_core.engine import World
from dpo_core.objective import Score
from dpo_core.packing import arrange
from dpo_core.run_directory import Event
from dpo_core.scorer import Scorer
from dpo_core.spec import Way
from dpo_core.token_scores import capped

if TYPE_CHECKING:
    from transformers import PreTrainedModel

FULL = frozenset({"full_attention", "attention"})
"""transformers' names for layers that see everything before them."""
ELSEWHERE = "another rank found out"
EXACT = 1e-4
"""Largest difference of a token's log-probability between two ways in float32."""
FINE = 2**-6
"""Largest error of a logit in bfloat16, which has 8 bits, after a few operations; relative and absolute."""
COARSE = 0.05
"""Mean difference in bfloat16; also the relative error of a half-precision attention kernel."""


@dataclass(frozen=True, slots=True)
class Choice:
    way: Way
    event: Event | None
    """Where the model could not take the way that was asked for."""

    compiled: bool = False


def choose(scorer: Scorer, score: Score, asked: Way, world: World, *, bfloat16: bool, compiled: bool = False) -> Choice:
    """Settles how `scorer` runs its head, its attention and its layers; `score` runs it. All ranks call it, and agree.

    `scorer.whole`, `scorer.kernels` and the model's attention implementation are set as they have to be.
    """
    causal = scorer.causal
    own = causal.config._attn_implementation
    trial = Trial(score, sample(causal.config.get_text_config().vocab_size), bfloat16)
    notes = []
    scorer.whole = True
    expected, unknown = measure_whole(scorer, trial)
    scorer.whole = False
    differs = head_differs(trial, expected)  # on all ranks, whatever one of them knows: ZeRO-3 gathers in it
    reason = unknown or differs
    if world.any(reason is not None):
        scorer.whole = True
        notes.append(f"its head runs with all of it, as {reason or ELSEWHERE}")
    way: Way = asked
    reason = None if asked == "padded" else packing_differs(causal, trial, asked, expected, world.device)
    if world.any(reason is not None):
        causal.set_attn_implementation(own)
        way = "padded"
        notes.append(f"its rows are padded and prompts are computed twice, as {reason or ELSEWHERE}")
    leave_out_the_unread(scorer, trial, way, expected, world)
    reason = compiled_differs(scorer, trial, way) if compiled else None
    if world.any(reason is not None):
        compiling.leave(scorer)
        compiled = False
        notes.append(f"its layers are not compiled, as {reason or ELSEWHERE}")
    if not compiled:
        fit_the_cache(causal, trial, way, expected, world)
    if not notes:
        return Choice(way, None, compiled)
    message = f"{type(causal).__name__} trains exactly, but not the fastest way: {'; '.join(notes)}."
    event = Event(level="info", code="packing_limited", message=message, data={"way": way, "compiled": compiled})
    return Choice(way, event, compiled)


def leave_out_the_unread(scorer: Scorer, trial: Trial, way: Way, expected: Tensor, world: World) -> None:
    """Prunes the last layer to the places that predict something, where no number changes by it."""
    if way != "padded" and not scorer.whole:
        scorer.pruned = last_layer.prune(scorer.causal)
        if scorer.pruned and world.any(trial.changes(way, expected)):
            last_layer.restore(scorer.causal)
            scorer.pruned = False


def fit_the_cache(causal: PreTrainedModel, trial: Trial, way: Way, expected: Tensor, world: World) -> None:
    """Takes apart what a CPU's cache would not hold, where no number changes by it."""
    if world.device.type == "cpu" and not trial.bfloat16:  # autocast is off where a backward pass computes again
        known = by_rows.take_apart(causal)
        if known and world.any(trial.changes(way, expected)):
            by_rows.restore(causal)


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

    def measure(self, way: Way, *, graph: bool = False) -> Tensor:
        """Every sequence's token log-probabilities, one after the other, the same order for all ways.

        `graph`: as in training, with a graph for the backward pass, which is dropped.
        """
        batch = arrange(self.pairs, way)
        with torch.set_grad_enabled(graph):
            values = self.score(batch)[0]
        return values.detach()[batch.entries.to(values.device)]

    def differs(self, found: Tensor, expected: Tensor, what: str) -> str | None:
        difference = (found - expected).abs()
        largest, mean = float(difference.max()), float(difference.mean())
        if (mean <= COARSE) if self.bfloat16 else (largest <= EXACT):
            return None
        return f"{what} gave log-probabilities up to {largest:.2g} off"

    def changes(self, way: Way, expected: Tensor) -> bool:
        """Whether the model as it is now gives other numbers, or none at all."""
        try:
            found = self.measure(way)
        except torch.OutOfMemoryError:
            raise
        except (ValueError, TypeError, AttributeError, RuntimeError):
            return True
        return self.differs(found, expected, "the changed model") is not None


def measure_whole(scorer: Scorer, trial: Trial) -> tuple[Tensor, str | None]:
    """What the model as a whole gives, and how its logits differ from what `scorer.finish` makes of its head's output.

    Number by number, as small differences would not show in log-probabilities in bfloat16.
    """
    causal, finish, logits = scorer.causal, scorer.finish, list[Tensor]()
    head = causal.get_output_embeddings()  # type: ignore[no-untyped-call]
    hooks = [head.register_forward_hook(lambda *given: logits.append(given[-1]))] if head is not None else []
    hooks.append(causal.register_forward_hook(lambda *given: logits.append(given[-1].logits)))
    try:
        expected = trial.measure("padded")
    finally:
        for hook in hooks:
            hook.remove()
    if len(logits) != 2 or (finish.scale != 1 and getattr(head, "bias", None) is not None):
        return expected, "it is no linear layer that is called once"
    ours, rounding = capped(logits[0] * finish.scale, finish.cap), FINE if trial.bfloat16 else EXACT
    if torch.allclose(ours, logits[1].to(ours.dtype), rtol=rounding, atol=rounding):
        return expected, None
    return expected, "the model does more with its output than is known here"


def head_differs(trial: Trial, expected: Tensor) -> str | None:
    """Why the head can't be used by itself, if it can't."""
    try:
        found = trial.measure("padded")
    except torch.OutOfMemoryError:
        raise
    except (ValueError, TypeError, AttributeError, IndexError, RuntimeError) as error:
        return f"it can't be called by itself ({error})"
    return trial.differs(found, expected, "its head by itself")


def packing_differs(
    causal: PreTrainedModel, trial: Trial, way: Way, expected: Tensor, device: torch.device
) -> str | None:
    """Puts our attention into the model; says why it can't be used, if it can't."""
    config = causal.config.get_text_config()
    layers, window = getattr(config, "layer_types", None) or (), getattr(config, "sliding_window", None)
    if kinds := set(layers) - FULL:
        return f"it has layers of {', '.join(sorted(kinds))}"
    if window is not None and not layers:  # some models have it in their masks alone, which a packed row doesn't use
        return f"it has a sliding window of {window} tokens"
    attention.register()
    try:
        if device.type == "cuda" and trial.bfloat16:
            error = attention.flash_error(device, torch.bfloat16, *heads_of(causal))
            if not error <= COARSE:
                return f"this machine's variable-length attention is {error:.2g} off"
        causal.set_attn_implementation(attention.NAME)
        found = trial.measure(way)
    except torch.OutOfMemoryError:
        raise
    except (ValueError, TypeError, AttributeError, RuntimeError) as error:  # kernels refuse shapes by RuntimeError
        return f"its attention can't be replaced ({error})"
    return trial.differs(found, expected, "a packed row")


def compiled_differs(scorer: Scorer, trial: Trial, way: Way) -> str | None:
    """Has the layers compiled; says why that can't be used, if it can't."""
    expected = trial.measure(way)
    try:
        compiling.compile_scorer(scorer)
        found = [trial.measure(way, graph=graph) for graph in (False, True)]
        reason = next(filter(None, (trial.differs(it, expected, "the compiled layers") for it in found)), None)
    except torch.OutOfMemoryError:
        raise
    except (RuntimeError, ImportError, OSError, AttributeError, TypeError, ValueError) as error:  # no compiler, say
        reason = f"they can't be compiled here ({str(error).strip().splitlines()[0]:.300})"
    return reason


def heads_of(causal: PreTrainedModel) -> tuple[int, int, int]:
    """Query heads, key heads and the size of a head."""
    config = causal.config.get_text_config()
    queries: int = config.num_attention_heads
    keys = getattr(config, "num_key_value_heads", None) or queries
    return queries, keys, getattr(config, "head_dim", None) or config.hidden_size // queries
