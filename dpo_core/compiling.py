"""torch.compile for the decoder's layers and for what follows the head: everything between matrix products and
attention becomes a few fused kernels. They round where plain ones round: otherwise a forward pass that keeps nothing
for a backward pass is fused, and so rounded, in another way than one that does, and policy and reference differ.

Each layer by itself (and all by the same code, as they are alike): seconds to compile, whatever the model's depth.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch

from dpo_core import attention
from dpo_core.scorer import Scorer, decoder_layers
from dpo_core.token_scores import compiled_kernels

HOW: dict[str, Any] = {"dynamic": True, "options": {"emulate_precision_casts": True}}
"""What torch.compile is told: for any number of tokens."""


class CompiledForward:
    """In the place of a layer's `forward`.

    What surrounds it stays outside: hooks, as ZeRO-3 gathers the weights there; and recomputation, which transformers
    does inside of `forward`, and where Dynamo, at our attention, would give the whole layer up.
    """

    def __init__(self, layer: Any) -> None:
        self.layer = layer
        self.own = vars(layer).get("forward")
        """What stood there, where it was not the class's: last_layer.prune."""
        plain = self.own or type(layer).forward.__wrapped__.__get__(layer)
        self.compiled: Callable[..., Any] = torch.compile(plain, **HOW)

    def __call__(self, *inputs: Any, **options: Any) -> Any:
        layer = self.layer
        if layer.gradient_checkpointing and layer.training and self.own is None:
            return layer._gradient_checkpointing_func(partial(self.compiled, **options), *inputs)
        return self.compiled(*inputs, **options)

    def restore(self) -> None:
        del self.layer.forward
        if self.own is not None:
            self.layer.forward = self.own


def compile_scorer(scorer: Scorer) -> None:
    """Marks layers and head; they are compiled when they first run."""
    attention.register(opaque=True)
    for layer in decoder_layers(scorer.causal):
        layer.forward = CompiledForward(layer)
    scorer.kernels = compiled_kernels()


def leave(scorer: Scorer) -> None:
    """Undoes `compile_scorer`, as far as it came."""
    attention.register()
    for layer in decoder_layers(scorer.causal):
        if isinstance(forward := layer.forward, CompiledForward):
            forward.restore()
    scorer.kernels = None
