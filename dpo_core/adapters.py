"""What an adapter keeps when it is trained on, whatever the spec says: scale, dropout and modules are its own."""

from __future__ import annotations

from typing import TYPE_CHECKING

from torch import nn

from dpo_core.models import adapter_config
from dpo_core.run_directory import Event
from dpo_core.spec import LoraSpec, RunSpec

if TYPE_CHECKING:
    from transformers import PreTrainedModel


def what_it_keeps(model: PreTrainedModel, run: RunSpec) -> Event | None:
    """The event that names where the adapter of `run.model` differs from `run.training.lora`; None where it doesn't.

    `model` is that adapter on its base. A warning if the spec asked for something else than the defaults.
    """
    lora = run.training.lora
    if lora is None or run.model.base_path is None:
        return None
    config = adapter_config(run.model.path)
    kept = {"alpha": config["lora_alpha"], "dropout": config["lora_dropout"], "target_modules": modules_of(config)}
    asked: dict[str, object] = {"alpha": lora.alpha, "dropout": lora.dropout, "target_modules": lora.target_modules}
    if lora.target_modules == "all-linear":
        if covers_all_linear(model):
            kept["target_modules"] = "all-linear"
    else:
        asked["target_modules"] = sorted(lora.target_modules)
    other = [name for name in kept if kept[name] != asked[name]]
    if not other:
        return None
    defaults = LoraSpec()
    return Event(
        level="warn" if any(getattr(lora, name) != getattr(defaults, name) for name in other) else "info",
        code="adapter_kept",
        message=f"{run.model.id} is trained on as it was made: {in_words(kept, other)}. "
        f"The spec's {in_words(asked, other)} does not apply; for that, start from its base.",
        data={name: str(kept[name]) for name in other},
    )


def modules_of(config: dict[str, object]) -> object:
    """Names in order, or the pattern that peft also takes."""
    names = config["target_modules"]
    return sorted(names) if isinstance(names, list) else names


def covers_all_linear(model: PreTrainedModel) -> bool:
    """Whether every linear layer but the head has an adapter, which is what `all-linear` means."""
    from peft.tuners.lora import LoraLayer

    adapted = {id(part) for layer in model.modules() if isinstance(layer, LoraLayer) for part in layer.modules()}
    head = model.get_output_embeddings()  # type: ignore[no-untyped-call]
    linear = (layer for layer in model.modules() if isinstance(layer, nn.Linear) and layer is not head)
    return all(id(layer) in adapted for layer in linear)


def in_words(values: dict[str, object], names: list[str]) -> str:
    lists = {name: " ".join(map(str, value)) for name, value in values.items() if isinstance(value, list)}
    said = values | lists
    return ", ".join(f"{name} {said[name]}" for name in names)
