"""How many bytes a rank needs, estimated before a device is taken; imports no torch.

What is kept per parameter follows Rajbhandari et al. 2020 (ZeRO, arXiv:1910.02054, section 3), what is kept per token
Korthikanti et al. 2022 (arXiv:2205.05198, section 4), both as torch, transformers and DeepSpeed really do it.
Everything is in bytes, for one rank.
"""

from __future__ import annotations

from dataclasses import dataclass, fields

from dpo_core.model_folder import ModelFacts
from dpo_core.spec import Device, LoraSpec, Offload

BUCKET_ELEMENTS = 500_000_000
"""Gradients that are reduced at once, and that a buffer is kept for: DeepSpeed's default."""
LIVE_PARAMETERS = 1_000_000_000
"""Parameters that ZeRO-3 keeps gathered until they are needed again: DeepSpeed's `stage3_max_live_parameters`."""
LIVE_LAYERS = 3
"""Layers that ZeRO-3 holds at least: one that computes, and one that arrives, in a buffer and in its place."""
UPDATE_ELEMENTS = 1_000_000_000
"""Parameters that ZeRO-3 updates at once: DeepSpeed's `sub_group_size`."""
CHUNK_BYTES: dict[str, int] = {"cpu": 2**26, "cuda": 2**33}
"""Logits of one chunk of the head, counted in float32. They live beside their gradient until that is used."""
HEAD_BLOCK = 2**30
"""At most: what a GPU holds of float32 copies of logits at once (dpo_core/token_scores.py)."""


@dataclass(frozen=True, slots=True)
class Layout:
    """What decides a rank's memory beside the model."""

    device: Device
    ranks: int
    zero_stage: int
    offload: Offload
    activation_checkpointing: bool
    micro_batch_tokens: int
    bfloat16: bool
    lora: LoraSpec | None
    reference: ModelFacts | None = None
    """Another model that is the reference. It is measured, and freed, before the policy is there."""


@dataclass(frozen=True, slots=True)
class Footprint:
    """Bytes on one rank's device by what they hold. `activations` and `update` are never held at the same time."""

    weights: int
    gradients: int
    optimizer: int
    """AdamW's two moments, and the float32 master weights where there are any."""

    buffers: int
    """Gradients on their way to other ranks, and gathered weights."""

    activations: int
    """What the forward pass keeps for the backward pass, and that one's own."""

    head: int
    """Logits of one chunk of predicted tokens, and gradients."""

    update: int
    """Copies while the weights are updated."""

    reference: int = 0
    """Another model that is the reference, whole, and its forward passes: before all of the above."""

    @property
    def peak(self) -> int:
        resident = self.weights + self.gradients + self.optimizer + self.buffers
        return max(resident + max(self.activations + self.head, self.update), self.reference)

    def in_words(self) -> str:
        """Such as `weights 13.0 GiB, gradients 13.0 GiB, ...`, without what is next to nothing."""
        parts = [(field.name, getattr(self, field.name)) for field in fields(self)]
        return ", ".join(f"{name} {amount(size)}" for name, size in parts if size * 100 > self.peak)


def amount(size: float) -> str:
    """Such as `80 GiB`; of a small model `5.01 MiB`."""
    return f"{size / 2**20:.3g} MiB" if 0 < size < 2**30 / 10 else f"{size / 2**30:.3g} GiB"


def in_bytes(size: float) -> str:
    """As `gib`, in the unit that suits the size."""
    for unit, least in (("GiB", 2**30), ("MiB", 2**20)):
        if size >= least:
            return f"{size / least:.3g} {unit}"
    return f"{size / 2**10:.3g} KiB"


