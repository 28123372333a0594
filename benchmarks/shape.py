"""The Llamas that are trained in benchmarks: random weights from a seed."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True, slots=True)
class Shape:
    hidden: int
    layers: int
    heads: int
    key_value_heads: int
    intermediate: int
    vocabulary: int
    context: int = 4096

    @property
    def backbone_weights(self) -> int:
        """Weights of all linear layers but the head: those that every token passes."""
        key_value = self.hidden * self.key_value_heads // self.heads
        return self.layers * (2 * self.hidden**2 + 2 * self.hidden * key_value + 3 * self.hidden * self.intermediate)

    @property
    def weights(self) -> int:
        """All weights: backbone, embedding and head (not tied), norms."""
        norms = (2 * self.layers + 1) * self.hidden
        return self.backbone_weights + 2 * self.vocabulary * self.hidden + norms


SMALL = Shape(hidden=512, layers=6, heads=8, key_value_heads=4, intermediate=1408, vocabulary=6400)
"""24 million weights: large enough that matrix products, not Python, take the time on a CPU."""

LLAMA_1B = Shape(hidden=2048, layers=16, heads=32, key_value_heads=8, intermediate=8192, vocabulary=128256)
"""The shape of Llama 3.2 1B, its head not tied."""

LLAMA_8B = Shape(hidden=4096, layers=32, heads=32, key_value_heads=8, intermediate=14336, vocabulary=128256)
"""The shape of Llama 3.1 8B."""

TINY = Shape(hidden=64, layers=2, heads=4, key_value_heads=2, intermediate=128, vocabulary=512)
"""For tests of the benchmarks themselves."""

SHAPES = {"small": SMALL, "1b": LLAMA_1B, "8b": LLAMA_8B, "tiny": TINY}


def write_model(shape: Shape, folder: Path, *, seed: int, device: str = "cpu", dtype: str = "float32") -> None:
    """Writes a LlamaForCausalLM in Hugging Face form; the tokenizer's files are the caller's.

    `device` draws the weights: billions of them take minutes on a CPU.
    """
    os.environ.setdefault("DS_ACCELERATOR", device)  # transformers imports DeepSpeed, which would say that it looks
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM
    from transformers.utils import logging

    logging.disable_progress_bar()  # type: ignore[no-untyped-call]

    config = LlamaConfig(
        vocab_size=shape.vocabulary,
        hidden_size=shape.hidden,
        intermediate_size=shape.intermediate,
        num_hidden_layers=shape.layers,
        num_attention_heads=shape.heads,
        num_key_value_heads=shape.key_value_heads,
        max_position_embeddings=shape.context,
        tie_word_embeddings=False,
        bos_token_id=None,
        eos_token_id=2,
        pad_token_id=0,
    )
    torch.manual_seed(seed)
    torch.set_default_dtype(getattr(torch, dtype))
    with torch.device(device):
        LlamaForCausalLM(config).save_pretrained(folder)
