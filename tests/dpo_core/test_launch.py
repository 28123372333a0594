"""The real launcher: stopping, going on, dying, and saying why."""

from __future__ import annotations

import math
import platform
import shutil
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path

import psutil
import pytest
from safetensors.torch import load_file, save_file

from dpo_core.launch import killed_rank, rank_environment
from dpo_core.run_directory import RunDirectory, Status
from dpo_core.spec import ModelSource
from tests.dpo_core.runs import Workshop, all_gone, final_weights, launch, lines, losses, tail, train_all

# The rate must not depend on the number of steps, which the tests only know afterwards.
CONSTANT = {"schedule": "constant", "warmup_ratio": 0.0, "evaluation_steps": 1000}
LONG = CONSTANT | {"max_steps": 100_000, "checkpoint_steps": 5}


@pytest.fixture(scope="module")
def workshop(tmp_path_factory: pytest.TempPathFactory) -> Workshop:
    return Workshop(tmp_path_factory.mktemp("launch"))


@pytest.fixture(autouse=True)
def a_failed_test_leaves_no_training(workshop: Workshop) -> Iterator[None]:
    """It would go on for 100,000 steps beside the tests that follow."""
    yield
    for child in psutil.Process().children(recursive=True):
        with suppress(psutil.NoSuchProcess):
            if any(str(workshop.folder) in argument for argument in child.cmdline()):
                child.kill()


def test_what_the_ranks_inherit(workshop: Workshop, monkeypatch: pytest.MonkeyPatch) -> None:
    """Threads sleep after a few spins, and malloc keeps what a step frees; what the operator has set stays, but for the
    device."""
    run = workshop.make("inherit").spec()
    monkeypatch.setattr(platform, "libc_ver", lambda: ("glibc", "2.36"))
    asleep = {"OMP_WAIT_POLICY": "PASSIVE", "GOMP_SPINCOUNT": "300"}
    for name in asleep:
        monkeypatch.delenv(name, raising=False)
    assert rank_environment(run).items() >= asleep.items()
    monkeypatch.setenv("OMP_WAIT_POLICY", "ACTIVE")
    monkeypatch.setenv("OMP_NUM_THREADS", "7")
    monkeypatch.setenv("DS_ACCELERATOR", "cuda")
    found = rank_environment(run)
    assert (found["OMP_NUM_THREADS"], found["DS_ACCELERATOR"]) == ("7", "cpu")
    assert not found.keys() & asleep.keys()
    assert {"MALLOC_MMAP_THRESHOLD_", "MALLOC_TRIM_THRESHOLD_"} <= found.keys()
    assert not [name for name in rank_environment(run.model_copy(update={"device": "cuda"})) if "MALLOC" in name]
    for name, version in (("glibc", "2.34"), ("", "")):
        monkeypatch.setattr(platform, "libc_ver", lambda libc=(name, version): libc)
        assert not [wish for wish in rank_environment(run) if "MALLOC" in wish]


def wait_for(what: Callable[[], object], process: subprocess.Popen[bytes], run: RunDirectory) -> None:
    deadline = time.monotonic() + 300
    while not what():
        assert process.poll() is None, tail(run)
        assert time.monotonic() < deadline, tail(run)
        time.sleep(0.05)


def family(process: subprocess.Popen[bytes]) -> list[psutil.Process]:
    root = psutil.Process(process.pid)
    return [root, *root.children(recursive=True)]


def status_of(run: RunDirectory) -> Status:
    status = run.status()
    assert status is not None
    return status


