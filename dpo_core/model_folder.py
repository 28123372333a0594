"""What a model folder in Hugging Face form says about itself, read without loading a tensor."""

from __future__ import annotations

import difflib
import json
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dpo_core.errors import user_error
from dpo_core.spec import LoraSpec, ModelSource

MAX_HEADER_BYTES = 100 * 1024 * 1024
"""The safetensors format's own limit for a header."""


@dataclass(frozen=True, slots=True)
class Shape:
    """The sizes of a transformer's layers."""

    layers: int
    hidden: int
    intermediate: int
    """Width of the feed-forward layer; of all experts that one token goes through together."""

    heads: int
    key_heads: int
    """Heads of keys and values, fewer than `heads` under grouped-query attention."""

    head_size: int


@dataclass(frozen=True, slots=True)
class ModelFacts:
    parameter_count: int
    vocabulary_size: int
    context_length: int | None
    """Positions at which a token's place alone says how it is rotated; None where the config names no limit."""

    shape: Shape


def read_json(path: Path) -> dict[str, Any]:
    """The object in a JSON file; empty where there is no such file.

    Raises:
        RunError: the file holds no JSON object.
    """
    try:
        content = json.loads(path.read_bytes())
    except FileNotFoundError:
        return {}
    except ValueError as error:
        raise user_error(
            "invalid_model", f"{path.name} of the model is not valid JSON: {error}.", param="model"
        ) from None
    if not isinstance(content, dict):
        raise user_error("invalid_model", f"{path.name} of the model must hold a JSON object.", param="model")
    return content


def configs(folder: Path) -> list[Path]:
    """config.json of a model, adapter_config.json of an adapter.

    Raises:
        FileNotFoundError: neither is there; a mount that went away leaves an empty folder.
    """
    found = [folder / name for name in ("config.json", "adapter_config.json") if (folder / name).is_file()]
    if not found:
        raise FileNotFoundError(f"The model's folder has no config.json any more: {folder}.")
    return found


def model_facts(model: ModelSource) -> ModelFacts:
    """Facts of `model`; an adapter's are those of its base.

    Raises:
        RunError: config.json or the weights are missing or damaged.
    """
    folder = model.base_path or model.path
    config = read_json(folder / "config.json")
    config = {**config, **config.get("text_config", {})}
    if not isinstance(config.get("vocab_size"), int):
        message = f"config.json of model {model.id} names no vocab_size. Give the folder of a causal language model."
        raise user_error("invalid_model", message, param="model")
    parameters = parameter_count(folder)
    return ModelFacts(parameters, config["vocab_size"], context_length(config), shape_of(config, parameters))


def context_length(config: dict[str, Any]) -> int | None:
    """The model's positions; with longrope only the original ones.

    Beyond those, longrope (Ding et al. 2024, arXiv:2402.13753) turns *every* position of a forward pass another way, as
    soon as one of its sequences is so long: what a pair is worth would depend on the pairs beside it.
    """
    lengths = (config.get(name) for name in ("max_position_embeddings", "n_positions", "max_sequence_length"))
    context = next((length for length in lengths if isinstance(length, int)), None)
    rope = config.get("rope_parameters") or config.get("rope_scaling") or {}
    if "longrope" in (rope.get("rope_type"), rope.get("type")):
        original = rope.get("original_max_position_embeddings", config.get("original_max_position_embeddings"))
        return original if isinstance(original, int) else context
    return context


def shape_of(config: dict[str, Any], parameters: int) -> Shape:
    """By the names that families of models use; a size that is not named is that of a usual transformer.

    Such a one has 12·L·h² parameters in L layers of width h (Kaplan et al. 2020, arXiv:2001.08361, table 1).
    """

    def named(*names: str) -> int | None:
        return next((config[name] for name in names if isinstance(config.get(name), int)), None)

    layers = named("num_hidden_layers", "n_layer", "n_layers", "num_layers") or 32
    hidden = named("hidden_size", "n_embd", "n_embed", "d_model") or max(1, math.isqrt(parameters // (12 * layers)))
    heads = named("num_attention_heads", "n_head", "n_heads", "num_heads") or max(1, hidden // 128)
    experts = named("num_experts_per_tok") or 0
    width = named("intermediate_size", "n_inner", "ffn_dim", "ffn_hidden_size") or 4 * hidden
    return Shape(
        layers=layers,
        hidden=hidden,
        intermediate=experts * (named("moe_intermediate_size") or width) if experts else width,
        heads=heads,
        key_heads=named("num_key_value_heads") or heads,
        head_size=named("head_dim") or max(1, hidden // heads),
    )


def parameter_count(folder: Path) -> int:
    """Parameters stored in the folder's safetensors files, from their headers alone; tied weights count once.

    Raises:
        RunError: there is no safetensors file, or one is damaged.
    """
    return sum(math.prod(shape) for _, shape in parameter_shapes(folder))


def check_lora_targets(model: ModelSource, lora: LoraSpec) -> None:
    """Refuses a target that names no module of `model` which can have an adapter.

    As in peft, a target is a module's name or its last parts. Only the weights' names are known here, which
    may stand under fewer parts than the module's own; so a target with more of them fits as well.

    Raises:
        RunError: kind `user`; a target fits no module, or the weights can't be read.
    """
    if lora.target_modules == "all-linear" or model.base_path is not None:  # an adapter keeps its own modules
        return
    named = (name.removesuffix(".weight") for name, shape in parameter_shapes(model.path) if len(shape) > 1)
    modules = [*named, "lm_head"]  # a head that is tied to the embeddings is not in the files
    for target in lora.target_modules:
        if not any(f".{name}".endswith(f".{target}") or f".{target}".endswith(f".{name}") for name in modules):
            known = sorted({name.rpartition(".")[2] for name in modules})
            near = difflib.get_close_matches(target, known, n=1)
            hint = f" Did you mean `{near[0]}`?" if near else ""
            message = (
                f"training.lora.target_modules: no module of {model.id} is named {target!r}.{hint} "
                f"There are {', '.join(known)}; `all-linear` takes every linear one but the head."
            )
            raise user_error("lora_target_modules", message, param="training.lora.target_modules")


def parameter_shapes(folder: Path) -> list[tuple[str, list[int]]]:
    """Names and shapes of the parameters in the folder's safetensors files, from their headers alone.

    Raises:
        RunError: there is no safetensors file, or one is damaged.
    """
    index = read_json(folder / "model.safetensors.index.json")
    names = sorted(set(index.get("weight_map", {}).values())) or ["model.safetensors"]
    return [named for file in names for named in _shapes_in(folder / file)]


def _shapes_in(file: Path) -> list[tuple[str, list[int]]]:
    try:
        with open(file, "rb") as stream:
            size = int.from_bytes(stream.read(8), "little")
            header = json.loads(stream.read(min(size, MAX_HEADER_BYTES)))
        return [(name, list(map(int, entry["shape"]))) for name, entry in header.items() if name != "__metadata__"]
    except FileNotFoundError:
        message = f"The model has no {file.name}. Save it with `save_pretrained`, which writes safetensors."
        raise user_error("invalid_model", message, param="model") from None
    except (ValueError, KeyError, TypeError, AttributeError):
        message = f"{file.name} of the model is no safetensors file, or is cut off. Copy it again."
        raise user_error("invalid_model", message, param="model") from None
