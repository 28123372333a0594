"""Model folders in Hugging Face form, made without torch."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import save_file

from tests.makers import make_tokenizer

TENSORS = {"embed": np.zeros((264, 8), np.float32), "norm": np.ones(8, np.float16)}
CONFIG = {"model_type": "llama", "architectures": ["LlamaForCausalLM"], "vocab_size": 264}


def make_folder(folder: Path, *, shards: bool = False, **config: Any) -> Path:
    """A folder whose facts can be read, though nothing could compute with its weights."""
    make_tokenizer(folder)
    (folder / "config.json").write_text(json.dumps({**CONFIG, "max_position_embeddings": 512, **config}))
    if not shards:
        save_file(TENSORS, folder / "model.safetensors")
        return folder
    weight_map = {}
    for number, (name, tensor) in enumerate(TENSORS.items(), start=1):
        weight_map[name] = f"model-{number:05}-of-00002.safetensors"
        save_file({name: tensor}, folder / weight_map[name])
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))
    return folder
