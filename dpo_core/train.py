"""The training loop: `train(run, directory)` in every rank."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from dpo_core import checkpoints, generators
from dpo_core.ahead import Ahead
from dpo_core.best import Judge
from dpo_core.checkpoints import Progress
from dpo_core.divergence import Divergence, Rows
from dpo_core.engine import World, processes
from dpo_core.errors import RunError, user_error
from dpo_core.failures import claim, classify
from dpo_core.flops import peak_of
from dpo_core.loading import Loaded
from dpo_core.objective import MicroBatch, Preference
from dpo_core.reference_pass import Stopped
from dpo_core.run_directory import Failure, RunDirectory, Status
from dpo_core.schedule import learning_rate
from dpo_core.spec import RunSpec
from dpo_core.verification import read_manifest


def train(run: RunSpec, directory: RunDirectory, stop: Callable[[], bool] = lambda: False) -> Status:
    """Trains as `run` says and writes results into `directory`; returns the final status.

    Runs in every rank. Outside torchrun it is a group of one. `stop` is asked once a step; when it is true
    on any rank, all of them make a checkpoint and return `stopped`.

    Raises:
        RunError: the spec, the data or the model can't be trained with, or the loss is no longer finite.
    """
    with processes(run.device) as world:
        if world.size != run.ranks:
            raise user_error("ranks", f"The spec asks for {run.ranks} ranks, {world.size} were started.", param="ranks")
        try:
            return Loop(run, directory, world, stop).run_to_end()
        except Stopped:
            status = Status(state="stopped")
            if world.rank == 0:
                directory.write_status(status)
            return status
        except Exception as error:
            # Before the process group ends: peers would blame the broken connection, and be first.
            claim(directory, classify(error))
            raise


@dataclass(slots=True)
class StepResult:
    """What one update measured, the same on every rank."""

    metrics: dict[str, float]
    tokens: int
    stop: bool


class Loop:
    """One attempt: everything is loaded by the constructor, `run_to_end` trains."""

    def __init__(
        self, run: RunSpec, directory: RunDirectory, world: World, stop: Callable[[], bool] = lambda: False
    ) -> None:
        """Raises Stopped when `stop` becomes true while the reference is measured."""
        self.run, self.directory, self.world, self.stop = run, directory, world, stop
        # A checkpoint that can't be used is refused before anything is loaded.
        resumed = None if run.resume_from is None else checkpoints.read_progress(run.resume_from)
        self.loaded = loaded = Loaded(run, directory, world, stop)
        self.settings, self.recorder, self.engine = loaded.settings, loaded.recorder, loaded.engine
        self.pulse, self.score = loaded.pulse, loaded.score
        self.sampler, self.total_steps = loaded.sampler, loaded.total_steps
        self.training, self.validation = loaded.training, loaded.validation
        self.judge = Judge.of(run.training)
        self.divergence = Divergence(run, self.recorder)
        peak = peak_of(world.device) if self.settings.bfloat16 else None
        self.peak = None if peak is None else world.size * peak
        self.step, self.trained_tokens = 0, 0
        self.feed = Ahead(self.micro_batches())
        # Here and not earlier: loading a model draws numbers too, and how many is not ours to say.
        torch.manual_seed(run.training.seed + world.rank)
        if resumed is not None and run.resume_from is not None:
            self.go_on_from(run.resume_from, resumed)

    def go_on_from(self, checkpoint: Path, progress: Progress) -> None:
        same_generators = checkpoints.restore(checkpoint, progress, self.engine, self.run.training.seed)
        self.recorder.recall(read_manifest(checkpoint).metrics)
        self.step, self.trained_tokens = progress.step, progress.trained_tokens
        self.judge.standing, self.divergence.skipped = progress.standing, progress.skipped_steps
        self.recorder.event("resumed", f"Training goes on from the checkpoint at step {self.step}.", step=self.step)
        if not same_generators and generators.are_used(self.engine.module):
            message = (
                f"The checkpoint was made by {progress.ranks} ranks on {progress.device}: dropout goes on with numbers "
                "of its own, not with those that the run would have drawn there."
            )
            self.recorder.event("generators_reseeded", message)

    def run_to_end(self) -> Status:
        if self.step == 0:
            self.evaluate()
        self.pulse.enter("first step")
        while self.step < self.total_steps and not self.judge.exhausted:
            self.recorder.running(self.step)
            result = self.update()
            self.pulse.enter("training")
            self.record(result.metrics)
            self.step += 1
            self.trained_tokens += result.tokens
            scheduled = self.step == self.total_steps or self.step % self.settings.checkpoint_steps == 0
            improved = self.judged(scheduled=scheduled)
            final = self.step == self.total_steps or self.judge.exhausted
            if scheduled or improved or final or result.stop:
                self.save(final=final)
            if result.stop and not final:
                return self.finish("stopped")
        return self.finish("succeeded")

    def record(self, metrics: dict[str, float]) -> None:
        """Tells what a step measured. One whose loss or gradient is not finite was no update, and may end the run."""
        if all(math.isfinite(metrics[name]) for name in ("loss", "grad_norm")):
            self.check_step_zero(metrics["loss"])
        else:
            self.engine.eval()
            batch = self.sampler.batch(self.step)
            culprits = self.training.not_finite(batch, self.score, self.world)
            rows = (Rows.of(self.loaded.items, indices, self.run) for indices in (batch, culprits))
            self.divergence.meet(self.step, metrics, *rows)
        if self.run.training.skip_nonfinite_steps:
            metrics["skipped_steps"] = float(self.divergence.skipped)
        self.recorder.metrics("train", self.step, metrics)

    def judged(self, *, scheduled: bool) -> bool:
        """Evaluates where it is time to; whether that is the best so far. `scheduled`: the step makes a checkpoint."""
        due = self.step == self.total_steps or self.step % self.settings.evaluation_steps == 0
        values = self.evaluate() if due else None
        if values is None or not self.judge.counts(scheduled=scheduled):
            return False
        improved = self.judge.improves(self.step, values)
        if self.judge.exhausted and self.step < self.total_steps:
            self.recorder.event("stopped_early", self.judge.last_word(self.step, self.total_steps, values))
        return improved

    def update(self) -> StepResult:
        """Forward and backward over this rank's share of the global batch, then one update."""
        started = time.monotonic()
        self.engine.train()
        batch = self.sampler.batch(self.step)
        divisor, sums, last = self.training.divisor(batch), [], False
        while not last:
            micro_batch, last = next(self.feed)
            loss, measured = self.training.loss_of(self.score, micro_batch)
            self.feed.prepare()
            self.engine.backward(loss / divisor, last=last)
            sums.append(measured)
        rate = self.rate()
        norm = self.engine.step(rate)
        local = torch.tensor([float(self.stop()), peak_memory(self.world.device)], dtype=torch.float64)
        gathered = self.world.gather(torch.cat([torch.stack(sums).sum(0), local.to(self.world.device)]))
        seconds, tokens = time.monotonic() - started, self.training.tokens(batch)
        totals = gathered.sum(0).tolist()
        metrics = self.training.means(totals[:-2]) | {
            "grad_norm": norm,
            "learning_rate": rate,
            "epoch": self.step / self.sampler.steps_per_epoch,
            "items_per_second": len(batch) / seconds,
            "tokens_per_second": tokens / seconds,
            "unique_tokens_per_second": self.training.unique_tokens(batch) / seconds,
            "peak_memory_bytes": float(gathered[:, -1].max()),
            **self.utilisation(batch, seconds),
        }
        return StepResult(metrics, tokens, stop=totals[-2] > 0)

    def utilisation(self, batch: Sequence[int], seconds: float) -> dict[str, float]:
        """Operations a second of all ranks, and what share of their peak; where either is known."""
        if (work := self.loaded.work) is None:
            return {}
        rate = self.training.operations(batch, work) / seconds
        return {"flops_per_second": rate} | ({"mfu": rate / self.peak} if self.peak else {})

    def micro_batches(self) -> Iterator[tuple[MicroBatch, bool]]:
        """This rank's micro-batches from the current step on, and whether each is its step's last."""
        for step in range(self.step, self.total_steps):
            shares = self.training.shares(self.sampler.batch(step), self.world)
            for place, share in enumerate(shares, start=1):
                yield self.training.micro_batch(share), place == len(shares)

    def rate(self) -> float:
        training = self.run.training
        return learning_rate(
            self.step,
            self.total_steps,
            peak=self.settings.learning_rate,
            schedule=training.schedule,
            warmup_ratio=training.warmup_ratio,
        )

    def evaluate(self) -> dict[str, float] | None:
        """Measures the validation items, where there are any."""
        if self.validation is None:
            return None
        self.engine.eval()
        self.pulse.enter("evaluation")
        values = self.validation.evaluate(self.score, self.world)
        self.require_finite(values, "loss", self.judge.metric)
        self.recorder.metrics("validation", self.step, values)
        return values

    def require_finite(self, metrics: dict[str, float], *names: str) -> None:
        for name in names:
            if not math.isfinite(metrics[name]):
                raise diverged(
                    f"{name} became {metrics[name]} at step {self.step}. The last checkpoint is still good; "
                    "lower the learning rate, or look for broken rows."
                )

    def check_step_zero(self, loss: float) -> None:
        """Before the first update the policy *is* the reference `start`: for the sigmoid loss that means ln 2."""
        objective, training = self.training, self.run.training
        if self.step > 0 or not isinstance(objective, Preference) or training.reference != "start":
            return
        expected = objective.loss_at_reference(self.sampler.batch(0))
        difference = abs(loss - expected)
        named = "ln 2" if abs(expected - math.log(2)) < 1e-9 else f"{expected:.7f}"
        warn = difference > (2e-2 if self.settings.bfloat16 else 1e-4) * max(1.0, abs(expected))
        text = f"Step 0 is as it should be: the loss is {named} ({loss:.7f}), as the policy still equals the reference."
        if warn:
            advice = " Dropout makes them differ." if training.lora else ""
            text = f"The loss at step 0 is {loss:.7f}, not {named}: policy and reference differ from the start.{advice}"
        self.recorder.event("step_zero_check", text, warn=warn, loss=loss, difference=difference)

    def save(self, *, final: bool) -> None:
        self.pulse.enter("checkpoint")
        progress = Progress(
            step=self.step,
            trained_tokens=self.trained_tokens,
            skipped_steps=self.divergence.skipped,
            ranks=self.world.size,
            device=self.run.device,
            standing=self.judge.standing,
        )
        checkpoints.save(
            self.directory,
            self.run,
            self.loaded.start,
            self.engine,
            progress=progress,
            frozen=self.loaded.frozen,
            metrics=self.recorder.latest(),
            final=final,
        )
        self.recorder.running(self.step, now=True)
        self.pulse.enter("training")

    def finish(self, state: str) -> Status:
        return self.recorder.finish(
            Status.model_validate({"state": state, "step": self.step, "total_steps": self.total_steps})
        )


def diverged(message: str) -> RunError:
    return RunError(Failure(kind="divergence", code="not_finite", message=message))


def peak_memory(device: torch.device) -> float:
    """Bytes at the peak so far: allocated on the GPU, or resident in this process."""
    if device.type == "cuda":
        return float(torch.cuda.max_memory_allocated(device))
    # Linux's own line for this process; getrusage would begin at the peak of the process that started it.
    status = Path("/proc/self/status").read_text(encoding="utf-8", errors="replace")
    return float(status.partition("VmHWM:")[2].split()[0]) * 1024
