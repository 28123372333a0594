"""What a model folder in Hugging Face form holds, read without loading a weight, a pickle or any code.

Everything that would fail hours later in training is refused here, with the way out. The folder's own
Python is never run, and a `.bin` (a pickle: a program) is never opened.
"""

from __future__ import annotations

import json
import re
from collections import Counter
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from tokenizers import Tokenizer

from control_plane.errors import InvalidRequest
from dpo_core.data.tokenizer import chat_template, load_tokenizer
from dpo_core.errors import RunError

WEIGHTS = "model.safetensors"
INDEX = "model.safetensors.index.json"
CARD_CHARACTERS = 64 * 1024
"""As much of a model card is read for its front matter."""


@dataclass(frozen=True)
class ModelFacts:
    """`dtype` is the one that most parameters have, in safetensors' spelling (F32, BF16, …)."""

    model_type: str
    architectures: list[str]
    parameters: int
    bytes: int
    dtype: str
    context_length: int | None
    vocabulary: int
    chat_template: bool
    license: str | None
    """What the folder's model card names; its checkpoints name the same."""


def inspect_folder(folder: Path) -> ModelFacts:
    """Facts of a causal language model's folder. Raises InvalidRequest with what is wrong and the way out."""
    if not folder.is_dir():
        raise _refused(f"{folder} is no folder. Give the folder that holds the model's config.json.")
    config = _read_json(folder, "config.json", "Save the model with save_pretrained, which writes it.")
    _refuse_unsupported(folder, config)
    shards = _shards(folder)
    parameters, sizes = _count(folder, shards)
    text_config = config.get("text_config", config)
    return ModelFacts(
        model_type=str(config["model_type"]),
        architectures=[str(name) for name in config.get("architectures") or []],
        parameters=parameters,
        bytes=sum((folder / name).stat().st_size for name in shards),
        dtype=sizes.most_common(1)[0][0],
        context_length=text_config.get("max_position_embeddings"),
        vocabulary=_tokenizer(folder).get_vocab_size(with_added_tokens=True),
        chat_template=_has_chat_template(folder),
        license=_license(folder),
    )


def _refused(message: str, code: str = "invalid_model") -> InvalidRequest:
    return InvalidRequest(message, param="path", code=code)


def _read_json(folder: Path, name: str, way_out: str) -> dict[str, Any]:
    path = folder / name
    try:
        value = json.loads(path.read_bytes())
    except FileNotFoundError:
        raise _refused(f"{path} is missing. {way_out}") from None
    except ValueError as error:
        raise _refused(f"{path} is not valid JSON ({error}). {way_out}") from None
    if not isinstance(value, dict):
        raise _refused(f"{path} holds a {type(value).__name__}, not a JSON object. {way_out}")
    return value


def _refuse_unsupported(folder: Path, config: dict[str, Any]) -> None:
    if not isinstance(config.get("model_type"), str):
        raise _refused(f"{folder / 'config.json'} has no model_type, so nothing says what to build from it.")
    if "auto_map" in config:
        raise _refused(
            f"{folder / 'config.json'} asks for Python code of its own (auto_map), which is never run here. "
            f"If transformers knows {config['model_type']!r} by itself, remove the auto_map entry and try again.",
            code="remote_code_refused",
        )
    if config.get("is_encoder_decoder"):
        raise _refused(f"{folder} is an encoder-decoder model; only causal language models can be trained here.")
    if config.get("quantization_config"):
        raise _refused(f"{folder} holds quantised weights, which can't be trained; register the model they came from.")
    if (folder / "adapter_config.json").exists():
        raise _refused(f"{folder} is an adapter; merge it into its base model first (peft: merge_and_unload).")


