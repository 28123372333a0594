"""Runs of TRL's DPOTrainer in a process of their own, by TRL's venv: `python trl_run.py SETTINGS.json`.

Imports nothing of this project. The trainer is TRL's own but for three things: it is given token ids instead of
text, so that both sides train on the same tokens; it takes the pairs in the order of the file; and it is looked at
from outside: the clock after each step, the losses, the gradient of the first step.
"""

from __future__ import annotations

import gc
import json
import resource
import sys
import time
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset
from safetensors.torch import save_file
from torch.utils.data import SequentialSampler
from transformers import AutoModelForCausalLM, AutoTokenizer, TrainerCallback
from trl import DPOConfig, DPOTrainer


class WatchedTrainer(DPOTrainer):
    """DPOTrainer on token ids, in the order of the file, that remembers losses and the first gradient."""

    def __init__(self, *arguments: Any, gradients: str | None, **options: Any) -> None:
        self.gradients = gradients
        self.micro_losses: list[torch.Tensor] = []
        self.reference_seconds = 0.0
        super().__init__(*arguments, **options)

    def _prepare_dataset(self, dataset: Dataset, *_: Any) -> Dataset:
        return dataset

    def _get_train_sampler(self, dataset: Dataset | None = None) -> SequentialSampler:
        return SequentialSampler(dataset or self.train_dataset)

    def _precompute_ref_logps(self, *arguments: Any) -> Dataset:
        started = time.monotonic()
        dataset = super()._precompute_ref_logps(*arguments)
        self.reference_seconds = time.monotonic() - started
        return dataset

    def training_step(self, *arguments: Any, **options: Any) -> torch.Tensor:
        loss: torch.Tensor = super().training_step(*arguments, **options)
        self.micro_losses.append(loss)
        if self.gradients and self.state.global_step == 0:
            # Overwritten until the step's last micro-batch is in; the norm is clipped later.
            named = self.model.named_parameters()
            save_file({name: it.grad.float().cpu() for name, it in named if it.grad is not None}, self.gradients)
        return loss

    def losses(self, micro_batches: int) -> list[float]:
        """Per step; `training_step` has divided each micro-batch's mean by their number."""
        values = torch.stack(self.micro_losses).view(-1, micro_batches).sum(1)
        return values.tolist()


class Clock(TrainerCallback):
    """The time after each step, and the peak memory there."""

    def __init__(self, cuda: bool) -> None:
        self.cuda = cuda
        self.times: list[float] = []
        self.peaks: list[int] = []

    def on_step_end(self, *_: Any, **__: Any) -> None:
        if self.cuda:
            torch.cuda.synchronize()
        self.times.append(time.monotonic())
        self.peaks.append(torch.cuda.max_memory_allocated() if self.cuda else resident_peak())


def resident_peak() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def trainer(settings: dict[str, Any], clock: Clock) -> WatchedTrainer:
    rows = json.loads(Path(settings["tokens"]).read_bytes())
    micro_batch = settings["micro_batch"]
    config = DPOConfig(
        output_dir=settings["output"],
        per_device_train_batch_size=micro_batch,
        gradient_accumulation_steps=settings["batch_size"] // micro_batch,
        gradient_checkpointing=settings["checkpointing"],
        precompute_ref_log_probs=settings["precomputed"],
        beta=settings["beta"],
        learning_rate=settings["learning_rate"],
        lr_scheduler_type="constant",
        max_grad_norm=1.0,
        max_length=None,
        num_train_epochs=1,
        bf16=settings["device"] == "cuda",
        use_cpu=settings["device"] == "cpu",
        # Nothing but training.
        logging_strategy="no",
        save_strategy="no",
        report_to="none",
        disable_tqdm=True,
        dataloader_pin_memory=settings["device"] == "cuda",
    )
    model = AutoModelForCausalLM.from_pretrained(settings["model"], dtype=getattr(torch, settings["weights"]))
    return WatchedTrainer(
        model=model,
        args=config,
        train_dataset=Dataset.from_list(rows),
        processing_class=AutoTokenizer.from_pretrained(settings["model"]),
        callbacks=[clock],
        peft_config=lora(settings["lora_rank"]) if settings["lora_rank"] else None,
        gradients=settings["gradients"],
    )


def lora(rank: int) -> Any:
    from peft import LoraConfig

    return LoraConfig(r=rank, lora_alpha=rank, target_modules="all-linear", task_type="CAUSAL_LM")


def main(settings: dict[str, Any]) -> dict[str, Any]:
    """One run's outcome."""
    imported = resident_peak() if settings["device"] == "cpu" else 0
    clock = Clock(cuda=settings["device"] == "cuda")
    trained = trainer(settings, clock)
    trained.train()
    return {
        "seconds": [later - earlier for earlier, later in zip(clock.times, clock.times[1:], strict=False)],
        "losses": trained.losses(settings["batch_size"] // settings["micro_batch"]),
        "memory": clock.peaks[-1] - imported,
        "reference_seconds": trained.reference_seconds,
    }


def several(runs: list[dict[str, Any]]) -> None:
    """One after the other in this process, which on a GPU saves most of the time; memory is counted anew for each."""
    for settings in runs:
        gc.collect()
        if settings["device"] == "cuda":
            torch.cuda.empty_cache()
            torch.cuda.reset_peak_memory_stats()
        try:
            outcome = main(settings)
        except torch.OutOfMemoryError:
            outcome = None
        Path(settings["result"]).write_text(json.dumps(outcome))


if __name__ == "__main__":
    several(json.loads(Path(sys.argv[1]).read_bytes()))
