"""The run directory: the only thing a trainer and its supervisor share.

In, from the supervisor:   spec.json   lease            (a signal: SIGTERM = checkpoint, then stop)
Out, from the trainer:     status.json   pulse.json   metrics.jsonl   events.jsonl   checkpoints/step-N/
                           (the supervisor adds events of its own, when storage is away)
                           reference/GROUP/N.safetensors (measured reference log-probabilities)
                           prepared.json (from `dpo_core.prepare`)     answer.json (from `dpo_core.check`)
                           merged/model/ and answer.json (from `dpo_core.merge`)
                           processes/RANK.json   log.txt   stacks/RANK.txt (upon SIGUSR1)

Every single file is replaced whole (write aside, fsync, rename; lease and pulse, which mean nothing after a
crash of the host, without fsync); the two `.jsonl` files only grow, one
line a record, and a reader ignores a last line without its newline. A checkpoint exists once its
`manifest.json` does. Imports no torch.
"""

from __future__ import annotations

import hashlib
import json
import os
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Annotated, Any, Literal

import psutil
from pydantic import Field

from dpo_core.best import Best
from dpo_core.spec import RunSpec, StrictModel

FailureKind = Literal["user", "resource", "infrastructure", "divergence"]
State = Literal["starting", "running", "stopped", "succeeded", "failed"]
CHECKPOINT_CORRUPT = "checkpoint_corrupt"
"""The code of a Failure: the checkpoint to go on from is damaged, an older one may not be."""
CHECKPOINT_UNREADABLE = "checkpoint_unreadable"
"""The code of a Failure: the system can't read the checkpoint to go on from, now; it may be as good as ever."""
RANK_LOST = "rank_lost"
"""The code of a Failure: a rank ended without a word, or its peers lost the connection to it."""
DISK_FULL = "disk_full"
"""The code of a Failure: there was no room to write. There may be, later."""
HOST_OUT_OF_MEMORY = "host_out_of_memory"
"""The code of a Failure: the kernel killed a process for want of memory. Less may be in use at the next attempt."""
READER_KILLED = "reader_killed"
"""The code of a Failure: so it was with a process that helped to read the data."""
OUT_OF_MEMORY = "out_of_memory"
"""The code of a Failure: a device, or an allocation, refused. The same run comes to the same end."""
MANIFEST = "manifest.json"
CHECKSUMS = "SHA256SUMS"
"""Beside a published model's files: a line for each of them, as `sha256sum --check` reads it."""


class Failure(StrictModel):
    """Why a run failed: `kind` decides whether another attempt makes sense; `message` says the way out."""

    kind: FailureKind
    code: str
    message: str
    param: str | None = None
    line: int | None = None
    log: str | None = None
    """The last lines of the run's output, for whoever mends it."""


class Status(StrictModel):
    """`stopped` means: asked to stop, made a checkpoint, can go on. `step` counts optimizer updates done."""

    state: State
    step: int = 0
    total_steps: int | None = None
    failure: Failure | None = None


class Event(StrictModel):
    level: Literal["info", "warn", "error"] = "info"
    code: str
    message: str
    data: dict[str, Any] = Field(default_factory=dict)


class ManifestFile(StrictModel):
    path: str
    """Relative to the checkpoint folder: `model/...` is for users, `state/...` only for resuming."""

    bytes: Annotated[int, Field(ge=0)]
    sha256: str


class Manifest(StrictModel):
    step: int
    kind: Literal["full", "adapter"]
    files: list[ManifestFile]
    metrics: dict[str, float] = Field(default_factory=dict)
    trained_tokens: int = 0
    final: bool = False
    best: Best | None = None
    """The run's best evaluation up to this checkpoint, which is of this one or of an earlier one."""

    def checksums(self) -> str:
        """The text of the model folder's CHECKSUMS."""
        files = {file.path.removeprefix("model/"): file.sha256 for file in self.files if file.path.startswith("model/")}
        return "".join(f"{digest}  {name}\n" for name, digest in sorted(files.items()))


def write_whole(path: Path, text: str) -> None:
    """Replaces `path` atomically and durably."""
    aside = path.with_name(f".{path.name}.{os.getpid()}")
    with open(aside, "w", encoding="utf-8") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    os.replace(aside, path)
    sync_folder(path.parent)


def replace_unsynced(path: Path, text: str) -> None:
    """Replaces `path` atomically. For what means nothing after a crash of the host: a busy disk makes nobody wait."""
    aside = path.with_name(f".{path.name}.{os.getpid()}")
    aside.write_text(text, encoding="utf-8")
    os.replace(aside, path)


