"""Replaces every "auto" of a TrainingSpec, and says why; refuses what was given but can't be.

DPO's defaults follow Zephyr, Tülu 3, SmolLM3 and OLMo 2. Supervised training follows Tülu 2
(Ivison et al. 2023, arXiv:2311.10702) for all weights, QLoRA (Dettmers et al. 2023, arXiv:2305.14314)
for an adapter's learning rate.
"""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from typing import Any, Literal, TypeVar

from dpo_core.errors import user_error
from dpo_core.footprint import Layout
from dpo_core.judged_metrics import NEEDS_VALIDATION
from dpo_core.loss_table import DISCOPOP_TAU, GAMMA_BETA_RATIO, Parameter, needing_reference, taking, usual_betas
from dpo_core.memory import STAGES_OF, DeviceFacts, Request, by_placement
from dpo_core.memory import plan as plan_memory
from dpo_core.model_folder import ModelFacts
from dpo_core.prepare_report import Lengths, MemoryReport, StageMemory, Value
from dpo_core.spec import Auto, Device, TrainingSpec

T = TypeVar("T")
FEW_STEPS = 30
"""Below so many a run is warned of: automatic batch sizes aim at a hundred."""


@dataclass(frozen=True, slots=True)
class Facts:
    """What a plan depends on beside the spec."""

    model: ModelFacts
    items: int
    """Pairs or examples of the training file that fit in max_length, before some are held out."""

    lengths: Lengths
    device: DeviceFacts

    weight: float = 1.0
    """How often an item is seen in an epoch, on average over the files; 1 where they have no weights."""

    has_validation_file: bool = False
    reference: ModelFacts | None = None
    """Of the model that `training.reference` names."""


@dataclass(frozen=True, slots=True)
class Resolution:
    training: TrainingSpec
    values: dict[str, Value]
    total_steps: int
    memory: MemoryReport
    warnings: list[str]


class Choices:
    """Takes each value from the spec where it was given, else the automatic one, and keeps the reasons."""

    def __init__(self, spec: TrainingSpec) -> None:
        self.spec = spec
        # By value, not by what was set: a spec that was stored and read back has every field set.
        defaults = TrainingSpec().model_dump()
        self.values = {
            name: Value(value=value, source="auto", reason="the default")
            if value == defaults[name]
            else Value(value=value, source="given", reason="given in the spec")
            for name, value in spec.model_dump().items()
        }

    def settle(self, name: str, given: T | Auto, automatic: tuple[T, str]) -> T:
        """The field's value; `automatic` is the value to choose and its reason."""
        if given != "auto":
            return given
        value, reason = automatic
        self.values[name] = Value(value=value, source="auto", reason=reason)
        return value


def resolve(spec: TrainingSpec, facts: Facts) -> Resolution:
    """The spec without "auto". Resolving its result again changes nothing.

    Raises:
        RunError: kind `user`; a given value is impossible with these facts or beside another one.
    """
    choices = Choices(spec)
    settle = choices.settle
    max_length = settle(
        "max_length", spec.max_length, choose_max_length(spec, facts.lengths, facts.model.context_length)
    )
    fraction = settle("validation_fraction", spec.validation_fraction, _validation_fraction(facts))
    kept = facts.items if facts.has_validation_file else facts.items - round(fraction * facts.items)
    train_items = round(kept * facts.weight)
    epochs = settle("epochs", spec.epochs, _epochs(spec))
    batch_size = settle("batch_size", spec.batch_size, _batch_size(spec, train_items, epochs))
    _refuse_impossible(spec, facts, max_length, batch_size, kept=kept, train_items=train_items)
    steps = total_steps(train_items, batch_size, epochs, spec.max_steps)
    tenth = max(1, math.ceil(steps / 10))
    automatic_rate, reason = _learning_rate(spec, facts.model.parameter_count)
    if spec.learning_rate_multiplier != 1:
        reason += f", times learning_rate_multiplier {spec.learning_rate_multiplier:g}"
    precision = settle("precision", spec.precision, _precision(facts.device.kind))
    request = _memory_request(spec, facts, max_length, batch_size, precision)
    memory = plan_memory(request, facts.model, facts.device)
    resolved: dict[str, Any] = {
        "max_length": max_length,
        "validation_fraction": fraction,
        "epochs": epochs,
        "batch_size": batch_size,
        **_loss_parameters(choices, spec),
        "learning_rate": settle(
            "learning_rate", spec.learning_rate, (automatic_rate * spec.learning_rate_multiplier, reason)
        ),
        "packing": settle("packing", spec.packing, ("shared", "what both answers share is computed once")),
        "precision": precision,
        **{name: settle(name, getattr(spec, name), choice) for name, choice in memory.choices().items()},
        "compile": settle("compile", spec.compile, _compile(facts.device.kind)),
        "evaluation_steps": settle("evaluation_steps", spec.evaluation_steps, (tenth, "10 evaluations a run")),
        "checkpoint_steps": settle("checkpoint_steps", spec.checkpoint_steps, (tenth, "10 checkpoints a run")),
        # It is in the learning rate now, and must not be applied again.
        "learning_rate_multiplier": 1.0,
    }
    training = TrainingSpec.model_validate({**spec.model_dump(), **resolved})
    report = _memory_report(request, facts, memory.layout)
    return Resolution(training, choices.values, steps, report, _warnings(training, steps) + memory.warnings)


