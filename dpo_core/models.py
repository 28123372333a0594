"""From folders in Hugging Face form to a model in training, and from trained weights back to such a folder."""

from __future__ import annotations

import json
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, cast

import torch
from torch import Tensor, nn

from dpo_core.errors import user_error
from dpo_core.model_folder import configs, read_json
from dpo_core.spec import LoraSpec, ModelSource, RunSpec

if TYPE_CHECKING:
    from transformers import PreTrainedModel

LoadDevice = Literal["cpu", "meta"]
"""Where a model is loaded to: `meta` has names, shapes and types, but no values and no memory."""

ADAPTER_CONFIG = "adapter_config.json"
COPIED = (
    "generation_config.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "tokenizer.model",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.json",
    "vocab.txt",
    "merges.txt",
    "chat_template.jinja",
    "chat_template.json",
)
"""Files of the start that its checkpoints carry on unchanged."""
NAMED_TEMPLATES = "additional_chat_templates"
"""A folder of templates beside the default one, such as `tool_use`; carried on too."""


@dataclass(frozen=True, slots=True)
class Start:
    """The model that a run trains."""

    model: PreTrainedModel
    """With its adapter, where one is trained; what is not trained is frozen."""

    kind: Literal["full", "adapter"]
    base_id: str
    """What an adapter is an adapter of."""


def load_start(run: RunSpec, dtype: torch.dtype, device: LoadDevice = "cpu") -> Start:
    """Loads the model of `run` on the CPU, ready to train; on `meta` all of it but the values.

    | start     | `lora` given                      | `lora` not given      |
    |-----------|-----------------------------------|-----------------------|
    | a model   | a fresh adapter (B = 0)           | all its weights       |
    | an adapter| the same adapter is trained on    | merged, then all      |

    Raises:
        RunError: kind `user`; the folder is no model, or `lora` does not fit it.
    """
    lora = run.training.lora
    source = run.model
    if source.base_path is None:
        model, base_id = load_weights(source.path, dtype, device), source.id
        if lora is not None:
            model = fresh_adapter(model, lora, run.training.seed)
    elif lora is None:
        model, base_id = merged(source, dtype, device), source.id
    else:
        base_id = str(adapter_config(source.path)["base_model_name_or_path"])
        model = continued_adapter(source, lora, dtype, device)
    if run.training.activation_checkpointing is True:
        cast(Any, model).activation_checkpointing_enable({"use_reentrant": False})
    return Start(model, "full" if lora is None else "adapter", base_id)


def load_frozen(source: ModelSource, dtype: torch.dtype) -> PreTrainedModel:
    """A model to measure with: an adapter is merged into its base."""
    model = load_weights(source.path, dtype) if source.base_path is None else merged(source, dtype)
    model.requires_grad_(False)
    model.train(False)
    return model


def load_weights(folder: Path, dtype: torch.dtype, device: LoadDevice = "cpu") -> PreTrainedModel:
    """The model in `folder`, with its own dropout off, as in the code of DPO's authors.

    With it on, policy and reference would differ before the first update.
    """
    from transformers import AutoModelForCausalLM
    from transformers.utils.logging import disable_progress_bar

    disable_progress_bar()  # type: ignore[no-untyped-call]  # log files have no use for one
    try:
        model: PreTrainedModel = AutoModelForCausalLM.from_pretrained(
            folder,
            dtype=dtype,
            device_map="meta" if device == "meta" else None,
            local_files_only=True,
            use_safetensors=True,
            **dict.fromkeys(dropouts(folder), 0.0),
        )
    except (OSError, ValueError, KeyError) as error:
        if isinstance(error, OSError) and error.errno is not None:
            raise  # the system's own, such as a network's disk that is away; transformers' have no number
        raise user_error(
            "model_unreadable",
            f"The model folder {folder.name} can't be loaded: {error} It needs config.json and safetensors weights "
            "of a causal language model.",
            param="model",
        ) from error
    return model


def dropouts(folder: Path) -> dict[str, float]:
    """The rates of dropout that the folder's config.json names: `attention_dropout`, `resid_pdrop` and the like."""
    return {
        name: rate for name, rate in read_json(folder / "config.json").items() if "drop" in name and type(rate) is float
    }


def merged(source: ModelSource, dtype: torch.dtype, device: LoadDevice = "cpu") -> PreTrainedModel:
    """The base with its adapter merged, in float32 first: bfloat16 would round the small update away."""
    from peft import PeftModel

    assert source.base_path is not None  # noqa: S101 (the callers look)
    if device == "meta":
        return load_weights(source.base_path, dtype, device)
    base = load_weights(source.base_path, torch.float32)
    model: Any = PeftModel.from_pretrained(base, source.path).merge_and_unload()
    return with_weights_in(dtype, cast("PreTrainedModel", model.requires_grad_(True)))