def _shards(folder: Path) -> dict[str, set[str] | None]:
    """The weight files, and for an indexed model the names of the tensors that each must hold."""
    if not (folder / INDEX).exists():
        if (folder / WEIGHTS).exists():
            return {WEIGHTS: None}
        raise _no_safetensors(folder)
    weight_map = _read_json(folder, INDEX, "Save the model again with save_pretrained.").get("weight_map")
    if not isinstance(weight_map, dict) or not weight_map:
        raise _refused(f"{folder / INDEX} has no weight_map. Save the model again with save_pretrained.")
    shards: dict[str, set[str] | None] = {}
    for name in sorted(set(weight_map.values())):
        if Path(name).name != name:
            raise _refused(f"{folder / INDEX} names {name!r}, which is not a file of this folder.")
        if not (folder / name).is_file():
            raise _refused(f"{folder / INDEX} names {name}, which is missing. Copy the model again, whole.")
        shards[name] = {tensor for tensor, shard in weight_map.items() if shard == name}
    return shards


def _no_safetensors(folder: Path) -> InvalidRequest:
    if not any(folder.glob("*.bin")) and not any(folder.glob("*.pt")) and not any(folder.glob("*.pth")):
        return _refused(f"{folder} has no weights: neither {WEIGHTS} nor {INDEX} is there.")
    return _refused(
        f"{folder} has its weights as pickles (.bin), which can run code when they are opened; only safetensors are "
        "read here. If you trust where they came from, convert them on a machine of yours and register the result:\n"
        "    from transformers import AutoModelForCausalLM, AutoTokenizer\n"
        f"    AutoModelForCausalLM.from_pretrained({str(folder)!r}).save_pretrained({str(folder) + '-safetensors'!r})\n"
        f"    AutoTokenizer.from_pretrained({str(folder)!r}).save_pretrained({str(folder) + '-safetensors'!r})",
        code="pickle_refused",
    )


def _count(folder: Path, shards: dict[str, set[str] | None]) -> tuple[int, Counter[str]]:
    """Parameters in all and per dtype, from the safetensors headers alone."""
    sizes: Counter[str] = Counter()
    for name, expected in shards.items():
        try:
            with safe_open(folder / name, "numpy") as file:
                tensors = {key: file.get_slice(key) for key in file.keys()}  # noqa: SIM118 - it is no mapping
                for tensor in tensors.values():
                    sizes[tensor.get_dtype()] += prod(tensor.get_shape())
        except (SafetensorError, OSError) as error:
            raise _refused(f"{folder / name} can't be read as safetensors ({error}). Copy it again, whole.") from None
        if expected is not None and expected != set(tensors):
            stray = sorted(expected ^ set(tensors))[0]
            raise _refused(f"{folder / INDEX} and {name} disagree about {stray!r}. Copy the model again, whole.")
    if not sizes:
        raise _refused(f"{folder} holds no tensor.")
    return sizes.total(), sizes


def _tokenizer(folder: Path) -> Tokenizer:
    path = folder / "tokenizer.json"
    if not path.exists():
        raise _refused(
            f"{path} is missing. Make it from the tokenizer's other files:\n"
            "    from transformers import AutoTokenizer\n"
            f"    AutoTokenizer.from_pretrained({str(folder)!r}, use_fast=True).save_pretrained({str(folder)!r})"
        )
    try:
        return load_tokenizer(folder)
    except RunError as error:
        raise _refused(f"{folder}: {error.failure.message}") from None


def _has_chat_template(folder: Path) -> bool:
    config = folder / "tokenizer_config.json"
    if config.exists() and "auto_map" in _read_json(folder, config.name, "Save the tokenizer with save_pretrained."):
        raise _refused(
            f"{config} asks for Python code of its own (auto_map), which is never run here. "
            "Remove the entry if tokenizer.json is enough by itself.",
            code="remote_code_refused",
        )
    return chat_template(folder) is not None


def _license(folder: Path) -> str | None:
    """`license` in the front matter of the folder's README.md, which is the Hub's model card."""
    try:
        with open(folder / "README.md", encoding="utf-8", errors="replace") as card:
            text = card.read(CARD_CHARACTERS)
    except OSError:
        return None
    front = re.match(r"---\r?\n(.*?)\n---", text, re.DOTALL)
    if front is None:
        return None
    found = re.search(r"^license:[ \t]*[\"']?([A-Za-z0-9.+-]{1,64})[\"']?[ \t]*\r?$", front[1], re.MULTILINE)
    return found[1] if found else None
