"""The pass over the data that every DPO run begins with: the reference's log-probabilities, found or measured.

What is known comes from the cache. The rest is measured in batches that depend on nothing but the pairs
(dpo_core/reference_cache.py), and written as shards while it goes on. So a run that is killed here and started
again ends with the same bits as one that wasn't.
Shapes: N items of all splits; K different pairs among those that the run needs, in canonical order.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future
from pathlib import Path
from threading import Thread

import torch
from torch import Tensor

from dpo_core.data.pairs import Picked
from dpo_core.data.records import TokenPair
from dpo_core.engine import World
from dpo_core.errors import RunError
from dpo_core.objective import Packer, Score
from dpo_core.packing import response_tokens
from dpo_core.recorder import Recorder
from dpo_core.reference_cache import (
    BATCH_TOKENS,
    canonical_batches,
    in_canonical_order,
    pair_key,
    read_known,
    write_shard,
)
from dpo_core.reference_group import reference_group
from dpo_core.run_directory import Failure, RunDirectory
from dpo_core.spec import RunSpec

EVENT_SECONDS = 30.0
"""Between two events that say how far the pass is."""
SHARD_SECONDS = 30.0
"""Between two shards: what a run that is killed loses at most."""


class Stopped(Exception):
    """The run was asked to stop before its reference was measured. What was measured is in shards."""


def fill(
    values: Tensor, batches: Sequence[slice], measure: Callable[[slice], Tensor], world: World, stop: Callable[[], bool]
) -> Iterator[list[slice]]:
    """Replaces every NaN in `values` [2, K], one batch a rank at a time; yields the batches that were measured.

    A batch with nothing missing is left out; one with anything missing is measured whole, but what is known stays.
    Every rank runs the same number of forward passes, which ZeRO-3 needs: who has none left repeats another's.
    Ends early, on all ranks, once `stop` is true on any of them.
    """
    incomplete = [batch for batch in batches if values[0, batch].isnan().any()]
    for start in range(0, len(incomplete), world.size):
        together = incomplete[start : start + world.size]
        width = max(batch.stop - batch.start for batch in together)
        found = torch.zeros(len(together), 2, width, dtype=torch.float64)
        place = min(world.rank, len(together) - 1)
        measured = measure(together[place])
        if world.rank == place:
            found[place, :, : measured.shape[1]] = measured
        asked = torch.tensor([float(stop())], dtype=torch.float64)
        shared = world.sum(torch.cat([found.flatten(), asked]).to(world.device))
        for batch, row in zip(together, shared[:-1].view_as(found), strict=True):
            known = values[:, batch]
            values[:, batch] = torch.where(known.isnan(), row[:, : known.shape[1]], known)
        yield together
        if shared[-1] > 0:
            return


class ReferencePass:
    """Made on all ranks before a model is loaded: the reference's files are hashed meanwhile."""

    def __init__(
        self, run: RunSpec, directory: RunDirectory, world: World, recorder: Recorder, stop: Callable[[], bool]
    ) -> None:
        self.run, self.directory, self.world, self.recorder, self.stop = run, directory, world, recorder, stop
        start = run.training.reference == "start"
        self.whose = "the starting model" if start else "the reference model"
        self.hashing: Future[str | None] | None = None
        if world.rank == 0 and run.resume_from is None:
            self.hashing = in_background(reference_group, run)

    def not_compiled(self) -> None:
        """What was asked to be compiled can't be: its values are those of another group."""
        if self.hashing is not None:
            training = self.run.training.model_copy(update={"compile": False})
            self.run = self.run.model_copy(update={"training": training})
            self.hashing = in_background(reference_group, self.run)

    def log_probabilities(
        self, score: Score, packer: Packer, items: Sequence[TokenPair], needed: Sequence[int]
    ) -> Tensor:
        """[2, N] float64 on the CPU, the same on all ranks, which call it together; NaN for what is not `needed`.

        Raises:
            Stopped: `stop` was true on some rank.
            RunError: kind `divergence`; a value is not finite.
        """
        keys, first, lengths = list[bytes](), dict[bytes, int](), dict[bytes, int]()
        for index in needed:
            item = items[index]
            keys.append(pair_key(item))
            first.setdefault(keys[-1], index)
            lengths[keys[-1]] = item.length
        ordered = in_canonical_order(lengths)
        known = self.known(ordered)
        self.complete(known, ordered, Picked(items, [first[key] for key in ordered]), score, packer)
        places = {key: place for place, key in enumerate(ordered)}
        values = torch.full((2, len(items)), torch.nan, dtype=torch.float64)
        values[:, list(needed)] = known[:, [places[key] for key in keys]]
        return values

    def known(self, keys: list[bytes]) -> Tensor:
        """[2, K] from the cache, NaN where it says nothing. Rank 0 reads, so that all ranks know the same."""
        values = torch.zeros(2, len(keys), dtype=torch.float64)
        if self.hashing is not None:
            values.fill_(torch.nan)
            for folder in self.folders():
                known = read_known(folder, keys)
                values = torch.where(values.isnan(), known, values)
        return self.world.sum(values.to(self.world.device))

    def folders(self) -> list[Path]:
        """Of the group's shards: those that were given, and those of an earlier run in this very directory."""
        cache, own = self.run.reference_cache, self.shards()
        if cache is None:
            return [own]
        if any(cache.iterdir()) and not (cache / own.name).exists():
            message = (
                f"The cached log-probabilities are of other weights or software than {self.whose}'s now, "
                "which changed since the job was checked; they are not used."
            )
            self.recorder.event("reference_cache_ignored", message, warn=True)
        return [cache / own.name, own]

    def shards(self) -> Path:
        """Rank 0's folder for what it measures."""
        group = self.hashing.result() if self.hashing is not None else None
        if group is None:
            raise ValueError("only rank 0 of a run with a reference keeps shards")
        return self.directory.reference / group

    def complete(
        self, values: Tensor, keys: Sequence[bytes], pairs: Sequence[TokenPair], score: Score, packer: Packer
    ) -> None:
        """Measures what is NaN in `values` [2, K], and tells how it goes."""
        missing = values[0].isnan()
        computed = int(missing.sum())
        found = len(pairs) - computed

        started = told = written = time.monotonic()

        def tell(code: str, message: str) -> None:
            seconds = time.monotonic() - started
            self.recorder.event(code, message, pairs=len(pairs), found=found, computed=computed, seconds=seconds)

        what = f"the log-probabilities of {computed} pairs under {self.whose}"
        cached = f"those of {found} were in the cache." if found else "none was in the cache."
        if not computed:
            tell("reference_found", f"All {found} pairs' log-probabilities under {self.whose} were in the cache.")
            return
        tell("reference_started", f"Measuring {what}; {cached}")
        # Without a gradient twice a training pass's tokens fit, and who trains with few must fit here, too.
        batches = canonical_batches(pairs, min(BATCH_TOKENS[self.world.device.type], 2 * packer.budget))
        measure = measurer(score, packer, pairs, batches)
        fresh, done = list[int](), 0
        for together in fill(values, batches, measure, self.world, self.stop):
            measured = [place for batch in together for place in range(batch.start, batch.stop) if missing[place]]
            refuse_infinite(values[:, measured])
            fresh, done, now = fresh + measured, done + len(measured), time.monotonic()
            if now - written >= SHARD_SECONDS:
                self.keep(keys, values, fresh)
                fresh, written = [], now
            if now - told >= EVENT_SECONDS:
                tell("reference_progress", f"Measured {done} of {computed} pairs under {self.whose}.")
                told = now
        self.keep(keys, values, fresh)
        if done < computed:
            raise Stopped
        tell("reference_computed", f"Measured {what} in {time.monotonic() - started:.1f} s; {cached}")

    def keep(self, keys: Sequence[bytes], values: Tensor, fresh: Sequence[int]) -> None:
        """Writes a shard with the `fresh` places of `values`."""
        if self.hashing is not None and fresh:
            write_shard(self.shards(), [keys[place] for place in fresh], values[:, fresh])