def fresh_adapter(model: PreTrainedModel, lora: LoraSpec, seed: int) -> PreTrainedModel:
    """Adds a LoRA adapter whose update is 0: B is zero, A is drawn from `seed` (Hu et al. 2021, arXiv:2106.09685)."""
    from peft import LoraConfig, get_peft_model

    config = LoraConfig(
        r=lora.rank,
        lora_alpha=cast(int, int(lora.alpha) if lora.alpha.is_integer() else lora.alpha),  # serving engines want an int
        lora_dropout=lora.dropout,
        target_modules=lora.target_modules,
        task_type="CAUSAL_LM",
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        try:
            adapted: Any = get_peft_model(model, config, autocast_adapter_dtype=False)
        except ValueError as error:
            raise user_error(
                "lora_target_modules",
                f"training.lora.target_modules does not fit this model: {error}",
                param="training.lora.target_modules",
            ) from error
    return cast("PreTrainedModel", adapted)


def continued_adapter(source: ModelSource, lora: LoraSpec, dtype: torch.dtype, device: LoadDevice) -> PreTrainedModel:
    from peft import PeftConfig, PeftModel, get_peft_model

    assert source.base_path is not None  # noqa: S101 (the caller looks)
    config = adapter_config(source.path)
    if config["r"] != lora.rank:
        raise user_error(
            "lora_rank",
            f"{source.id} is an adapter of rank {config['r']}; training it on can't change that to {lora.rank}. "
            f"Ask for rank {config['r']}, or leave `lora` out to merge it and train all weights.",
            param="training.lora.rank",
        )
    base = load_weights(source.base_path, dtype, device)
    if device == "meta":
        shape = PeftConfig.from_pretrained(str(source.path))
        shape.inference_mode = False
        return cast("PreTrainedModel", get_peft_model(base, shape, autocast_adapter_dtype=False))
    model: Any = PeftModel.from_pretrained(base, source.path, is_trainable=True, autocast_adapter_dtype=False)
    # Under bfloat16 the adapter's own files may be float32.
    return with_weights_in(dtype, cast("PreTrainedModel", model))


def with_weights_in(dtype: torch.dtype, model: PreTrainedModel) -> PreTrainedModel:
    """Casts parameters and no buffers: rotary frequencies in bfloat16 would shift every later position."""
    for parameter in model.parameters():
        parameter.data = parameter.data.to(dtype)
    return model


def adapter_config(folder: Path) -> dict[str, object]:
    try:
        config: dict[str, object] = json.loads((folder / ADAPTER_CONFIG).read_text(encoding="utf-8"))
    except (FileNotFoundError, ValueError) as error:
        raise user_error(
            "adapter_unreadable", f"The adapter folder {folder.name} has no readable {ADAPTER_CONFIG}.", param="model"
        ) from error
    return config


def save_model(start: Start, weights: dict[str, Tensor], run: RunSpec, folder: Path) -> None:
    """Writes `weights` (trained parameters by name) as a folder that `from_pretrained` or peft loads.

    Tokenizer, chat template and generation config are the start's own files.
    """
    if start.kind == "full":
        weights = weights | persistent_buffers(start.model)
    start.model.save_pretrained(folder, state_dict=weights, max_shard_size="5GB")
    if start.kind == "adapter":
        (folder / "README.md").unlink(missing_ok=True)  # peft's empty model card
        rewrite_json(folder / ADAPTER_CONFIG, base_model_name_or_path=start.base_id)
    else:
        # The model in training may be of a wider type than the weights that are written, and has no dropout.
        dtype = str(next(iter(weights.values())).dtype).removeprefix("torch.")
        rewrite_json(folder / "config.json", dtype=dtype, **dropouts(run.model.base_path or run.model.path))
    copy_companions(run.model, folder)
    if run.training.chat_template is not None:
        (folder / "chat_template.jinja").write_text(run.training.chat_template, encoding="utf-8")


def copy_companions(source: ModelSource, folder: Path) -> None:
    """Tokenizer, chat template and generation config: the files of `source` itself, those of an adapter before its
    base's.

    Raises:
        FileNotFoundError: a folder is not there any more. What is missing in it would be missing in the result.
    """
    for start in filter(None, (source.base_path, source.path)):
        configs(start)  # raises
        for name in COPIED:
            if (start / name).is_file():
                shutil.copyfile(start / name, folder / name)
        if (start / NAMED_TEMPLATES).is_dir():
            shutil.copytree(start / NAMED_TEMPLATES, folder / NAMED_TEMPLATES, dirs_exist_ok=True)


def persistent_buffers(model: nn.Module) -> dict[str, Tensor]:
    """What no gradient reaches but belongs to the weights all the same, such as the bias of a router of experts."""
    stored = model.state_dict().keys()
    return {name: buffer.detach().cpu() for name, buffer in model.named_buffers() if name in stored}


def rewrite_json(path: Path, **changes: str | float) -> None:
    """Changes fields, and sorts keys and lists of names: peft writes a set in the order of its hashes."""
    record = json.loads(path.read_text(encoding="utf-8")) | changes
    if isinstance(record.get("target_modules"), list):
        record["target_modules"].sort()
    path.write_text(json.dumps(record, indent=2, sort_keys=True) + "\n", encoding="utf-8")
