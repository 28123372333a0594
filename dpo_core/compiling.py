"""torch.compile for the decoder's layers and for what follows the head: everything between matrix products and
attention becomes a few fused kernels. They round where plain ones round: otherwise a forward pass that keeps nothing
for a backward pass is fused, and so rounded, in another way than one that does, and policy and reference differ.

Each layer by itself (and all by the same code, as they are alike): seconds to compile, whatever the model's depth.
"""

from __future__ import annotations

import torch

from dpo_core import attention
from dpo_core.scorer import Scorer, decoder_layers
from dpo_core.token_scores import compiled_kernels


def compile_scorer(scorer: Scorer) -> None:
    """Marks layers and head; they are compiled when they first run, for any number of tokens.

    Hooks around a layer stay outside: ZeRO-3 gathers its weights there, and Dynamo would compile hooks for each layer.
    """
    attention.register(opaque=True)
    for layer in decoder_layers(scorer.causal):
        layer.forward = torch.compile(layer.forward, dynamic=True, options={"emulate_precision_casts": True})
    scorer.kernels = compiled_kernels()


def leave(scorer: Scorer) -> None:
    """Undoes `compile_scorer`."""
    attention.register()
    for layer in decoder_layers(scorer.causal):
        layer.forward = getattr(layer.forward, "__wrapped__", layer.forward)
    scorer.kernels = None
