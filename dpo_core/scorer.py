"""A causal language model that answers with log-probabilities of the predicted tokens alone.

The head runs on positions that predict something, a chunk at a time, so that logits of tokens × vocabulary
never exist. Shapes: N predicted tokens, H hidden, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, cast

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from dpo_core.footprint import CHUNK_BYTES
from dpo_core.last_layer import KEPT
from dpo_core.packing import Batch
from dpo_core.token_scores import Kernels, token_log_probabilities

if TYPE_CHECKING:
    from transformers import PreTrainedModel


def chunk_tokens(vocabulary_size: int, device: torch.device) -> int:
    """Predicted tokens whose logits are computed at once; where there are more, they are computed again backward."""
    return max(16, CHUNK_BYTES[device.type] // (4 * vocabulary_size))


def decoder_layers(model: PreTrainedModel) -> Iterator[nn.Module]:
    """The layers that transformers can recompute one by one: those of the decoder."""
    from transformers.modeling_layers import GradientCheckpointingLayer

    return (module for module in model.modules() if isinstance(module, GradientCheckpointingLayer))


class Scorer(nn.Module):
    """What the engine runs: `model` is the causal language model itself, with its adapter if it has one."""

    def __init__(self, model: PreTrainedModel) -> None:
        super().__init__()
        self.model = model
        self.whole = False
        """Calls the model as a whole, head included: for models that do more than multiply there."""
        self.pruned = False
        """The last layer answers for predictors alone: last_layer.prune."""
        self.kernels: Kernels | None = None
        """Compiled ones, where the layers are compiled too."""
        self.finish = Finish.of(self.causal.config.get_text_config())

    @property
    def causal(self) -> PreTrainedModel:
        """The model without the wrapper of its adapter; the adapter's layers are inside."""
        model: Any = self.model
        return cast("PreTrainedModel", model.get_base_model() if hasattr(model, "get_base_model") else model)

    def forward(self, batch: Batch, chunks: int = 1, ranks_first: bool = False) -> tuple[Tensor, Tensor | None]:
        """log π of each target given what stands before it.

        Args:
            batch: on the model's device.
            chunks: pieces in which the head runs. The same on every rank: ZeRO-3 gathers it once a chunk.
            ranks_first: also say which targets the model ranks first.

        Returns:
            [N] float32 (float64 for a float64 model), and [N] bool or None.
        """
        # Layout and positions only where they are needed: a model that knows neither still works padded.
        extra: dict[str, Any] = (
            {} if batch.layout is None else {"position_ids": batch.positions, "layout": batch.layout}
        )
        if self.whole:
            width = batch.tokens.shape[1]
            columns = batch.predictors % width
            kept = width - int(columns.min())  # no sequence predicts anything before that
            output = self.model(input_ids=batch.tokens, use_cache=False, logits_to_keep=kept, **extra)
            # A model that does not know `logits_to_keep` returns all positions.
            logits = output.logits[:, -kept:][batch.predictors // width, columns - (width - kept)]
            return log_probabilities(logits, batch.targets, ranks_first, self.kernels, None)
        causal = self.causal
        pruned = self.pruned and batch.layout is not None
        if pruned:
            extra[KEPT] = batch.predictors
        hidden = getattr(causal, causal.base_model_prefix)(input_ids=batch.tokens, use_cache=False, **extra)[0]
        hidden = hidden[0] if pruned else hidden.flatten(0, 1).index_select(0, batch.predictors)
        if chunks == 1:
            return self.predict(hidden, batch.targets, ranks_first)
        parts = [
            checkpoint(self.predict, some, targets, ranks_first, use_reentrant=False)
            for some, targets in zip(hidden.tensor_split(chunks), batch.targets.tensor_split(chunks), strict=True)
        ]
        values, first = zip(*parts, strict=True)
        return torch.cat(values), torch.cat(first) if ranks_first else None

    def predict(self, hidden: Tensor, targets: Tensor, ranks_first: bool) -> tuple[Tensor, Tensor | None]:
        """The head alone: from [N, H] and [N] as `forward`."""
        head: nn.Module = self.causal.get_output_embeddings()  # type: ignore[no-untyped-call]
        scaled = hidden if self.finish.scale == 1 else hidden * self.finish.scale
        return log_probabilities(head(scaled), targets, ranks_first, self.kernels, self.finish.cap)


@dataclass(frozen=True, slots=True)
class Finish:
    """What models of some families do to their logits z: cap · tanh(scale · z / cap), or scale · z without a cap.

    The head has no bias then, so that its input can be scaled in its output's place: that is far smaller.
    """

    scale: float
    cap: float | None

    @classmethod
    def of(cls, config: Any) -> Finish:
        """By the names that transformers' configs have for it; whether it is all that a model does is tried out."""
        times, parts = getattr(config, "logit_scale", None), getattr(config, "logits_scaling", None)
        scale = (times if isinstance(times, float | int) else 1.0) / (parts or 1.0)
        return cls(scale, getattr(config, "final_logit_softcapping", None))


def log_probabilities(
    logits: Tensor, targets: Tensor, ranks_first: bool, kernels: Kernels | None, cap: float | None
) -> tuple[Tensor, Tensor | None]:
    """From [N, V] and [N] to [N] natural logarithms, and which targets have the largest logit."""
    first = logits.detach().argmax(-1) == targets if ranks_first else None
    return token_log_probabilities(logits, targets, kernels, cap), first