def estimate(model: ModelFacts, layout: Layout) -> Footprint:
    """What training `model` takes at its peak in one rank."""
    total, stage, offload = model.parameter_count, layout.zero_stage, layout.offload
    trained = total if layout.lora is None else adapter_parameters(model, layout.lora)
    frozen = total if layout.lora is not None else 0
    width = 2 if layout.bfloat16 else 4
    shards = layout.ranks if stage else 1
    on_device = 0 if offload != "none" and layout.device == "cuda" else 1
    masters = 4 if stage else 0
    optimizer = on_device * (8 + masters) * trained // shards
    if stage == 0:
        # Trained weights are float32 there; autocast keeps its bfloat16 copies until the backward pass is over.
        weights = (4 + 2 * layout.bfloat16) * trained + width * frozen
        buffers = 4 * min(trained, BUCKET_ELEMENTS) if layout.ranks > 1 else 0
        gradients, update = 4 * trained, 0
    elif stage < 3:
        weights = width * (trained + frozen)
        buffers = width * min(trained, BUCKET_ELEMENTS)
        gradients = 4 * trained // (shards if stage == 2 else 1)
        update = on_device * 4 * trained // shards
    else:
        weights = 0 if offload == "parameters" and layout.device == "cuda" else width * (trained + frozen) // shards
        layer = layer_parameters(model)
        live = min(trained + frozen, max(LIVE_PARAMETERS, LIVE_LAYERS * layer))
        gathered = width * live if shards > 1 or not weights else 0
        # A layer's gradients wait for each other.
        buffers = gathered + width * (min(trained, BUCKET_ELEMENTS) + min(trained, layer))
        gradients = on_device * 4 * trained // shards
        update = on_device * 4 * min(trained // shards, UPDATE_ELEMENTS)
    return Footprint(
        weights=weights,
        gradients=gradients,
        optimizer=optimizer,
        buffers=buffers,
        activations=layout.micro_batch_tokens * activations_per_token(model, layout),
        head=head_bytes(model, layout),
        update=update,
        reference=0 if layout.reference is None else reference_bytes(layout.reference, layout),
    )


def layer_parameters(model: ModelFacts) -> int:
    """Of one decoder layer, all its experts included."""
    return (model.parameter_count - model.vocabulary_size * model.shape.hidden) // model.shape.layers


def reference_bytes(model: ModelFacts, layout: Layout) -> int:
    """What a model takes that only answers: its weights on every rank, one layer's activations, a chunk's logits."""
    width = 2 if layout.bfloat16 else 4
    passing = width * (3 * model.shape.intermediate + 4 * model.shape.hidden) * layout.micro_batch_tokens
    return width * model.parameter_count + passing + logits_bytes(model, layout)


def host_bytes(model: ModelFacts, layout: Layout) -> int:
    """What offload takes of the host's memory, all ranks together: masters, moments and gradients, and the weights."""
    if layout.offload == "none" or layout.device == "cpu":
        return 0
    total = model.parameter_count
    trained = total if layout.lora is None else adapter_parameters(model, layout.lora)
    frozen = total if layout.lora is not None else 0
    weights = (2 if layout.bfloat16 else 4) * (trained + frozen) if layout.offload == "parameters" else 0
    return (12 + 4) * trained + weights


def adapter_parameters(model: ModelFacts, lora: LoraSpec) -> int:
    """Parameters of A [r, in] and B [out, r] of every linear layer that gets an adapter (Hu et al. 2021)."""
    shape = model.shape
    queries, keys = shape.heads * shape.head_size, shape.key_heads * shape.head_size
    ends = {
        "q_proj": shape.hidden + queries,
        "k_proj": shape.hidden + keys,
        "v_proj": shape.hidden + keys,
        "o_proj": queries + shape.hidden,
        "gate_proj": shape.hidden + shape.intermediate,
        "up_proj": shape.hidden + shape.intermediate,
        "down_proj": shape.intermediate + shape.hidden,
    }
    # Names of another family of models count as the largest there is.
    names = list(ends) if lora.target_modules == "all-linear" else lora.target_modules
    return lora.rank * shape.layers * sum(ends.get(name, max(ends.values())) for name in names)


def activations_per_token(model: ModelFacts, layout: Layout) -> int:
    """Bytes that one token of a forward pass takes until its backward pass is over."""
    shape, width = model.shape, 2 if layout.bfloat16 else 4
    queries, keys = shape.heads * shape.head_size, shape.key_heads * shape.head_size
    in_pieces = layout.device == "cpu"  # by_rows.py
    # A normalisation keeps its input in float32 and what it multiplied; its output goes into the linear layers.
    norms = 2 * (4 + (1 if in_pieces else 2) * width) * shape.hidden
    attention = width * (3 * queries + 3 * keys) + 4 * shape.heads
    feed_forward = width * (3 if in_pieces else 4) * shape.intermediate
    layer = norms + attention + feed_forward
    if layout.lora is not None:
        layer += width * 7 * layout.lora.rank
    backward = width * (3 * shape.intermediate + 4 * shape.hidden)
    ends = (4 + 3 * width) * shape.hidden
    kept = shape.layers * width * shape.hidden + layer if layout.activation_checkpointing else shape.layers * layer
    return kept + backward + ends


def head_bytes(model: ModelFacts, layout: Layout) -> int:
    """A chunk's logits and their gradient, a block of float32 copies, and the gradient of the head's weights."""
    width = 2 if layout.bfloat16 else 4
    chunk = logits_bytes(model, layout)
    block = min(HEAD_BLOCK, chunk) if layout.device == "cuda" else 0
    gradient = 0 if layout.lora is not None else width * model.shape.hidden
    return 2 * chunk + block + gradient * model.vocabulary_size


def logits_bytes(model: ModelFacts, layout: Layout) -> int:
    """Of one chunk of predicted tokens."""
    width = 2 if layout.bfloat16 else 4
    return min(CHUNK_BYTES[layout.device], 4 * layout.micro_batch_tokens * model.vocabulary_size) // 4 * width
