"""Whether a checkpoint is, byte for byte, what was written: asked before anything of it is read. Imports no torch."""

from __future__ import annotations

from pathlib import Path

from dpo_core.errors import RunError
from dpo_core.run_directory import (
    CHECKPOINT_CORRUPT,
    CHECKPOINT_UNREADABLE,
    MANIFEST,
    Failure,
    Manifest,
    sha256_of,
)


def verify(checkpoint: Path) -> Manifest:
    """Checks every file that the manifest lists, and that there is no other under `state/`.

    The run goes on from `state/` alone. But a checkpoint of which any byte is wrong is none to build on.

    Raises:
        RunError: kind `infrastructure`; a file differs, is missing, or is not listed; or the system can't read one.
    """
    manifest = read_manifest(checkpoint)
    listed = {file.path: file for file in manifest.files}
    try:
        found = {path.relative_to(checkpoint).as_posix() for path in checkpoint.rglob("*") if path.is_file()}
    except OSError as error:
        raise unreadable(checkpoint, error) from error
    wrong = (listed.keys() - found) | {path for path in found - listed.keys() if path.startswith("state/")}
    if wrong:
        raise corrupt(checkpoint, f"these files are missing or unexpected: {', '.join(sorted(wrong))}")
    for name, file in listed.items():
        try:
            intact = (checkpoint / name).stat().st_size == file.bytes and sha256_of(checkpoint / name) == file.sha256
        except OSError as error:
            raise unreadable(checkpoint, error) from error
        if not intact:
            raise corrupt(checkpoint, f"{name} does not match its size and sha256")
    return manifest


def read_manifest(checkpoint: Path) -> Manifest:
    """Raises RunError, kind `infrastructure`, where it can't be read."""
    try:
        return Manifest.model_validate_json((checkpoint / MANIFEST).read_bytes())
    except (FileNotFoundError, ValueError) as error:
        raise corrupt(checkpoint, f"its {MANIFEST} can't be read") from error
    except OSError as error:
        raise unreadable(checkpoint, error) from error


def corrupt(checkpoint: Path, what: str) -> RunError:
    message = f"Can't resume from {checkpoint.name}: {what}. Resume from an older checkpoint, or start over."
    return RunError(Failure(kind="infrastructure", code=CHECKPOINT_CORRUPT, message=message))


def unreadable(checkpoint: Path, error: OSError) -> RunError:
    """It may be as good as ever: a network's disk says so when it is late."""
    message = f"{checkpoint.name} can't be read, to resume from it: {error}."
    return RunError(Failure(kind="infrastructure", code=CHECKPOINT_UNREADABLE, message=message))
