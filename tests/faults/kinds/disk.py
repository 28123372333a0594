"""The disk is full, takes no writes, gives back other bytes or lacks a model; storage and run directories on tmpfs."""

from __future__ import annotations

import os
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from control_plane.attempts import NOT_BEGUN, resumable
from control_plane.storage import state_prefix
from control_plane.tables import Job
from tests.faults.fault import Fault, struck
from tests.faults.kinds.postgres import pass_by
from tests.faults.scene import Missed, Scene, kill
from tests.service import poll_until

MIB = 24
"""Of each mount: plenty for the stub's checkpoints, and filled in no time."""


@contextmanager
def mounts(data: Path) -> Iterator[None]:
    """Storage and run directories below `data` are on file systems of their own."""
    try:
        for folder in places(data):
            folder.mkdir(parents=True)
            mounted = _mount("-t", "tmpfs", "-o", f"size={MIB}m", "dpo-faults", str(folder))
            assert mounted, f"no tmpfs could be mounted at {folder}"
        yield
    finally:
        for folder in places(data):
            subprocess.run(["umount", "-l", str(folder)], check=False, capture_output=True)


def places(data: Path) -> list[Path]:
    return [data / "storage", data / "runs"]


def _mount(*arguments: str) -> bool:
    return subprocess.run(["mount", *arguments], check=False, capture_output=True).returncode == 0


def lacks_mounts() -> str | None:
    return None if os.geteuid() == 0 else "mounting a tmpfs takes root"


@contextmanager
def filled(folder: Path) -> Iterator[None]:
    """Not a byte is left."""
    filler = folder / ".filler"
    try:
        with open(filler, "wb", buffering=0) as file:
            for size in (1 << 20, 1 << 12):
                with suppress(OSError):
                    while True:
                        file.write(bytes(size))
        yield
    finally:
        filler.unlink()


def fill(scene: Scene) -> None:
    with filled(scene.draw.choice(places(scene.deployment.data))):
        pass_by(scene.draw.uniform(1.0, 3.0))
    scene.mark()


def take_no_writes(scene: Scene) -> None:
    """Storage is mounted read-only for some seconds."""
    storage = str(scene.deployment.data / "storage")
    poll_until(lambda: _mount("-o", "remount,ro", storage), "nobody writes, so that it can be mounted read-only")
    try:
        pass_by(scene.draw.uniform(1.0, 3.0))
    finally:
        _mount("-o", "remount,rw", storage)
    scene.mark()


def corrupt(scene: Scene) -> None:
    """One byte of the state to resume from is another, then a rank dies: its successor has to notice."""
    deployment = scene.deployment
    checkpoint = deployment.ask(
        lambda session: session.scalars(resumable(session.get_one(Job, scene.job_id)).limit(1)).one_or_none()
    )
    if checkpoint is None:
        raise Missed
    prefix = state_prefix(scene.job_id, checkpoint.fence, checkpoint.step)
    try:
        key = scene.draw.choice(list(deployment.storage.keys(prefix)))
        _flip_a_byte(deployment.storage.folder / key, scene)
    except (IndexError, FileNotFoundError):  # it has just been replaced by a newer one
        raise Missed from None
    kill(scene.draw.choice(scene.ranks()))


def lose_base_model(scene: Scene) -> None:
    """A rank dies, and its successor can't be begun, for the mount with the base model is away until that is seen.

    Or for five seconds: what the dead attempt has left to publish names the model's digest, and waits for it, too.
    """
    folder, before = scene.deployment.base_model, _fruitless(scene)
    away = folder.rename(folder.with_name(f"{folder.name} not mounted"))
    try:
        kill(scene.draw.choice(scene.ranks()))
        until = time.monotonic() + 5.0
        poll_until(lambda: _not_begun(scene) or time.monotonic() > until, "the next attempt is not begun", every=0.1)
    finally:
        away.rename(folder)
    scene.mark()
    assert _fruitless(scene) <= before + 1, "only the one with the rank that died counts"


def _fruitless(scene: Scene) -> int:
    return scene.deployment.ask(lambda session: session.get_one(Job, scene.job_id).fruitless_attempts)


def _not_begun(scene: Scene) -> bool:
    if scene.deployment.is_over(scene.job_id):
        raise Missed
    ended = scene.deployment.attempts(scene.job_id)[-1].error
    return ended is not None and ended["code"] == NOT_BEGUN


def _flip_a_byte(path: Path, scene: Scene) -> None:
    """In a file of its own: the run directory may share the bytes of the old one."""
    content = bytearray(path.read_bytes())
    content[scene.draw.randrange(len(content))] ^= 1 << scene.draw.randrange(8)
    aside = path.with_name(f"{path.name}.flipped")
    aside.write_bytes(content)
    aside.rename(path)


FAULTS = [
    Fault(
        "disk full under storage or run directories",
        "an event says so; the job goes on when there is room",
        struck(fill, another_attempt=False),
        stage="disk",
        lacks=lacks_mounts,
    ),
    Fault(
        "storage takes no writes for a while",
        "what is to be published waits; nothing half is seen",
        struck(take_no_writes, another_attempt=False),
        stage="disk",
        lacks=lacks_mounts,
    ),
    Fault(
        "a byte of a checkpoint is another",
        "it is noticed before anything is read of it, and the checkpoint before is used",
        struck(corrupt, another_attempt=True, earliest=10),
        trainers=("stub", "real"),
    ),
    Fault(
        "the base model's folder is away for a while",
        "it is the worker's trouble and counts for nothing; the job goes on when the folder is back",
        struck(lose_base_model, another_attempt=True, earliest=0),
        trainers=("stub", "real"),
    ),
]
