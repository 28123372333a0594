"""What one training run is asked to do: TrainingSpec (the user's choices) and RunSpec (one attempt).

Imports no torch: the API validates specs with it. Field names are the ones of the HTTP API's
`training` object. `"auto"` stands for "choose for me"; `dpo_core.plan.resolve` replaces every one of
them and says why.
"""

from __future__ import annotations

from datetime import date
from pathlib import Path
from typing import Annotated, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator
from pydantic_core import PydanticCustomError

from dpo_core.data import columns as column_names
from dpo_core.judged_metrics import cannot_judge
from dpo_core.loss_table import (
    Loss,
    Parameter,
    needing_reference,
    takers_of,
    taking,
    usual_betas,
    weights_of,
    what_is_wrong,
)

Auto = Literal["auto"]
Method = Literal["dpo", "supervised"]
Device = Literal["cpu", "cuda"]
Way = Literal["shared", "separate", "padded"]
Offload = Literal["none", "optimizer", "parameters"]
ScoredAnswers = Literal["best_worst", "all"]
PositiveInt = Annotated[int, Field(ge=1)]
Weight = Annotated[float, Field(gt=0, le=100)]


class StrictModel(BaseModel):
    """Refuses unknown fields, and NaN or infinity for numbers."""

    model_config = ConfigDict(extra="forbid", allow_inf_nan=False, use_attribute_docstrings=True)


def refusal(message: str, field: str | None = None) -> PydanticCustomError:
    """A validator's whole sentence, way out included; `field` where the validator sees more than one."""
    return PydanticCustomError("refused", "{message}", {"message": message, "field": field})


class LoraSpec(StrictModel):
    rank: Annotated[int, Field(ge=1, le=1024)] = 16
    """Rank r of the update B·A (Hu et al. 2021, arXiv:2106.09685). vLLM serves up to 16 by default."""

    alpha: Annotated[float, Field(gt=0)] = 16.0
    """The update is scaled by alpha / rank."""

    dropout: Annotated[float, Field(ge=0, lt=1)] = 0.0
    """Dropout on the adapter's input, the only one there is: a model's own is off. 0 keeps policy and reference
    equal at step 0."""

    target_modules: Literal["all-linear"] | Annotated[list[str], Field(min_length=1)] = "all-linear"
    """Module names that get an adapter; `all-linear` is every linear layer but the head."""


class EarlyStopping(StrictModel):
    metric: str = "loss"
    """The validation metric that has to improve: `loss`, `rewards/accuracies` … (`dpo_core.judged_metrics`)."""

    patience: PositiveInt = 3
    """Evaluations in a row without improvement after which the run ends."""

    min_delta: Annotated[float, Field(ge=0)] = 0.0
    """An improvement is larger than this, in the metric's own unit."""


