"""A program that keeps the run-directory contract without training: for faults of the control plane.

`python stub_trainer.py validate RUN_DIR` writes prepared.json. `python stub_trainer.py train [options] RUN_DIR`
starts one "rank" in a session of its own, as torchrun does. The weights are a chain of digests, one link a
step, so a run that was resumed ends with the bytes of one that wasn't, and only then. A training file that
speaks of poison has its worker killed at step 1, every time.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from types import FrameType

from dpo_core.errors import RunError
from dpo_core.failures import end_with
from dpo_core.prepare_report import Disk
from dpo_core.process import PARENT_PID, arm_parent_death, dump_stacks_when_asked, start_deadman
from dpo_core.pulse import Pulse
from dpo_core.run_directory import (
    MANIFEST,
    Event,
    Failure,
    Manifest,
    ManifestFile,
    RunDirectory,
    Status,
    sha256_of,
    write_whole,
)
from dpo_core.verification import verify

POLL_SECONDS = 0.02
TOKENS = "tokens"
REFERENCE_GROUP = "stub-group"
REFERENCE_VALUES = "values"
CHOSEN = {"batch_size": 4, "epochs": 1, "beta": 0.1}
"""What is chosen for "auto"."""
METRICS = {"train/loss": 0.5, "validation/loss": 0.25}
"""Of every checkpoint."""
POISON = "poison"
WORKER_PID = "STUB_WORKER_PID"
"""Environment variable of a rank: whom poison kills."""


def chain(steps: int, job_id: str) -> str:
    """What the final weights must be."""
    link = job_id
    for step in range(steps):
        link = hashlib.sha256(f"{link} {step}".encode()).hexdigest()
    return link


def validate(run: RunDirectory, writes: int) -> int:
    """`writes`: what its checkpoints are said to take at their peak."""
    run.record_process("0")
    spec = run.spec()
    if not spec.training_file.read_text().strip():
        failure = Failure(kind="user", code="invalid_training_file", message="line 1: the file is empty", line=1)
        run.write_status(Status(state="failed", failure=failure))
        return 1
    found = run.token_tables()
    if not found:
        run.tokens.mkdir()
        write_whole(run.tokens / "training.safetensors", TOKENS)
    run.append_event(Event(code="tokens_found" if found else "tokens_made", message="training"))
    training = spec.training.model_dump(mode="json")
    training |= {name: value for name, value in CHOSEN.items() if training[name] == "auto"}
    disk = Disk(checkpoints=1, model=64, state=64, kept=writes, peak=writes).model_dump()
    prepared = {"training": training, "values": {}, "reference_group": REFERENCE_GROUP, "disk": disk}
    write_whole(run.prepared_file, json.dumps(prepared))
    run.write_status(Status(state="succeeded"))
    return 0


def launch(run: RunDirectory, options: argparse.Namespace) -> int:
    """The stand-in for torchrun: one rank, SIGTERM passed on, its exit code ours."""
    os.environ[WORKER_PID] = os.environ.get(PARENT_PID, "")
    if options.alone:
        return Rank(run, options).work()
    os.environ[PARENT_PID] = str(os.getpid())
    rank = subprocess.Popen([sys.executable, __file__, "rank", *sys.argv[2:]], start_new_session=True)

    def pass_on(_number: int, _frame: FrameType | None) -> None:
        rank.send_signal(signal.SIGTERM)

    signal.signal(signal.SIGTERM, pass_on)
    return rank.wait() & 0xFF


class Rank:
    def __init__(self, run: RunDirectory, options: argparse.Namespace) -> None:
        self.run = run
        self.options = options
        self.spec = run.spec()
        self.asked_to_stop = False

    def ask_to_stop(self, _number: int, _frame: FrameType | None) -> None:
        self.asked_to_stop = True

    def work(self) -> int:
        signal.signal(signal.SIGTERM, self.ask_to_stop)
        dump_stacks_when_asked(self.run.path, "0")
        self.run.record_process("0")
        start_deadman(self.run.path, interval=0.1)
        try:
            step, link = self.begin()
        except RunError as error:
            self.run.write_status(Status(state="failed", failure=error.failure))
            return 1
        if self.spec.resume_from is None:
            self.measure_reference()
        steps = self.options.steps
        self.run.append_event(Event(code="stub_started", message=f"starting at step {step}"))
        pulse = Pulse(self.run, writes=True)
        while step < steps:
            self.run.write_status(Status(state="running", step=step, total_steps=steps))
            pulse.enter("training")
            if step == self.options.hang_at and self.spec.resume_from is None:
                hang_for_ever()
            if step == self.options.exhaust_at and self.spec.resume_from is None:
                exhaust_memory()
            self.wait_at(step)
            time.sleep(self.options.pace)
            if self.asked_to_stop:
                self.checkpoint(step, link, final=False)
                self.run.write_status(Status(state="stopped", step=step, total_steps=steps))
                return 0
            if step == self.options.fail_at:
                failure = Failure(kind=self.options.failure, code="stub_failure", message="as ordered")
                self.run.write_status(Status(state="failed", step=step, failure=failure))
                return 1
            if step == 1 and POISON in self.spec.training_file.read_text():
                os.kill(int(os.environ[WORKER_PID]), signal.SIGKILL)
                time.sleep(60)  # our own death signal comes sooner
            self.account_for(step)
            self.run.append_metrics("train", step, {"loss": 1.0 / (step + 1), "fence": float(self.spec.fence)})
            if self.options.tells:
                self.run.append_event(Event(code="stub_step", message=str(step)))
            link = hashlib.sha256(f"{link} {step}".encode()).hexdigest()
            step += 1
            if step % self.options.checkpoint_every == 0 or step == steps:
                self.checkpoint(step, link, final=step == steps)
        self.run.write_status(Status(state="succeeded", step=step, total_steps=steps))
        if self.options.then == "hangs":
            hang_for_ever()
        return 134 if self.options.then == "dies" else 0

    def begin(self) -> tuple[int, str]:
        """Step and link to go on from. RunError: the checkpoint's bytes are not its manifest's."""
        folder = self.spec.resume_from
        if folder is None:
            return 0, self.spec.job_id
        manifest = verify(folder)
        return manifest.step, (folder / "state" / "link").read_text()

    def measure_reference(self) -> None:
        """One shard, unless it is known from elsewhere."""
        cache = self.spec.reference_cache
        found = [path.read_text() for path in sorted(cache.glob(f"{REFERENCE_GROUP}/*.safetensors"))] if cache else []
        if REFERENCE_VALUES in found:
            self.run.append_event(Event(code="reference_found", message="nothing to measure"))
            return
        shard = self.run.reference / REFERENCE_GROUP / "000000.safetensors"
        shard.parent.mkdir(parents=True)
        write_whole(shard, REFERENCE_VALUES)
        self.run.append_event(Event(code="reference_computed", message="measured"))

    def account_for(self, step: int) -> None:
        """A line of the account that all attempts of all jobs write: two of one job at once would show in it."""
        if self.options.account is not None:
            with open(self.options.account, "a") as account:
                account.write(f"{self.spec.job_id} {self.spec.fence} {step} {time.monotonic()}\n")

    def wait_at(self, step: int) -> None:
        """At the step that the test chose: until its file appears, or we are asked to stop."""
        while step == self.options.hold_at and not self.options.until.exists() and not self.asked_to_stop:
            time.sleep(POLL_SECONDS)

    def checkpoint(self, step: int, link: str, *, final: bool) -> None:
        aside = self.run.checkpoints / f".step-{step}"
        files = {"model/model.safetensors": link, "model/config.json": "{}", "state/link": link}
        records = []
        for name, text in files.items():
            path = aside / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text)
            records.append(ManifestFile(path=name, bytes=len(text), sha256=sha256_of(path)))
        manifest = Manifest(step=step, kind="full", files=records, metrics=METRICS, final=final)
        write_whole(aside / MANIFEST, manifest.model_dump_json())
        target = self.run.checkpoints / f"step-{step}"
        shutil.rmtree(target, ignore_errors=True)
        aside.rename(target)


def hang_for_ever() -> None:
    """Waits for what never comes, and says so on the way."""
    sys.stderr.write("waiting for a lock\n")
    sys.stderr.flush()
    lock = threading.Lock()
    lock.acquire()
    lock.acquire()


def exhaust_memory() -> None:
    """Takes more and more, until the kernel has enough of it; or 2 GiB, where nobody set a limit."""
    taken = [bytearray(b"x") * 2**25 for _ in range(64)]
    raise MemoryError(f"{len(taken)} pieces of 32 MiB, and nobody minds")


def main() -> int:
    parser = argparse.ArgumentParser()
    parser.add_argument("role", choices=["validate", "train", "rank"])
    parser.add_argument("--steps", type=int, default=6)
    parser.add_argument("--writes", type=int, default=0)
    parser.add_argument("--checkpoint-every", type=int, default=2)
    parser.add_argument("--tells", action="store_true", help="an event a step")
    parser.add_argument("--hold-at", type=int, default=-1)
    parser.add_argument("--until", type=Path, default=Path("/nonexistent"))
    parser.add_argument("--hang-at", type=int, default=-1, help="in a first attempt; a resumed one passes")
    parser.add_argument("--then", default="ends", help="how it ends when it has succeeded: hangs, dies")
    parser.add_argument("--exhaust-at", type=int, default=-1, help="in a first attempt")
    parser.add_argument("--fail-at", type=int, default=-1)
    parser.add_argument("--failure", default="user")
    parser.add_argument("--pace", type=float, default=0.0, help="seconds for each step")
    parser.add_argument("--account", type=Path)
    parser.add_argument("--alone", action="store_true", help="one process is launcher and rank: half the start")
    parser.add_argument("run", type=Path)
    options = parser.parse_args()
    arm_parent_death()
    run = RunDirectory(options.run)
    if options.role == "validate":
        return validate(run, options.writes)
    if options.role == "train":
        return launch(run, options)
    try:
        return Rank(run, options).work()
    except OSError as error:
        return end_with(run, error)


if __name__ == "__main__":
    sys.exit(main())
