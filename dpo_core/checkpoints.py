"""Checkpoints that exist whole or not at all, and going on from one.

    checkpoints/step-N/model/            Hugging Face form, for users
    checkpoints/step-N/state/optimizer/  master weights and moments (`dpo_core.optimizer_state`)
    checkpoints/step-N/state/rng-RANK.safetensors, reference.safetensors, progress.json
    checkpoints/step-N/manifest.json     size and sha256 of every file above

All of it is written in a hidden folder beside, fsynced, and then renamed. The sampler needs no state:
its order is a function of seed and step.
"""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import torch
from pydantic import ValidationError
from torch import Tensor

from dpo_core import generators, reference
from dpo_core.best import Standing
from dpo_core.engine import Engine
from dpo_core.models import Start, save_model
from dpo_core.run_directory import (
    MANIFEST,
    Manifest,
    ManifestFile,
    RunDirectory,
    sha256_of,
    sync_folder,
    write_whole,
)
from dpo_core.spec import Device, RunSpec, StrictModel
from dpo_core.verification import corrupt, unreadable, verify


class Progress(StrictModel):
    """`state/progress.json`: the counters of a run."""

    step: int
    trained_tokens: int
    skipped_steps: int = 0
    """Steps that updated nothing (dpo_core/divergence.py); AdamW counts the others."""

    ranks: int
    """As many random generators were saved."""

    device: Device
    """Of this kind they are."""

    standing: Standing


def save(
    directory: RunDirectory,
    run: RunSpec,
    start: Start,
    engine: Engine,
    *,
    progress: Progress,
    frozen: Tensor | None,
    metrics: dict[str, float],
    final: bool,
) -> None:
    """Writes `checkpoints/step-N`, durable on return. All ranks call it."""
    world = engine.world
    target = directory.checkpoints / f"step-{progress.step}"
    aside = directory.checkpoints / f".{target.name}"
    if world.rank == 0:
        shutil.rmtree(aside, ignore_errors=True)
        (aside / "state").mkdir(parents=True)
    world.barrier()
    engine.save_state(aside / "state" / "optimizer")
    generators.save(aside / "state", world.rank, world.device)
    weights = engine.weights(torch.bfloat16 if run.training.precision == "bfloat16" else torch.float32)
    world.barrier()
    if world.rank == 0:
        save_model(start, weights, run, aside / "model")
        if frozen is not None:
            reference.save(aside / "state" / reference.FILE_NAME, frozen)
        (aside / "state" / "progress.json").write_text(progress.model_dump_json(), encoding="utf-8")
        manifest = Manifest(
            step=progress.step,
            kind=start.kind,
            files=sealed(aside),
            metrics=metrics,
            trained_tokens=progress.trained_tokens,
            final=final,
            best=progress.standing.best,
        )
        write_whole(aside / MANIFEST, manifest.model_dump_json(indent=2))
        aside.rename(target)
        sync_folder(directory.checkpoints)
    world.barrier()


def sealed(folder: Path) -> list[ManifestFile]:
    """Makes every file under `folder` durable, and lists them."""
    files = []
    for path in sorted(folder.rglob("*")):
        if path.is_dir():
            sync_folder(path)
            continue
        with open(path, "rb") as file:
            os.fsync(file.fileno())
        name = path.relative_to(folder).as_posix()
        files.append(ManifestFile(path=name, bytes=path.stat().st_size, sha256=sha256_of(path)))
    return files


def read_progress(checkpoint: Path) -> Progress:
    """Verifies the checkpoint and reads its counters.

    Raises:
        RunError: kind `infrastructure`; it is corrupt, of a version whose states were of another form, or unreadable.
    """
    verify(checkpoint)
    try:
        return Progress.model_validate_json((checkpoint / "state" / "progress.json").read_bytes())
    except OSError as error:
        raise unreadable(checkpoint, error) from error
    except ValidationError as error:
        raise corrupt(checkpoint, "its progress.json can't be read: another version may have written it") from error


def restore(checkpoint: Path, progress: Progress, engine: Engine, seed: int) -> bool:
    """Loads weights, moments and random generators of a verified checkpoint. All ranks call it.

    Returns whether the generators go on where they were. They can't on another number of ranks or another kind of
    device: then they are seeded anew, by seed, step and rank.
    """
    engine.load_state(checkpoint / "state" / "optimizer", progress.step - progress.skipped_steps)
    world = engine.world
    same = (progress.ranks, progress.device) == (world.size, world.device.type)
    if same:
        generators.restore(checkpoint / "state", world.rank, world.device)
    else:
        generators.reseed(seed, progress.step, world.rank)
    return same
