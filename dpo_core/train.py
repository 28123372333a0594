"""The training loop: `train(run, directory)` in every rank."""

from __future__ import annotations

import math
import resource
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from dpo_core import checkpoints, generators, reference, ways
from dpo_core.adapters import what_it_keeps
from dpo_core.batches import Sampler
from dpo_core.best import Judge
from dpo_core.checkpoints import Progress
from dpo_core.dataset import load_splits
from dpo_core.engine import Engine, World, processes
from dpo_core.errors import RunError, user_error
from dpo_core.failures import claim, classify
from dpo_core.models import Start, load_start
from dpo_core.objective import Objective, Packer, Preference, Score, Supervised
from dpo_core.plan import total_steps
from dpo_core.preference_loss import PreferenceLoss
from dpo_core.recorder import Recorder
from dpo_core.records import TokenItem, TokenPair
from dpo_core.reference_pass import ReferencePass, Stopped
from dpo_core.run_directory import Failure, RunDirectory, Status
from dpo_core.schedule import learning_rate
from dpo_core.scorer import Scorer, chunk_tokens
from dpo_core.settings import Settings
from dpo_core.spec import RunSpec


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
            return Loop(run, directory, world, stop).run_to_end(stop)
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
        self.run, self.directory, self.world = run, directory, world
        self.settings = Settings.of(run)
        resumed = self.resume_point()
        items, held_out = load_splits(run)
        self.sampler = Sampler(len(items), self.settings.batch_size, run.training.seed)
        self.total_steps = total_steps(
            len(items), self.settings.batch_size, self.settings.epochs, run.training.max_steps
        )
        self.recorder = Recorder(directory, world.rank == 0, self.total_steps)
        dtype = torch.bfloat16 if self.settings.bfloat16 else torch.float32
        held_out_places = range(len(items), len(items) + len(held_out))
        self.pairs = [item for item in [*items, *held_out] if isinstance(item, TokenPair)]
        self.needed = [*self.sampler.visited(self.total_steps), *held_out_places]
        self.reference_pass = ReferencePass(run, directory, world, self.recorder, stop)
        # Another reference model is measured and freed before the policy takes the memory.
        frozen = self.reference_of_another_model(dtype)
        # Under ZeRO-3 rank 0 deals its weights out, and the others need none: N ranks would take N times the memory.
        empty = self.settings.zero_stage == 3 and world.rank > 0
        self.start: Start = load_start(run, dtype, "meta" if empty else "cpu")
        if resumed is None and (kept := what_it_keeps(self.start.model, run)) is not None:
            self.recorder.event(kept.code, kept.message, warn=kept.level == "warn", **kept.data)
        self.engine = Engine(Scorer(self.start.model), run.training, self.settings, world)
        self.packer = self.packer_for(self.engine.scorer, self.engine.score)
        self.frozen = self.freeze_reference(frozen)
        self.training, self.validation = self.objectives(items, held_out)
        self.judge = Judge.of(run.training)
        self.step, self.trained_tokens = 0, 0
        # Here and not earlier: loading a model draws numbers too, and how many is not ours to say.
        torch.manual_seed(run.training.seed + world.rank)
        if resumed is not None and run.resume_from is not None:
            self.go_on_from(run.resume_from, resumed)

    # -- before the first step -------------------------------------------------------------------

    def resume_point(self) -> Progress | None:
        return None if self.run.resume_from is None else checkpoints.read_progress(self.run.resume_from)

    def go_on_from(self, checkpoint: Path, progress: Progress) -> None:
        same_generators = checkpoints.restore(checkpoint, progress, self.engine, self.run.training.seed)
        self.recorder.recall(checkpoints.read_manifest(checkpoint).metrics)
        self.step, self.trained_tokens = progress.step, progress.trained_tokens
        self.judge.standing = progress.standing
        self.recorder.event("resumed", f"Training goes on from the checkpoint at step {self.step}.", step=self.step)
        if not same_generators and generators.are_used(self.engine.module):
            message = (
                f"The checkpoint was made by {progress.ranks} ranks on {progress.device}: dropout goes on with numbers "
                "of its own, not with those that the run would have drawn there."
            )
            self.recorder.event("generators_reseeded", message)

    def packer_for(self, scorer: Scorer, score: Score) -> Packer:
        """Settles the way in which a model's forward passes are packed, and says where it is not the one asked for."""
        scorer.train(False)
        settings, device = self.settings, self.world.device
        choice = ways.choose(scorer, score, settings.way, bfloat16=settings.bfloat16)
        if choice.event is not None:
            self.recorder.event(choice.event.code, choice.event.message, **choice.event.data)
        vocabulary = scorer.causal.config.get_text_config().vocab_size
        return Packer(choice.way, settings.micro_batch_tokens, chunk_tokens(vocabulary, device), device)

    def reference_of_another_model(self, dtype: torch.dtype) -> Tensor | None:
        """[2, N]; None where the reference is the policy's own start, or was frozen earlier. Zeros stand for none."""
        training = self.run.training
        if training.method != "dpo" or training.reference == "start" or self.run.resume_from is not None:
            return None
        if training.reference == "none":
            return torch.zeros(2, len(self.pairs), dtype=torch.float64)
        scorer = reference.other_model(self.run, dtype, self.world.device)
        score = reference.score_of(scorer, self.world.device)
        return self.measure_reference(score, self.packer_for(scorer, score))

    def freeze_reference(self, values: Tensor | None) -> Tensor | None:
        """The reference of every pair that is needed, [2, N]: frozen earlier, another model's, or the policy's own."""
        if self.run.training.method != "dpo":
            return None
        if self.run.resume_from is not None:
            file = self.run.resume_from / "state" / reference.FILE_NAME
            values = reference.load(file, len(self.pairs), self.needed)
        elif values is None:
            self.engine.eval()
            values = self.measure_reference(self.engine.score, self.packer)
        if self.world.rank == 0:
            reference.save(self.directory.path / reference.FILE_NAME, values)
        return values

    def measure_reference(self, score: Score, packer: Packer) -> Tensor:
        return self.reference_pass.log_probabilities(score, packer, self.pairs, self.needed)

    def objectives(self, items: list[TokenItem], held_out: list[TokenItem]) -> tuple[Objective, Objective | None]:
        packer, training = self.packer, self.run.training
        if self.frozen is None:
            return Supervised(items, packer), Supervised(held_out, packer) if held_out else None
        loss = PreferenceLoss.of(training)
        ours, theirs = self.frozen[:, : len(items)], self.frozen[:, len(items) :]
        learned = Preference(items, ours, packer, loss)
        return learned, Preference(held_out, theirs, packer, loss) if held_out else None

    # -- the loop --------------------------------------------------------------------------------

    def run_to_end(self, stop: Callable[[], bool]) -> Status:
        if self.step == 0:
            self.evaluate()
        while self.step < self.total_steps and not self.judge.exhausted:
            self.recorder.running(self.step)
            result = self.update(stop)
            self.require_finite(result.metrics, "loss", "grad_norm")
            self.recorder.metrics("train", self.step, result.metrics)
            self.check_step_zero(result.metrics["loss"])
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

    def update(self, stop: Callable[[], bool]) -> StepResult:
        """Forward and backward over this rank's share of the global batch, then one update."""
        started = time.monotonic()
        self.engine.train()
        batch = self.sampler.batch(self.step)
        shares = self.training.shares(batch, self.world)
        divisor, sums = self.training.divisor(batch), []
        for place, share in enumerate(shares, start=1):
            loss, measured = self.training.micro_batch(self.engine.score, share)
            self.engine.backward(loss / divisor, last=place == len(shares))
            sums.append(measured)
        rate = self.rate()
        norm = self.engine.step(rate)
        local = torch.tensor([float(stop()), peak_memory(self.world.device)], dtype=torch.float64)
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
        }
        return StepResult(metrics, tokens, stop=totals[-2] > 0)

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
        values = self.validation.evaluate(self.engine.score, self.world)
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
        progress = Progress(
            step=self.step,
            trained_tokens=self.trained_tokens,
            ranks=self.world.size,
            device=self.run.device,
            standing=self.judge.standing,
        )
        checkpoints.save(
            self.directory,
            self.run,
            self.start,
            self.engine,
            progress=progress,
            frozen=self.frozen,
            metrics=self.recorder.latest(),
            final=final,
        )
        self.recorder.running(self.step, now=True)

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
    return float(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024)