def in_background(work: Callable[[RunSpec], str | None], run: RunSpec) -> Future[str | None]:
    """`work(run)` in a thread that keeps no process alive: a run that fails meanwhile ends at once."""
    future = Future[str | None]()

    def settle() -> None:
        try:
            future.set_result(work(run))
        except Exception as error:  # noqa: BLE001 (who asks for the result gets it)
            future.set_exception(error)

    Thread(target=settle, name="hashing", daemon=True).start()
    return future


def measurer(
    score: Score, packer: Packer, pairs: Sequence[TokenPair], batches: Sequence[slice]
) -> Callable[[slice], Tensor]:
    """One forward pass over a batch, without a gradient: → [2, B] float64 on the CPU.

    The head runs in the same number of chunks for every batch, which ZeRO-3 needs of the batches of one round; which
    those are depends on the number of ranks, and the values may not.
    """
    most = max(sum(map(response_tokens, pairs[batch])) for batch in batches)
    chunks = -(-most // packer.chunk)

    def measure(batch: slice) -> Tensor:
        with torch.no_grad():
            return packer.measure(score, pairs[batch], chunks).view(-1, 2).T.cpu()

    return measure


def refuse_infinite(values: Tensor) -> None:
    if not bool(values.isfinite().all()):
        message = "The reference's log-probabilities are not finite. Check its weights and precision."
        raise RunError(Failure(kind="divergence", code="not_finite", message=message))
