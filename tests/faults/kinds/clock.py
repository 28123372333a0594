"""Clocks jump: the worker's by Debian's libfaketime, PostgreSQL's by its own function `dpo_now()`."""

from __future__ import annotations

from pathlib import Path

from tests.faults.deployment import Deployment
from tests.faults.fault import Fault, struck
from tests.faults.kinds.postgres import pass_by
from tests.faults.scene import Scene

FAKETIME = "faketime.txt"
"""In the deployment's folder: by how much the clock is off, as libfaketime reads it."""
LIBRARIES = ("/usr/lib", "/usr/lib64", "/usr/local/lib")
NOW = "CREATE OR REPLACE FUNCTION dpo_now() RETURNS timestamptz LANGUAGE sql VOLATILE AS 'SELECT clock_timestamp(){}'"


def library() -> Path | None:
    found = (path for root in LIBRARIES for path in Path(root).glob("**/faketime/libfaketime.so.1"))
    return next(found, None)


def lacks_faketime() -> str | None:
    return None if library() else "libfaketime isn't installed (Debian: apt install faketime)"


def environment(folder: Path) -> dict[str, str]:
    """Of a worker whose wall clock is moved by what FAKETIME says; its monotonic clock goes on as clocks do."""
    set_clock(folder, "+0")
    return {
        "LD_PRELOAD": str(library()),
        "FAKETIME_TIMESTAMP_FILE": str(folder / FAKETIME),
        "FAKETIME_NO_CACHE": "1",
        "FAKETIME_DONT_FAKE_MONOTONIC": "1",
        # Without it Python's threads hand their lock on at a hundredth of the speed after a jump.
        "FAKETIME_FORCE_MONOTONIC_FIX": "0",
    }


def set_clock(folder: Path, off: str) -> None:
    (folder / FAKETIME).write_text(f"{off}\n")


def jump(scene: Scene) -> None:
    """By up to a day, forth or back, and later home again."""
    folder = scene.deployment.folder
    set_clock(folder, f"{scene.draw.choice('+-')}{scene.draw.randint(60, 86_400)}")
    try:
        pass_by(scene.draw.uniform(0.5, 1.5))
    finally:
        set_clock(folder, "+0")
    scene.mark()


def jump_of_postgres(scene: Scene) -> None:
    """An hour forth, so that every lease has run out, and home again a moment later."""
    offset(scene.deployment, " + interval ''1 hour''")
    try:
        pass_by(scene.draw.uniform(0.1, 1.0))
    finally:
        offset(scene.deployment, "")
    scene.mark()


def offset(deployment: Deployment, by: str) -> None:
    with deployment.admin_of_service() as connection:
        connection.execute(NOW.format(by))  # type: ignore[call-overload]


FAULTS = [
    Fault(
        "the clock of a worker jumps by up to a day",
        "nothing: leases are PostgreSQL's time, and a worker counts on its monotonic clock",
        struck(jump, another_attempt=False),
        stage="clock",
        lacks=lacks_faketime,
    ),
    Fault(
        "the clock of PostgreSQL jumps an hour forth and back",
        "a job whose lease seems over goes on from its last checkpoint",
        struck(jump_of_postgres, another_attempt=False),
        sets_clock=True,
    ),
]