def total_steps(train_items: int, batch_size: int, epochs: int, max_steps: int | None) -> int:
    """Optimizer steps of a run. An epoch's last batch may be smaller than the others; `max_steps` wins over epochs."""
    return max_steps if max_steps is not None else epochs * math.ceil(train_items / batch_size)


def choose_max_length(spec: TrainingSpec, lengths: Lengths, context_length: int | None) -> tuple[int, str]:
    """The smallest power of two that covers 99 % of the sequences, at least 2048, at most the model's context."""
    if spec.max_length != "auto":
        return spec.max_length, "given in the spec"
    covering = max(2048, 1 << max(lengths.p99 - 1, 0).bit_length())
    if context_length is not None and context_length < covering:
        return context_length, f"the model's context of {context_length} tokens"
    return covering, f"the smallest power of two, from 2048 on, that covers 99 % of the data ({lengths.p99} tokens)"


def _loss_parameters(choices: Choices, spec: TrainingSpec) -> dict[str, float | None]:
    """β follows the loss; the parameters of one loss are settled where it is in the sum."""
    (beta, name), *_ = usual_betas(spec.loss).items()
    settled: dict[str, float | None] = {
        "beta": choices.settle("beta", spec.beta, (beta, f"{beta:g}, the usual choice for `{name}`"))
    }
    advised: dict[Parameter, float] = {"gamma_beta_ratio": GAMMA_BETA_RATIO, "discopop_tau": DISCOPOP_TAU}
    for parameter, value in advised.items():
        takers = taking(spec.loss, parameter)
        given: float | None = getattr(spec, parameter)
        if takers:
            choice = (value, f"{value:g}, as the authors of `{takers[0]}` advise")
            settled[parameter] = choices.settle(parameter, "auto" if given is None else given, choice)
    return settled


