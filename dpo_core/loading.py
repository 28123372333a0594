"""Everything that a run trains with, loaded in every rank before its first step."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from dpo_core import reference, ways
from dpo_core.adapters import what_it_keeps
from dpo_core.batches import Sampler
from dpo_core.data.pairs import Joined
from dpo_core.data.records import TokenItem, TokenPair
from dpo_core.data.run_data import load_splits, make_tables
from dpo_core.data.token_table import Selection
from dpo_core.engine import Engine, World
from dpo_core.flops import Work
from dpo_core.models import Start, load_start
from dpo_core.objective import Objective, Packer, Preference, Score, Supervised
from dpo_core.packing import Batch
from dpo_core.plan import total_steps
from dpo_core.preference_loss import PreferenceLoss
from dpo_core.pulse import Pulse
from dpo_core.recorder import Recorder
from dpo_core.reference_pass import ReferencePass
from dpo_core.run_directory import RunDirectory
from dpo_core.scorer import Scorer, chunk_tokens
from dpo_core.settings import Settings
from dpo_core.spec import RunSpec

WHOLE_CHUNKS = 4
"""Chunks of logits that a forward pass may have at once where the head can't run by itself."""


class Loaded:
    """Data, model, engine, frozen reference and objectives of one attempt; all ranks make it together."""

    def __init__(self, run: RunSpec, directory: RunDirectory, world: World, stop: Callable[[], bool]) -> None:
        """Raises Stopped when `stop` becomes true while the reference is measured."""
        self.run, self.directory, self.world = run, directory, world
        self.pulse = Pulse(directory, world.rank == 0)
        self.pulse.enter("loading")
        self.settings = Settings.of(run)
        items, held_out = self.splits()
        self.items = items
        self.sampler = Sampler(len(items), self.settings.batch_size, run.training.seed)
        self.total_steps = total_steps(
            len(items), self.settings.batch_size, self.settings.epochs, run.training.max_steps
        )
        self.recorder = Recorder(directory, world.rank == 0, self.total_steps)
        dtype = torch.bfloat16 if self.settings.bfloat16 else torch.float32
        held_out_places = range(len(items), len(items) + len(held_out))
        self.pairs: Sequence[TokenPair] = Joined(items, held_out) if run.training.method == "dpo" else ()
        self.needed = [*self.sampler.visited(self.total_steps), *held_out_places]
        self.reference_pass = ReferencePass(run, directory, world, self.recorder, stop)
        # Another reference model is measured and freed before the policy takes the memory.
        frozen = self.reference_of_another_model(dtype)
        # Under ZeRO-3 rank 0 deals its weights out, and the others need none: N ranks would take N times the memory.
        empty = self.settings.zero_stage == 3 and world.rank > 0
        self.start: Start = load_start(run, dtype, "meta" if empty else "cpu")
        if run.resume_from is None and (kept := what_it_keeps(self.start.model, run)) is not None:
            self.recorder.event(kept.code, kept.message, warn=kept.level == "warn", **kept.data)
        self.engine = Engine(Scorer(self.start.model), run.training, self.settings, world)
        self.score = beating(self.engine.score, self.pulse)
        self.work = Work.of(self.engine.scorer.causal, frozen=run.training.lora is not None)
        self.packer = self.packer_for(self.engine.scorer, self.score, own=True)
        self.frozen = self.freeze_reference(frozen)
        self.training, self.validation = self.objectives(items, held_out)

    def splits(self) -> tuple[Selection, Selection]:
        """Rank 0 makes the tables where nobody did before; all ranks map them."""
        if self.world.rank == 0:
            make_tables(self.run, self.directory.tokens)
        self.world.barrier()
        return load_splits(self.run, self.directory.tokens)

    def packer_for(self, scorer: Scorer, score: Score, *, own: bool) -> Packer:
        """Settles the way in which a model's forward passes are packed, and says where it is not the one asked for.

        `own`: it is the policy, which runs often enough to be compiled.
        """
        scorer.train(False)
        settings, device = self.settings, self.world.device
        compiled = settings.compile and own
        choice = ways.choose(scorer, score, settings.way, self.world, bfloat16=settings.bfloat16, compiled=compiled)
        if compiled and not choice.compiled:
            self.reference_pass.not_compiled()
        if choice.event is not None:
            self.recorder.event(choice.event.code, choice.event.message, **choice.event.data)
        chunk = chunk_tokens(scorer.causal.config.get_text_config().vocab_size, device)
        # A head that runs with the whole model can't be cut into chunks, so the passes are smaller.
        budget = min(settings.micro_batch_tokens, WHOLE_CHUNKS * chunk) if scorer.whole else settings.micro_batch_tokens
        return Packer(choice.way, budget, chunk, device)

    def reference_of_another_model(self, dtype: torch.dtype) -> Tensor | None:
        """[2, N]; None where the reference is the policy's own start, or was frozen earlier. Zeros stand for none."""
        training = self.run.training
        if training.method != "dpo" or training.reference == "start" or self.run.resume_from is not None:
            return None
        if training.reference == "none":
            return torch.zeros(2, len(self.pairs), dtype=torch.float64)
        scorer = reference.other_model(self.run, dtype, self.world.device)
        score = beating(reference.score_of(scorer, self.world.device), self.pulse)
        return self.measure_reference(score, self.packer_for(scorer, score, own=False))

    def freeze_reference(self, values: Tensor | None) -> Tensor | None:
        """The reference of every pair that is needed, [2, N]: frozen earlier, another model's, or the policy's own."""
        if self.run.training.method != "dpo":
            return None
        if self.run.resume_from is not None:
            file = self.run.resume_from / "state" / reference.FILE_NAME
            values = reference.load(file, len(self.pairs), self.needed)
        elif values is None:
            self.engine.eval()
            values = self.measure_reference(self.score, self.packer)
        if self.world.rank == 0:
            reference.save(self.directory.path / reference.FILE_NAME, values)
        return values

    def measure_reference(self, score: Score, packer: Packer) -> Tensor:
        self.pulse.enter("reference")
        values = self.reference_pass.log_probabilities(score, packer, self.pairs, self.needed)
        self.pulse.enter("loading")
        return values

    def objectives(
        self, items: Sequence[TokenItem], held_out: Sequence[TokenItem]
    ) -> tuple[Objective, Objective | None]:
        packer, training = self.packer, self.run.training
        if self.frozen is None:
            return Supervised(items, packer), Supervised(held_out, packer) if held_out else None
        loss = PreferenceLoss.of(training)
        ours, theirs = self.frozen[:, : len(items)], self.frozen[:, len(items) :]
        learned = Preference(items, ours, packer, loss)
        return learned, Preference(held_out, theirs, packer, loss) if held_out else None


def beating(score: Score, pulse: Pulse) -> Score:
    """`score`, with a beat of the pulse for every forward pass."""

    def scored(batch: Batch, chunks: int = 1, ranks_first: bool = False) -> tuple[Tensor, Tensor | None]:
        pulse.beat()
        return score(batch, chunks, ranks_first)

    return scored