def sync_folder(folder: Path) -> None:
    """Makes renames inside `folder` durable."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def sha256_of(path: Path) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def started(pid: int) -> int:
    """Clock ticks between the host's boot and the start of process `pid` (field 22 of /proc/PID/stat, proc(5)).

    psutil's create_time counts from a boot time that moves when the host's clock is set.

    Raises:
        OSError: there is no such process.
    """
    after_name = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2]
    return int(after_name.split()[19])


class RunDirectory:
    """Paths and records of one attempt's folder, for both sides."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.spec_file = path / "spec.json"
        self.lease_file = path / "lease"
        self.status_file = path / "status.json"
        self.pulse_file = path / "pulse.json"
        self.prepared_file = path / "prepared.json"
        self.answer_file = path / "answer.json"
        self.metrics_file = path / "metrics.jsonl"
        self.events_file = path / "events.jsonl"
        self.log_file = path / "log.txt"
        self.processes = path / "processes"
        self.stacks = path / "stacks"
        self.checkpoints = path / "checkpoints"
        self.reference = path / "reference"
        self.tokens = path / "tokens"
        self.merged = path / "merged"

    # -- the supervisor's side -------------------------------------------------------------------

    def create(self, spec: StrictModel) -> None:
        """`spec`: a RunSpec, the CheckSpec of a check, or a MergeSpec."""
        self.processes.mkdir(parents=True, exist_ok=True)
        self.checkpoints.mkdir(exist_ok=True)
        write_whole(self.spec_file, spec.model_dump_json(indent=2))

    def renew_lease(self, seconds: float) -> None:
        """Lets the ranks train for `seconds` more. The clock is the host's CLOCK_MONOTONIC."""
        replace_unsynced(self.lease_file, json.dumps({"deadline": time.monotonic() + seconds}))

    def status(self) -> Status | None:
        try:
            return Status.model_validate_json(self.status_file.read_bytes())
        except FileNotFoundError:
            return None

    def recorded_processes(self) -> list[psutil.Process]:
        """The ranks that wrote themselves down and still live (same pid and same start time)."""
        alive = []
        for file in self.processes.glob("*.json"):
            with suppress(psutil.NoSuchProcess, OSError, ValueError):  # what can't be read is found by its mark
                record = json.loads(file.read_bytes())
                if started(record["pid"]) == record["started"]:
                    alive.append(psutil.Process(record["pid"]))
        return alive

    def complete_checkpoints(self) -> list[tuple[Path, Manifest]]:
        """Every checkpoint that has its manifest, oldest step first."""
        found = []
        for manifest in self.checkpoints.glob(f"step-*/{MANIFEST}"):
            found.append((manifest.parent, Manifest.model_validate_json(manifest.read_bytes())))
        return sorted(found, key=lambda pair: pair[1].step)

    def reference_shards(self) -> list[Path]:
        """Every shard of reference log-probabilities that is whole, oldest first."""
        return sorted(self.reference.glob("*/*.safetensors"))

    def token_tables(self) -> list[Path]:
        """Every token table that is whole."""
        return sorted(self.tokens.glob("*.safetensors"))

    # -- the trainer's side ----------------------------------------------------------------------

    def spec(self) -> RunSpec:
        return RunSpec.model_validate_json(self.spec_file.read_bytes())

    def lease_deadline(self) -> float | None:
        """CLOCK_MONOTONIC second at which the ranks must be gone; None where nobody supervises."""
        try:
            return float(json.loads(self.lease_file.read_bytes())["deadline"])
        except FileNotFoundError:
            return None

    def record_process(self, name: str) -> None:
        record = {"pid": os.getpid(), "started": started(os.getpid())}
        write_whole(self.processes / f"{name}.json", json.dumps(record))

    def write_status(self, status: Status) -> None:
        write_whole(self.status_file, status.model_dump_json())

    def append_metrics(self, split: str, step: int, values: dict[str, float]) -> None:
        """One line of `metrics.jsonl`. `step`: optimizer updates behind the weights that were measured."""
        append_line(self.metrics_file, {"split": split, "step": step, "time": time.time(), "values": values})

    def append_event(self, event: Event) -> None:
        append_line(self.events_file, event.model_dump())


def append_line(path: Path, record: dict[str, Any]) -> None:
    with open(path, "a", encoding="utf-8") as file:
        file.write(json.dumps(record, allow_nan=False) + "\n")


def read_lines(path: Path, offset: int) -> Iterator[tuple[dict[str, Any], int]]:
    """Complete lines from byte `offset` on, each with the offset behind it."""
    if not path.exists():
        return
    with open(path, "rb") as file:
        file.seek(offset)
        for line in file:
            if not line.endswith(b"\n"):
                return
            offset += len(line)
            yield json.loads(line), offset
