"""What `dpo_core.check` may be asked: `spec.json` of a check's run directory, with paths instead of ids."""

from __future__ import annotations

from datetime import date
from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field

from dpo_core.spec import ModelSource, PositiveInt, RunSpec, StrictModel

ANSWERS = 4
"""Raised with every change of what an answer says: answers of an earlier version are not given any more."""


class FileQuestion(StrictModel):
    """What the file holds: a FileReport."""

    kind: Literal["file"] = "file"
    file: Path
    columns: dict[str, str] = Field(default_factory=dict)
    """As in a training spec; here and below."""


class TokenQuestion(StrictModel):
    """What the model's tokenizer and chat template make of the file: a TokenReport."""

    kind: Literal["model_file"] = "model_file"
    file: Path
    columns: dict[str, str] = Field(default_factory=dict)
    model: ModelSource
    today: date
    """What a chat template writes that asks for the date."""


class PreviewQuestion(StrictModel):
    """Some rows as the model will see them: a Preview."""

    kind: Literal["preview"] = "preview"
    file: Path
    columns: dict[str, str] = Field(default_factory=dict)
    model: ModelSource
    today: date
    limit: PositiveInt
    lines: list[PositiveInt]
    max_length: PositiveInt | None


class EstimateQuestion(StrictModel):
    """What a job would be and take: a Prepared, without its reference group."""

    kind: Literal["estimate"] = "estimate"
    run: RunSpec


Question = FileQuestion | TokenQuestion | PreviewQuestion | EstimateQuestion


class MergeSpec(StrictModel):
    """`spec.json` of `dpo_core.merge`, whose answer is the Manifest of the model that it made."""

    model: ModelSource
    """An adapter, with its base."""

    dtype: str
    """Of the merged weights, in safetensors' spelling: that of the base."""

    step: int


class CheckSpec(StrictModel):
    question: Annotated[Question, Field(discriminator="kind")]