class TrainingFields(StrictModel):
    """Every choice of a training run; `"auto"` leaves one to the service, which says what it took and why."""

    method: Method = "dpo"
    """`dpo` (Rafailov et al. 2023, arXiv:2305.18290), or `supervised`: cross-entropy on the completion."""

    loss: Loss = "sigmoid"
    """The preference loss, or a weighted sum as `{name: weight}`; `sigmoid` is the DPO paper's equation 7."""

    beta: Annotated[float, Field(gt=0, le=100)] | Auto = "auto"
    """How strongly the policy is held to the reference: the KL weight of the RLHF objective. One for all losses."""

    label_smoothing: Annotated[float, Field(ge=0, lt=0.5)] = 0.0
    """The probability that a label is flipped: `sigmoid` (conservative DPO), `robust` and `exo_pair` take it."""

    gamma_beta_ratio: Annotated[float, Field(ge=0, le=100)] | None = None
    """`simpo`'s target margin γ, as a multiple of β; None is 0.5, its authors' advice."""

    discopop_tau: Annotated[float, Field(gt=0, le=1)] | None = None
    """`discopop`'s temperature τ; None is the paper's 0.05."""

    reference: str = "start"
    """`start`: the model the job starts from; otherwise a model id; `none` is for losses that need none."""

    learning_rate: Annotated[float, Field(gt=0, le=1)] | Auto = "auto"
    """Peak learning rate of AdamW."""

    learning_rate_multiplier: Annotated[float, Field(gt=0, le=1000)] = 1.0
    """Multiplies the automatic learning rate; refused beside a `learning_rate` that was given."""

    batch_size: PositiveInt | Auto = "auto"
    """Pairs (supervised: examples) per optimizer step, over all ranks together."""

    micro_batch_tokens: PositiveInt | Auto = "auto"
    """Tokens per rank in one forward pass, at least one pair. Changes memory and speed, not the result."""

    packing: Way | Auto = "auto"
    """How pairs stand in a forward pass: `shared` computes what both answers share once, `separate` packs whole
    sequences, `padded` gives each a row. Changes speed, not the result; `auto` is shared where the model allows it."""

    epochs: PositiveInt | Auto = "auto"
    """Passes over the training file."""

    max_steps: PositiveInt | None = None
    """Stop after this many optimizer steps, whatever `epochs` says."""

    max_length: Annotated[int, Field(ge=8)] | Auto = "auto"
    """Tokens per sequence. Longer ones lose whole turns from the left of the prompt, or are dropped."""

    schedule: Literal["linear", "cosine", "constant"] = "linear"
    """The learning rate after warm-up: to 0 linearly, to 0 by a cosine, or constant."""

    warmup_ratio: Annotated[float, Field(ge=0, lt=1)] = 0.1
    """The share of all steps in which the rate rises from 0 linearly."""

    weight_decay: Annotated[float, Field(ge=0, le=1)] = 0.0
    """AdamW's decoupled weight decay."""

    adam_beta1: Annotated[float, Field(ge=0, lt=1)] = 0.9
    """Decay of AdamW's first moment."""

    adam_beta2: Annotated[float, Field(ge=0, lt=1)] = 0.999
    """Decay of AdamW's second moment."""

    max_grad_norm: Annotated[float, Field(gt=0)] = 1.0
    """The global gradient norm is clipped to this."""

    lora: LoraSpec | None = None
    """Train an adapter instead of all weights."""

    precision: Literal["float32", "bfloat16"] | Auto = "auto"
    """Compute type; master weights and moments are float32 either way."""

    zero_stage: Annotated[int, Field(ge=0, le=3)] | Auto = "auto"
    """DeepSpeed ZeRO stage (Rajbhandari et al. 2020): what is sharded over ranks."""

    activation_checkpointing: bool | Auto = "auto"
    """Recompute activations in the backward pass (Chen et al. 2016, arXiv:1604.06174): less memory, more time."""

    offload: Offload | Auto = "auto"
    """What rests in the host's memory instead of the GPU's (ZeRO-Offload, Ren et al. 2021, arXiv:2101.06840):
    AdamW's state and the update (`optimizer`, ZeRO stage 2 or 3), or the weights as well (`parameters`, stage 3)."""

    compile: bool | Auto = "auto"
    """Let torch.compile fuse what stands between matrix products and attention: faster, after some seconds. `auto`:
    on a GPU; on a CPU it needs a C++ compiler. Where it can't be done, the run goes on without, and an event
    says why."""

    columns: dict[str, str] = Field(default_factory=dict)
    """The file's own column for a field, such as `{"chosen": "good_answer"}`, where its names say nothing
    (docs/data.md)."""

    scored_answers: ScoredAnswers = "best_worst"
    """Pairs that are made of several scored answers to one prompt: the best against the worst, or all that differ."""

    chat_template: str | None = None
    """A Jinja chat template that replaces the tokenizer's own."""

    chat_template_kwargs: dict[str, str | int | float | bool] = Field(default_factory=dict)
    """Extra variables for the chat template, such as `enable_thinking`."""

    skip_bad_rows: Annotated[float, Field(ge=0, le=1)] = 0.0
    """The share of a file's rows that may be bad: so many are left out and reported. 0 refuses a file with any."""

    validation_fraction: Annotated[float, Field(ge=0, lt=1)] | Auto = "auto"
    """The share of the training file held out, split by prompt, where no validation file is given."""

    evaluation_steps: PositiveInt | Auto = "auto"
    """Steps between evaluations on the validation file (auto: 10 evaluations a run)."""

    checkpoint_steps: PositiveInt | Auto = "auto"
    """Steps between checkpoints; the last step always makes one."""

    keep_last: PositiveInt = 10
    """Checkpoints that are kept, the newest; the last one of a run is among them. An older one is deleted once a newer
    one is published, but never while another job or adapter stands on it."""

    keep_best: PositiveInt = 1
    """Checkpoints that are kept besides because they are the best by validation, as `early_stopping` or the loss has
    it; the first of them is the model `{name}-best`."""

    skip_nonfinite_steps: Annotated[int, Field(ge=0)] = 0
    """How many steps may be skipped because their loss or gradient is NaN or infinite: no rank updates anything then,
    and an event names the pairs. One more ends the run; 0 ends it with the first."""

    early_stopping: EarlyStopping | None = None
    """Ends the run when the validation metric no longer improves; each improvement makes a checkpoint."""

    seed: Annotated[int, Field(ge=0, lt=2**31)] = 42
    """Seeds the order of the data, LoRA's initial weights and dropout."""

    @field_validator("loss", mode="before")
    @classmethod
    def _loss_is_known(cls, loss: object) -> object:
        # Before pydantic's own check, which would answer a misspelt name with every branch of the union.
        if problem := what_is_wrong(loss):
            raise refusal(problem)
        return loss

    @field_validator("columns")
    @classmethod
    def _columns_are_known(cls, columns: dict[str, str]) -> dict[str, str]:
        if problem := column_names.what_is_wrong(columns):
            raise refusal(problem)
        return columns


