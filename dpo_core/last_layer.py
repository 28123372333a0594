"""The last layer for the positions that predict something alone: nobody reads what it makes of the others.

Their keys and values are needed, as later positions attend to them; what their queries find, the feed-forward part
and the norm before it are not.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from torch import Tensor, nn

if TYPE_CHECKING:
    from transformers import PreTrainedModel

KEPT = "kept"
"""Keyword of the model's forward, [N] int64: the places of a packed row whose final hidden states are wanted, in
this order."""
PARTS = frozenset({"input_layernorm", "self_attn", "post_attention_layernorm", "mlp"})
"""What transformers calls the parts of x + attention(norm(x)), then x + mlp(norm(x)), in most of its models."""


def prune(causal: PreTrainedModel) -> bool:
    """Makes the last layer heed KEPT; whether it has the parts for it. `restore` undoes it.

    Parts of these names may still be put together in another way: whoever calls compares the results.
    """
    layer = last_layer(causal)
    if layer is None or not is_plain(layer):
        return False
    own = layer.forward

    def forward(hidden: Tensor, *others: Any, kept: Tensor | None = None, **options: Any) -> Any:
        return own(hidden, *others, **options) if kept is None else forward_kept(layer, hidden, kept, options)

    layer.forward = forward
    return True


def restore(causal: PreTrainedModel) -> None:
    """The layer's own forward again."""
    layer = last_layer(causal)
    if layer is not None:
        vars(layer).pop("forward", None)


def last_layer(causal: PreTrainedModel) -> nn.Module | None:
    layers = getattr(getattr(causal, causal.base_model_prefix, None), "layers", None)
    return layers[-1] if isinstance(layers, nn.ModuleList) and len(layers) else None


def is_plain(layer: nn.Module) -> bool:
    """Whether it has the parts and no others but dropouts that do nothing."""
    children = dict(layer.named_children())
    others = [child for name, child in children.items() if name not in PARTS]
    return children.keys() >= PARTS and all(isinstance(child, nn.Dropout) and child.p == 0 for child in others)


def forward_kept(layer: Any, hidden: Tensor, kept: Tensor, options: dict[str, Any]) -> Tensor:
    """`hidden` [1, T, H] to [1, N, H].

    The attention's own output projection runs for all: only a hook could leave that out, too, and no compiler sees
    through one.
    """
    attended = layer.self_attn(hidden_states=layer.input_layernorm(hidden), wanted=kept, **options)[0]
    hidden = (hidden + attended).index_select(1, kept)
    kept_hidden: Tensor = hidden + layer.mlp(layer.post_attention_layernorm(hidden))
    return kept_hidden
