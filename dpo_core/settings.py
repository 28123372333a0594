"""A TrainingSpec without "auto": the numbers that the training loop reads."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TypeVar

from dpo_core.errors import user_error
from dpo_core.spec import Auto, Offload, RunSpec, Way

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Settings:
    learning_rate: float
    batch_size: int
    micro_batch_tokens: int
    way: Way
    zero_stage: int
    offload: Offload
    activation_checkpointing: bool
    compile: bool
    bfloat16: bool
    epochs: int
    evaluation_steps: int
    checkpoint_steps: int

    @classmethod
    def of(cls, run: RunSpec) -> Settings:
        """Reads `run.training`.

        Raises:
            RunError: kind `user`; a field is still "auto".
        """
        training = run.training
        return cls(
            learning_rate=given(training.learning_rate, "learning_rate"),
            batch_size=given(training.batch_size, "batch_size"),
            micro_batch_tokens=given(training.micro_batch_tokens, "micro_batch_tokens"),
            way=given(training.packing, "packing"),
            zero_stage=given(training.zero_stage, "zero_stage"),
            offload=given(training.offload, "offload"),
            activation_checkpointing=given(training.activation_checkpointing, "activation_checkpointing"),
            compile=given(training.compile, "compile"),
            bfloat16=given(training.precision, "precision") == "bfloat16",
            epochs=given(training.epochs, "epochs"),
            evaluation_steps=given(training.evaluation_steps, "evaluation_steps"),
            checkpoint_steps=given(training.checkpoint_steps, "checkpoint_steps"),
        )


def given(value: T | Auto, name: str) -> T:
    if value == "auto":
        raise user_error(
            "unresolved_auto", f"training.{name} is still `auto`: resolve the spec before training.", param=name
        )
    return value
