"""The fewest floating-point operations that a step needs, and what share of the devices' peak that is.

Linear layers cost 2 operations per weight and token, attention 4 per score (2 for q·k, 2 for p·v) and channel, the
head 2 per weight and predicted token; the backward pass costs twice the forward pass (Kaplan et al. 2020,
arXiv:2001.08361, section 2.1), or as much where the weights need no gradient. A prompt is read once for both answers,
whatever the run really does: wasted work never looks like speed. Norms, activations and the optimizer are left out.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Self

import torch
from torch import nn

from dpo_core.data.prefix import common_prefix
from dpo_core.data.records import TokenItem
from dpo_core.packing import response_tokens
from dpo_core.zero import size

if TYPE_CHECKING:
    from transformers import PreTrainedModel

PEAKS = {"H100": 989e12, "H200": 989e12, "A100": 312e12}
"""Dense bfloat16 operations a second, from NVIDIA's data sheets (SXM), by a part of the device's name."""

EXPERTS = ("num_experts", "num_local_experts", "n_routed_experts")
"""Fields of configs whose models let a token pass some of their weights only."""


@dataclass(frozen=True, slots=True)
class Work:
    """What a token, a score and a prediction cost."""

    linear: int
    """Weights of all matrices but embedding and head: those that every token passes."""

    channels: int
    """Of attention, over all layers."""

    head: int
    """Weights of the head."""

    frozen: bool
    """Adapters are trained; their own operations are left out."""

    @classmethod
    def of(cls, causal: PreTrainedModel, *, frozen: bool) -> Self | None:
        """Of a model, whole or sharded; None for mixtures of experts, of which it can't be told."""
        config = causal.config.get_text_config()
        if any(getattr(config, name, None) for name in EXPERTS):
            return None
        heads, hidden = config.num_attention_heads, config.hidden_size
        head_size = getattr(config, "head_dim", None) or hidden // heads
        ends = {id(parameter) for parameter in _ends(causal)}
        matrices = (
            parameter
            for name, parameter in causal.named_parameters()
            if id(parameter) not in ends and "lora_" not in name and len(_shape(parameter)) > 1
        )
        linear = sum(size(parameter) for parameter in matrices)
        return cls(linear, config.num_hidden_layers * heads * head_size, hidden * config.vocab_size, frozen)

    def operations(self, items: Iterable[TokenItem]) -> int:
        """Forward and backward, of a batch."""
        total = 0
        for item in items:
            trunk, *branches = _parts(item)
            scores = triangle(trunk) + sum(branch * trunk + triangle(branch) for branch in branches)
            linear = 2 * (self.linear * (trunk + sum(branches)) + self.head * response_tokens(item))
            total += (2 if self.frozen else 3) * linear + 3 * 4 * self.channels * scores
        return total


def triangle(length: int) -> int:
    """Scores of causal attention over `length` tokens."""
    return length * (length + 1) // 2


def peak_of(device: torch.device) -> float | None:
    """Operations a second in bfloat16; None where that is not known, as of a CPU."""
    return known_peak(torch.cuda.get_device_name(device)) if device.type == "cuda" else None


def known_peak(device_name: str) -> float | None:
    return next((peak for name, peak in PEAKS.items() if name in device_name), None)


def _parts(item: TokenItem) -> tuple[int, ...]:
    """Input tokens that both answers share, and those of each; the last token of a sequence is not read."""
    lengths = [len(tokens) - 1 for tokens in item.sequences]
    trunk = min(common_prefix(*item.sequences), *lengths) if len(lengths) == 2 else 0
    return trunk, *(length - trunk for length in lengths)


def _ends(causal: PreTrainedModel) -> Iterable[nn.Parameter]:
    """The weights of embedding and head."""
    for module in (causal.get_input_embeddings(), causal.get_output_embeddings()):  # type: ignore[no-untyped-call]
        if module is not None:
            yield from module.parameters()


def _shape(parameter: nn.Parameter) -> tuple[int, ...]:
    """Of the whole parameter: ZeRO-3 leaves it empty between two uses."""
    return tuple(getattr(parameter, "ds_shape", parameter.shape))