def test_sigterm_stops_with_a_checkpoint_from_which_the_run_goes_on(
    workshop: Workshop, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    run = workshop.make("stopped", ranks=2, training=LONG | {"checkpoint_steps": 100_000, "zero_stage": 2})
    process = launch(run)
    wait_for(lambda: len(lines(run)) > 3, process, run)
    ranks = family(process)
    process.send_signal(signal.SIGTERM)
    assert process.wait(300) == 0, tail(run)
    assert all_gone(ranks)
    assert list(tmp_path.iterdir()) == []
    status, ((checkpoint, manifest),) = status_of(run), run.complete_checkpoints()
    assert (status.state, status.step) == ("stopped", manifest.step)
    assert not manifest.final
    # Three more steps from there equal a run that was never stopped.
    training = CONSTANT | {"max_steps": status.step + 3, "checkpoint_steps": 100_000, "zero_stage": 2}
    resumed = workshop.make("resumed", ranks=2, training=training, resume_from=checkpoint)
    whole = workshop.make("whole", ranks=2, training=training)
    train_all([resumed, whole], ranks=2)
    assert losses(run) + losses(resumed) == losses(whole)
    assert final_weights(resumed) == final_weights(whole)


def test_a_killed_rank_fails_the_run_and_leaves_no_process(workshop: Workshop) -> None:
    run = workshop.make("killed", ranks=2, training=LONG)
    process = launch(run)
    wait_for(lambda: (run.status() or Status(state="starting")).step >= 5, process, run)
    everyone, recorded = family(process), run.recorded_processes()
    assert {rank.pid for rank in recorded} <= {member.pid for member in everyone}
    assert len(recorded) == 2
    killed = next(rank for rank in range(2) if str(recorded[1].pid) in (run.processes / f"{rank}.json").read_text())
    recorded[1].kill()
    assert process.wait(300) != 0
    assert all_gone(everyone)
    status = status_of(run)
    assert status.state == "failed"
    assert status.failure is not None
    assert (status.failure.kind, status.failure.code) == ("infrastructure", "rank_lost")
    assert status.failure.message == f"Rank {killed} was killed (SIGKILL)."
    assert status.step >= 5
    assert run.complete_checkpoints()


def test_the_killed_rank_is_not_one_that_torchrun_ended() -> None:
    assert killed_rank({0: -signal.SIGTERM, 1: -signal.SIGKILL}) == "Rank 1 was killed (SIGKILL)."
    assert killed_rank({0: 1, 1: -signal.SIGTERM}) == "Rank 1 was killed (SIGTERM)."
    assert killed_rank({0: 1, 1: 1}) is None


def test_training_listens_on_the_loopback_address_only(workshop: Workshop) -> None:
    run = workshop.make("listening", ranks=2, training=LONG)
    process = launch(run)
    wait_for(lambda: lines(run), process, run)
    everyone = family(process)
    listening = [
        connection.laddr.ip
        for member in everyone
        for connection in member.net_connections("inet")
        if connection.status == psutil.CONN_LISTEN
    ]
    process.kill()
    process.wait()
    assert all_gone(everyone)
    assert set(listening) == {"127.0.0.1"}


def test_ranks_die_with_a_launcher_that_is_killed(workshop: Workshop) -> None:
    run = workshop.make("orphaned", ranks=2, training=LONG)
    process = launch(run)
    wait_for(lambda: lines(run), process, run)
    everyone = family(process)
    process.kill()
    process.wait()
    assert all_gone(everyone)


def test_a_loss_that_is_not_finite_is_a_divergence(workshop: Workshop, tmp_path: Path) -> None:
    shutil.copytree(workshop.base.path, tmp_path / "model")
    weights = load_file(tmp_path / "model" / "model.safetensors")
    weights["model.norm.weight"][0] = math.nan
    save_file(weights, tmp_path / "model" / "model.safetensors", metadata={"format": "pt"})
    broken = ModelSource(id="default/broken", path=tmp_path / "model")
    run = workshop.make("diverged", model=broken, training={"method": "supervised"})
    assert launch(run).wait(300) != 0
    failure = status_of(run).failure
    assert failure is not None, tail(run)
    assert (failure.kind, failure.code) == ("divergence", "not_finite")
    assert run.complete_checkpoints() == []


def test_a_model_that_can_not_be_read_is_the_users_failure(workshop: Workshop, tmp_path: Path) -> None:
    for file in workshop.base.path.iterdir():
        if file.suffix != ".safetensors":
            (tmp_path / file.name).write_bytes(file.read_bytes())
    run = workshop.make("unreadable", model=ModelSource(id="default/hollow", path=tmp_path))
    assert launch(run).wait(300) != 0
    failure = status_of(run).failure
    assert failure is not None, tail(run)
    assert (failure.kind, failure.param) == ("user", "model")