class TrainingSpec(TrainingFields):
    """Choices that go together."""

    @model_validator(mode="after")
    def _loss_has_what_it_takes(self) -> Self:
        if self.method == "supervised":
            for name in ("loss", "label_smoothing", "gamma_beta_ratio", "discopop_tau"):
                if getattr(self, name) != TrainingFields.model_fields[name].default:
                    raise refusal(f"`{name}` belongs to method `dpo`; leave it out, or set the method.", name)
            return self
        self._refuse_parameters_without_a_loss()
        if "exo_pair" in weights_of(self.loss) and self.label_smoothing == 0:
            message = "`exo_pair` needs `label_smoothing` above 0, as it holds log ε. Its paper takes 0.001."
            raise refusal(message, "label_smoothing")
        needing = needing_reference(self.loss)
        if needing and self.reference == "none":
            message = f"The loss `{needing[0]}` needs a reference. Set `reference` to `start` or a model id."
            raise refusal(message, "reference")
        betas = usual_betas(self.loss)
        if self.beta == "auto" and len(betas) > 1:
            usual = " and ".join(f"{beta:g} for `{name}`" for beta, name in betas.items())
            raise refusal(f"The losses share one `beta`, and usual are {usual}. Give `beta`.", "beta")
        return self

    @model_validator(mode="after")
    def _early_stopping_can_judge(self) -> Self:
        if self.early_stopping is not None and (wrong := cannot_judge(self.early_stopping.metric, self.method)):
            raise refusal(wrong, "early_stopping.metric")
        return self

    def _refuse_parameters_without_a_loss(self) -> None:
        given: dict[Parameter, float | None] = {
            "label_smoothing": self.label_smoothing or None,
            "gamma_beta_ratio": self.gamma_beta_ratio,
            "discopop_tau": self.discopop_tau,
        }
        for parameter, value in given.items():
            if value is not None and not taking(self.loss, parameter):
                names = ", ".join(f"`{name}`" for name in weights_of(self.loss))
                takers = ", ".join(f"`{name}`" for name in takers_of(parameter))
                message = f"`{parameter}` does nothing for {names}: only {takers} take it. Leave it out."
                raise refusal(message, parameter)


class ModelSource(StrictModel):
    """A model folder in Hugging Face form. For an adapter, `base_path` is the model it was trained on."""

    id: str
    path: Path
    base_path: Path | None = None


class WeighedFile(StrictModel):
    """One of several training files."""

    id: str
    """What reports call it."""

    path: Path
    weight: Weight = 1.0
    """How often each of its pairs is seen in an epoch: 0.5 is a seeded half of them, 2.5 twice and a seeded half."""


class RunSpec(StrictModel):
    """`spec.json` of a run directory: everything one attempt needs, with paths instead of ids."""

    job_id: str
    fence: Annotated[int, Field(ge=0)] = 0
    """The attempt's fencing token; the supervisor refuses results of an older one."""

    training: TrainingSpec
    model: ModelSource
    reference: ModelSource | None = None
    """Only when `training.reference` names a model; None means `start` (or `none`)."""

    reference_cache: Path | None = None
    """A folder of reference log-probabilities that are known already (dpo_core/reference_cache.py)."""

    training_file: Path
    training_files: list[WeighedFile] = Field(default_factory=list)
    """Where there are several: all of them. `training_file` is one."""

    validation_file: Path | None = None
    today: date = Field(default_factory=date.today)
    """The day that a chat template writes where it asks for the date: one for all attempts, whenever they run."""

    ranks: PositiveInt = 1
    """Training processes; on CUDA one per GPU."""

    device: Device = "cpu"
    resume_from: Path | None = None
    """A complete checkpoint folder (with its manifest) to go on from."""