def _validation_fraction(facts: Facts) -> tuple[float, str]:
    if facts.has_validation_file:
        return 0.0, "there is a validation file"
    if facts.items < 100:
        return 0.0, f"a tenth of {facts.items} rows would be too few to measure anything"
    held_out = min(max(200, min(2000, facts.items // 20)), facts.items // 10)
    return held_out / facts.items, f"{held_out} of {facts.items} rows: 5 %, from 200 to 2,000, at most a tenth"


def _epochs(spec: TrainingSpec) -> tuple[int, str]:
    if spec.method == "supervised":
        return 2, "2 for supervised training, as in Tülu 2"
    return 1, "1: preference training overfits in more"


def _batch_size(spec: TrainingSpec, train_items: int, epochs: int) -> tuple[int, str]:
    """A power of two, so long as there are rows for it."""
    usual, least = (128, 16) if spec.method == "dpo" else (32, 8)
    for_100_steps = train_items * epochs // 100
    batch_size = usual
    while batch_size > least and batch_size > for_100_steps:
        batch_size //= 2
    if batch_size > train_items:
        return max(train_items, 1), f"all {train_items} rows: there are fewer than {batch_size}"
    if batch_size > for_100_steps:
        return batch_size, f"{usual}, shrunk to {least} and no further: there are no rows for 100 steps"
    if batch_size < usual:
        return batch_size, f"{usual}, shrunk to make at least 100 steps"
    return usual, f"{usual}, the usual choice; there are rows for at least 100 steps"


def _learning_rate(spec: TrainingSpec, parameters: int) -> tuple[float, str]:
    """Sizes are nominal: a "3B" model may have 3.2e9 parameters, a "70B" one 6.9e10."""
    if spec.method == "supervised":
        if spec.lora is not None:
            return 2e-4, "2e-4 for a supervised adapter, as in QLoRA"
        return 2e-5, "2e-5 for supervised training of all weights, as in Tülu 2"
    if spec.lora is not None:
        return 5e-6, "5e-6 for DPO with an adapter"
    count = f"{parameters / 1e9:.3g}B" if parameters >= 1e9 else f"{parameters / 1e6:.3g}M"
    size = f"DPO of all weights, {count} parameters"
    if parameters < 3.5e9:
        return 1e-6, f"1e-6 for {size}"
    if parameters < 6.5e10:
        return 5e-7, f"5e-7 for {size}"
    return 2e-7, f"2e-7 for {size}"


def _precision(device: Device) -> tuple[Literal["float32", "bfloat16"], str]:
    if device == "cuda":
        return "bfloat16", "bfloat16 on a GPU, with float32 master weights"
    return "float32", "float32 on a CPU, where bfloat16 is slower"


def _compile(device: Device) -> tuple[bool, str]:
    if device != "cuda":
        return False, "off: on a CPU it saves a seventh of the time and needs a C++ compiler; worth it for a long run"
    return True, "on: fused kernels take less time and memory"


def _memory_request(spec: TrainingSpec, facts: Facts, max_length: int, batch_size: int, precision: str) -> Request:
    longest_item = (2 if spec.method == "dpo" else 1) * min(facts.lengths.longest, max_length)
    return Request(
        zero_stage=spec.zero_stage,
        offload=spec.offload,
        activation_checkpointing=spec.activation_checkpointing,
        micro_batch_tokens=spec.micro_batch_tokens,
        bfloat16=precision == "bfloat16",
        lora=spec.lora,
        longest_item=longest_item,
        largest_batch=batch_size * longest_item,
        reference=facts.reference,
    )


def _memory_report(request: Request, facts: Facts, chosen: Layout) -> MemoryReport:
    """What each ZeRO stage would take, beside the one that is taken."""
    stages = [
        StageMemory(
            zero_stage=it.layout.zero_stage,
            offload=it.layout.offload,
            activation_checkpointing=it.layout.activation_checkpointing,
            micro_batch_tokens=it.layout.micro_batch_tokens,
            rank={**asdict(it.footprint), "peak": it.footprint.peak},
            host=it.host,
            fits=it.fits,
            chosen=(it.layout.zero_stage, it.layout.offload) == (chosen.zero_stage, chosen.offload),
        )
        for it in by_placement(request, facts.model, facts.device)
    ]
    device = facts.device
    return MemoryReport(device=device.kind, ranks=device.ranks, rank=device.memory, stages=stages)


def _refuse_impossible(
    spec: TrainingSpec, facts: Facts, max_length: int, batch_size: int, *, kept: int, train_items: int
) -> None:
    """`kept`: items that are not held out; `train_items`: how often they are seen in an epoch, all together."""
    if spec.learning_rate != "auto" and spec.learning_rate_multiplier != 1:
        message = (
            "Both `learning_rate` and `learning_rate_multiplier` were given; the multiplier belongs to the "
            "automatic rate. Give one of them."
        )
        raise user_error("learning_rate_given_twice", message, param="training.learning_rate_multiplier")
    if spec.offload != "auto" and spec.zero_stage != "auto" and spec.zero_stage not in STAGES_OF[spec.offload]:
        message = (
            f"offload `{spec.offload}` needs zero_stage {' or '.join(map(str, STAGES_OF[spec.offload]))}; "
            f"{spec.zero_stage} is given. Raise `training.zero_stage`, or leave it `auto`."
        )
        raise user_error("offload_needs_sharding", message, param="training.offload")
    if facts.model.context_length is not None and max_length > facts.model.context_length:
        message = (
            f"max_length {max_length} is more than the model's context of {facts.model.context_length} tokens. "
            f"Give at most {facts.model.context_length}, or `auto`."
        )
        raise user_error("max_length_too_large", message, param="training.max_length")
    if spec.early_stopping is not None and not facts.has_validation_file and kept == facts.items:
        raise user_error("early_stopping_without_validation", NEEDS_VALIDATION, param="training.early_stopping")
    if batch_size > train_items > 0:
        message = (
            f"batch_size {batch_size} is more than the {train_items} rows there are to train on. "
            f"Give at most {train_items}, or `auto`, or add rows."
        )
        raise user_error("batch_size_too_large", message, param="training.batch_size")


def _warnings(training: TrainingSpec, steps: int) -> list[str]:
    found = []
    if training.method == "dpo" and steps < FEW_STEPS and training.max_steps is None:
        found.append(
            f"Only {steps} step{'s' * (steps > 1)}: at usual learning rates the model hardly changes in so few. "
            "Give more rows, or raise `training.epochs`."
        )
    if training.method == "dpo" and training.reference != "none" and not needing_reference(training.loss):
        found.append(
            "The loss needs no reference: it is measured for the rewards among the metrics alone. "
            "Set `training.reference` to `none` to save that pass over the data."
        )
    rate = training.learning_rate
    if training.method == "dpo" and training.lora is None and isinstance(rate, float) and rate >= 1e-5:
        found.append(f"A learning rate of {rate:g} is high for DPO of all weights: 1e-6 or less is usual.")
    return found
