"""ZeRO-3 gathers a decoder layer at once: hooks on all its parts take longer than many a layer does.

A *leaf*, as DeepSpeed calls it, is gathered before its forward and its backward pass and released after them. Its
gradients are reduced when that of its input is there: all of them have to be there by then.
"""

from __future__ import annotations

from collections import Counter
from typing import Any

import torch
from torch import Tensor, nn

from dpo_core.errors import RunError, user_error
from dpo_core.footprint import LIVE_LAYERS, LIVE_PARAMETERS
from dpo_core.scorer import Scorer, decoder_layers


def gather_whole(scorer: Scorer) -> dict[str, int]:
    """Makes leaves of the layers that can be; what DeepSpeed has to be told beside.

    The next layer is fetched while one computes, so the bucket for that holds a whole one.
    """
    from deepspeed.utils import set_z3_leaf_module

    leaves = leaves_of(scorer)
    if not leaves:
        return {}
    ran: set[nn.Module] = set()
    for layer in leaves:
        set_z3_leaf_module(layer, True)
        layer.register_forward_pre_hook(lambda module, inputs: follow(module, inputs, ran))
    scorer.register_forward_pre_hook(lambda *_: ran.clear())
    largest = max(sum(weight.numel() for weight in layer.parameters()) for layer in leaves)
    live = max(LIVE_PARAMETERS, LIVE_LAYERS * largest)
    return {"stage3_prefetch_bucket_size": largest, "stage3_max_live_parameters": live}


def leaves_of(scorer: Scorer) -> list[nn.Module]:
    """The outermost decoder layers that share no weight with anything else.

    Of a shared one DeepSpeed would reduce the gradient when the last layer that has it is through, and the others'
    part would be lost.
    """
    layers = list(decoder_layers(scorer.causal))
    inner = {module for layer in layers for module in layer.modules() if module is not layer}
    outermost = [layer for layer in layers if layer not in inner]
    covered = {module for layer in outermost for module in layer.modules()}
    outside = (module for module in scorer.modules() if module not in covered)
    users = Counter(weight for module in outside for weight in module.parameters(recurse=False))
    for layer in outermost:
        users.update(layer.parameters())  # each once
    return [layer for layer in outermost if all(users[weight] == 1 for weight in layer.parameters())]


def follow(layer: nn.Module, inputs: tuple[Any, ...], ran: set[nn.Module]) -> None:
    """Before a leaf's forward pass: lets its input have a gradient where it has none, as behind a frozen embedding.

    `ran`: the leaves that ran in this pass of the model.

    Raises:
        RunError: kind `user`; DeepSpeed would take gradients of this layer for zeros, or reduce them twice.
    """
    if layer in ran:
        raise not_followed(layer, "runs more than once in a forward pass")
    ran.add(layer)
    hidden = [it for it in inputs if isinstance(it, Tensor) and it.is_floating_point()]
    if not hidden:
        raise not_followed(layer, "takes its input by keyword")
    if torch.is_grad_enabled() and not any(it.requires_grad for it in hidden):
        hidden[0].requires_grad_()


def not_followed(layer: nn.Module, why: str) -> RunError:
    message = (
        f"The model's {type(layer).__name__} {why}, which does not go with ZeRO stage 3. "
        "Set `training.zero_stage` to 2 or less."
    )
    return user_error("layers_not_followed", message, param="training.zero_stage")
