"""What a trainer's process is given: its slots, an environment without secrets, and an owner who sweeps."""

from __future__ import annotations

import errno
import fcntl
import json
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import NoReturn

import psutil
import pytest
from pydantic import SecretStr

from control_plane.settings import Settings
from dpo_core.run_directory import RunDirectory
from tests.worker.nvidia_smi import answer, gpu
from tests.worker.stubs import DEADLINE_SECONDS, eventually
from worker import folders as folders_module
from worker import main
from worker.folders import LOCK, RunFolders
from worker.launch import GOES_FIRST, launch, trainer_environment
from worker.slots import Slots, UnknownGpus, find_slots
from worker.sweep import Sweep, alive

SLEEPER = "import time; time.sleep(600)"


@pytest.fixture
def run(tmp_path: Path) -> RunDirectory:
    return RunFolders(tmp_path / "runs").make("ftjob-1", 1)


def test_no_secret_reaches_a_trainer(run: RunDirectory) -> None:
    ours = {
        "PATH": "/bin",
        "NCCL_DEBUG": "INFO",
        "GOMP_SPINCOUNT": "0",
        "DPO_DATABASE_URL": "secret",
        "DPO_REDIS_URL": "secret",
        "AWS_SECRET_ACCESS_KEY": "secret",
        "HF_TOKEN": "secret",
    }
    theirs = trainer_environment(ours, run, "cuda", ["GPU-a", "GPU-b"])
    assert "secret" not in theirs.values()
    assert (theirs["PATH"], theirs["NCCL_DEBUG"], theirs["CUDA_VISIBLE_DEVICES"]) == ("/bin", "INFO", "GPU-a,GPU-b")
    assert theirs["GOMP_SPINCOUNT"] == "0"
    assert theirs["DPO_PARENT_PID"] == str(os.getpid())
    assert trainer_environment(ours | {"CUDA_VISIBLE_DEVICES": "0"}, run, "cpu", ["0"])["CUDA_VISIBLE_DEVICES"] == ""


def test_linux_ends_it_before_its_worker(run: RunDirectory) -> None:
    process = launch([sys.executable, "-c", SLEEPER], trainer_environment(os.environ, run, "cpu", ["0"]), run)
    scores = [int(Path(f"/proc/{pid}/oom_score_adj").read_text()) for pid in (process.pid, os.getpid())]
    process.kill()
    process.wait(timeout=DEADLINE_SECONDS)
    assert scores[0] == min(1000, scores[1] + GOES_FIRST)


def test_sweep_finds_what_left_the_family(run: RunDirectory) -> None:
    """A grandchild in a session of its own, whose parent is gone, as torchrun's ranks are after `kill -9`."""
    program = f"import subprocess, sys; subprocess.Popen([sys.executable, '-c', '{SLEEPER}'], start_new_session=True)"
    environment = trainer_environment(os.environ, run, "cpu", ["0"])
    process = launch([sys.executable, "-c", program], environment, run)
    assert process.wait(timeout=DEADLINE_SECONDS) == 0
    sweep = Sweep(run)
    (orphan,) = sweep.living(None)
    eventually(lambda: sweep.kill(None), "the sweep is empty")
    assert not alive(orphan)


HALF_DEAD = f"""
import ctypes, signal, threading
signal.signal(signal.SIGUSR1, lambda *_: ctypes.CDLL(None).pthread_exit(None))
threading.Thread(target=lambda: exec({SLEEPER!r})).start()
print("ready", flush=True)
signal.pause()
"""
"""Its first thread ends at SIGUSR1, the other one doesn't: so is for a moment what was killed, its memory in use."""


def ready(run: RunDirectory) -> bool:
    return "ready" in run.log_file.read_text()


def half_dead(process: psutil.Process) -> bool:
    return process.status() == psutil.STATUS_ZOMBIE and process.num_threads() == 2


def test_a_process_lives_as_long_as_one_of_its_threads(run: RunDirectory) -> None:
    process = launch([sys.executable, "-c", HALF_DEAD], trainer_environment(os.environ, run, "cpu", ["0"]), run)
    eventually(lambda: ready(run), "it began")
    process.send_signal(signal.SIGUSR1)
    eventually(lambda: half_dead(psutil.Process(process.pid)), "its first thread has ended")
    assert process.poll() is None
    sweep = Sweep(run)
    assert not sweep.kill(process.pid)
    eventually(lambda: sweep.kill(process.pid), "the sweep is empty")
    assert process.poll() == -signal.SIGKILL


def test_what_was_found_by_its_mark_is_looked_at_again_without_it(run: RunDirectory) -> None:
    program = f"import subprocess, sys; subprocess.Popen([sys.executable, '-c', {HALF_DEAD!r}], start_new_session=True)"
    environment = trainer_environment(os.environ, run, "cpu", ["0"])
    assert launch([sys.executable, "-c", program], environment, run).wait(timeout=DEADLINE_SECONDS) == 0
    eventually(lambda: ready(run), "it began")
    sweep = Sweep(run)
    (orphan,) = sweep.living(None)
    orphan.send_signal(signal.SIGUSR1)
    eventually(lambda: half_dead(orphan), "its first thread has ended")
    with pytest.raises(psutil.NoSuchProcess):
        orphan.environ()
    assert not sweep.kill(None)
    eventually(lambda: sweep.kill(None), "the sweep is empty")
    assert not alive(orphan)


def test_sweep_spares_a_process_that_only_got_a_recorded_pid(run: RunDirectory) -> None:
    run.processes.mkdir()
    with subprocess.Popen([sys.executable, "-c", SLEEPER]) as stranger:
        (run.processes / "0.json").write_text(json.dumps({"pid": stranger.pid, "started": time.time() - 3600}))
        assert Sweep(run).kill(None)
        assert stranger.poll() is None
        stranger.kill()


def test_a_pid_that_another_process_takes_while_it_is_looked_at_is_looked_at_again(
    run: RunDirectory, monkeypatch: pytest.MonkeyPatch
) -> None:
    """psutil raises a bare FileNotFoundError then; a storm of processes shows it once in half an hour."""
    taken = [FileNotFoundError("/proc/1/stat")]
    looked = psutil.Process.is_running

    def is_running(process: psutil.Process) -> bool:
        if taken:
            raise taken.pop()
        return looked(process)

    with subprocess.Popen([sys.executable, "-c", SLEEPER]) as process:
        sweep = Sweep(run)
        monkeypatch.setattr(psutil.Process, "is_running", is_running)
        assert not sweep.kill(process.pid), "it may live"
        process.wait(timeout=DEADLINE_SECONDS)
        assert sweep.kill(None)


def test_a_directory_is_a_leftover_only_when_its_owner_died(tmp_path: Path) -> None:
    owner = (
        "import sys, time; from pathlib import Path; from worker.folders import RunFolders\n"
        f"RunFolders(Path({str(tmp_path)!r})).make('ftjob-1', 1); print('made', flush=True); time.sleep(600)"
    )
    with subprocess.Popen([sys.executable, "-c", owner], stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        process.stdout.readline()
        folders = RunFolders(tmp_path)
        assert list(folders.leftovers()) == []
        process.kill()
    (left,) = folders.leftovers()
    folders.remove(left)
    assert list(tmp_path.iterdir()) == [tmp_path / ".lock"]


def test_whose_processes_can_be_seen_from_here_stands_in_the_lock(tmp_path: Path) -> None:
    folders = RunFolders(tmp_path)
    ours, foreign, torn = (folders.make("ftjob-1", fence) for fence in (1, 2, 3))
    print_seen = (
        "import sys; from pathlib import Path; from worker.folders import _processes_seen\n"
        "sys.stdout.buffer.write(_processes_seen(Path(sys.argv[1])))"
    )
    command = ["unshare", "--pid", "--fork", "--mount-proc", sys.executable, "-c", print_seen, str(foreign.path)]
    container = subprocess.run(command, capture_output=True, check=False)
    (foreign.path / LOCK).write_bytes(container.stdout or b"of another host\n")  # without root no container is made
    (torn.path / LOCK).write_bytes(b"\xff")
    assert folders.sees_processes_of(ours)
    assert not folders.sees_processes_of(foreign) and not folders.sees_processes_of(torn)
    (tmp_path / "link").symlink_to(ours.path)
    assert not folders.sees_processes_of(RunDirectory(tmp_path / "link")), "they are not marked with this path"
    (torn.path / LOCK).unlink()
    assert not folders.sees_processes_of(torn)


def test_a_worker_that_is_frozen_in_a_change_keeps_no_other_from_work(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(folders_module, "CHANGING_SECONDS", 0.2)
    frozen = (
        "import os, signal; from pathlib import Path; from worker.folders import RunFolders\n"
        f"with RunFolders(Path({str(tmp_path)!r}))._changing(): os.kill(os.getpid(), signal.SIGSTOP)"
    )
    with subprocess.Popen([sys.executable, "-c", frozen]) as process:
        try:
            eventually(lambda: psutil.Process(process.pid).status() == psutil.STATUS_STOPPED, "it is frozen")
            folders = RunFolders(tmp_path)
            run = folders.make("ftjob-1", 1)
            assert list(RunFolders(tmp_path).leftovers()) == [], "somebody holds it"
            folders.remove(run)
        finally:
            process.send_signal(signal.SIGCONT)
    assert process.returncode == 0
    assert caplog.text.count("another worker of this host has held") == 2, "each of the two waited once"
    assert list(tmp_path.iterdir()) == [tmp_path / ".lock"]


def test_a_lock_that_was_removed_before_it_was_locked_is_nobodys(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A worker that was frozen between the two, while another took its new folder for a leftover and removed it."""
    slow, other = RunFolders(tmp_path), RunFolders(tmp_path)
    lock = folders_module.fcntl.flock

    def late(descriptor: int, how: int) -> None:
        if Path(f"/proc/self/fd/{descriptor}").readlink().name == LOCK:
            monkeypatch.undo()
            monkeypatch.setattr(folders_module, "CHANGING_SECONDS", 0.1)
            (left,) = other.leftovers()
            other.remove(left)
        lock(descriptor, how)

    monkeypatch.setattr(folders_module.fcntl, "flock", late)
    with pytest.raises(FileNotFoundError):
        slow.make("ftjob-1", 1)
    assert not (tmp_path / "ftjob-1").exists()
    slow.remove(slow.make("ftjob-1", 1))


def test_what_is_no_run_directory_is_left_alone(tmp_path: Path) -> None:
    for name in ("ftjob-1/notes", "ftjob-1/1.old", "lost+found/x"):
        (tmp_path / name).mkdir(parents=True)
    assert list(RunFolders(tmp_path).leftovers()) == []


def test_a_directory_that_can_t_be_looked_at_is_said_and_keeps_nobody(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    for fence in ("1", "2"):
        (tmp_path / "ftjob-1" / fence).mkdir(parents=True)
    (tmp_path / "ftjob-1" / "1" / LOCK).mkdir()  # no file can be opened there
    (left,) = RunFolders(tmp_path).leftovers()
    assert left.path.name == "2"
    assert "ftjob-1/1 can't be looked at" in caplog.text


def test_a_directory_that_could_not_be_removed_is_left_over(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folders, other = RunFolders(tmp_path), RunFolders(tmp_path)
    run = folders.make("ftjob-1", 1)
    (run.path / "checkpoints").mkdir(exist_ok=True)
    assert list(other.leftovers()) == []
    with monkeypatch.context() as disk:
        disk.setattr(shutil, "rmtree", read_only)
        with pytest.raises(OSError, match="Read-only"):
            folders.remove(run)
    (left,) = other.leftovers()
    folders.leave(run)
    assert list(folders.leftovers()) == [], "it is the other's now, whoever leaves it once more"
    other.remove(left)
    assert not (tmp_path / "ftjob-1").exists()


def read_only(*_: object) -> NoReturn:
    raise OSError(errno.EROFS, "Read-only file system")


def test_while_no_writes_are_taken_leftovers_are_seen_all_the_same(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    owner, looking = RunFolders(tmp_path), RunFolders(tmp_path)
    run, held = owner.make("ftjob-1", 1), owner.make("ftjob-1", 2)
    owner.leave(run)
    opened = os.open

    def reads_only(path: Path, flags: int, mode: int = 0o777) -> int:
        return read_only() if flags & os.O_CREAT else opened(path, flags, mode)

    with monkeypatch.context() as disk:
        disk.setattr(folders_module.os, "open", reads_only)
        assert [left.path for left in looking.leftovers()] == [run.path]
    assert held.path.exists()


def test_directories_that_another_worker_removes_disturb_nobody_who_looks_for_leftovers(tmp_path: Path) -> None:
    owner, looking, over = RunFolders(tmp_path), RunFolders(tmp_path), threading.Event()

    def come_and_go() -> None:
        fence = 0
        while not over.is_set():
            fence += 1
            owner.remove(owner.make(f"ftjob-{fence % 7}", fence))

    busy = threading.Thread(target=come_and_go)
    busy.start()
    try:
        assert [left for _ in range(5000) for left in looking.leftovers()] == []
    finally:
        over.set()
        busy.join()


def test_others_that_are_busy_are_not_taken_for_one_that_stands_still(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(folders_module, "CHANGING_SECONDS", 1.0)
    folders, made = RunFolders(tmp_path), threading.Event()

    def make() -> None:
        folders.make("ftjob-1", 1)
        made.set()

    waiting = threading.Thread(target=make)
    with open(tmp_path / ".lock", "wb") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        waiting.start()
        for _ in range(20):  # others have it, each for a moment
            os.utime(lock.fileno())
            assert not made.wait(0.1)
    waiting.join()
    assert made.is_set()
    assert "it, or its disk, hangs" not in caplog.text


def test_others_that_follow_one_another_keep_nobody_for_good(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(folders_module, "CHANGING_SECONDS", 0.1)
    look = folders_module._locked

    def changes_hands(file: Path, how: int) -> int:
        if file.name == ".lock":
            os.utime(file)
            raise BlockingIOError
        return look(file, how)

    (tmp_path / ".lock").touch()
    monkeypatch.setattr(folders_module, "_locked", changes_hands)
    run = RunFolders(tmp_path).make("ftjob-1", 1)
    assert (run.path / LOCK).exists()
    assert "it, or its disk, hangs" not in caplog.text


def test_whoever_changes_folders_tells_those_who_wait(tmp_path: Path) -> None:
    folders, lock = RunFolders(tmp_path), tmp_path / ".lock"
    folders.make("ftjob-1", 1)
    os.utime(lock, ns=(0, 0))
    folders.make("ftjob-1", 2)
    assert lock.stat().st_mtime_ns > 0


def test_each_that_stands_still_is_waited_for_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(folders_module, "CHANGING_SECONDS", 0.1)
    folders = RunFolders(tmp_path)
    for first_fence in (1, 10):
        folders.make("ftjob-1", first_fence)
        with open(tmp_path / ".lock", "wb") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            for more in (1, 2, 3):
                folders.make("ftjob-1", first_fence + more)
    assert caplog.text.count("it, or its disk, hangs") == 2


def test_slots_are_taken_and_come_back() -> None:
    slots = Slots("cuda", ["GPU-a", "GPU-b", "GPU-c"])
    taken = slots.take(2)
    assert (taken, slots.free, slots.total) == (["GPU-a", "GPU-b"], 1, 3)
    slots.give_back(taken)
    assert slots.free == 3


@pytest.fixture
def nvidia_smi(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A program of that name on PATH, which lists two GPUs."""
    program = tmp_path / "bin" / "nvidia-smi"
    program.parent.mkdir()
    program.write_text(f"#!/bin/sh\ncat <<'END'\n{answer(gpu('GPU-aaaa'), gpu('GPU-bbbb'))}\nEND\n")
    program.chmod(0o755)
    monkeypatch.setenv("PATH", str(program.parent), prepend=os.pathsep)


@pytest.mark.usefixtures("nvidia_smi")
@pytest.mark.parametrize(
    ("visible", "device", "total"),
    [(None, "cuda", 2), ("1", "cuda", 1), ("GPU-aaaa,1", "cuda", 2), ("GPU-b", "cuda", 1), ("", "cpu", 3)],
)
def test_gpus_are_those_that_the_operator_left_visible(visible: str | None, device: str, total: int) -> None:
    slots = find_slots(3, {} if visible is None else {"CUDA_VISIBLE_DEVICES": visible})
    assert (slots.device, slots.total) == (device, total)


@pytest.mark.usefixtures("nvidia_smi")
def test_names_of_no_gpu_make_no_cpu_worker() -> None:
    with pytest.raises(UnknownGpus, match=r"=7 names none of this host's GPUs: 0 \(GPU-aaaa\), 1 \(GPU-bbbb\)"):
        find_slots(1, {"CUDA_VISIBLE_DEVICES": "7"})


@pytest.mark.usefixtures("nvidia_smi")
@pytest.mark.parametrize("visible", ["", "-1"])
def test_with_a_driver_that_fails_a_worker_starts_only_where_it_is_to_use_the_cpu(
    tmp_path: Path, visible: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It would train the whole queue on a GPU host's CPU."""
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    (tmp_path / "bin" / "nvidia-smi").write_text("#!/bin/sh\necho 'Driver/library version mismatch'\nexit 18\n")
    settings = Settings(
        database_url=SecretStr("postgresql:///none"),
        redis_url=SecretStr("redis:///"),
        storage_url=(tmp_path / "storage").as_uri(),
    )
    with pytest.raises(SystemExit, match=r"error: .*set CUDA_VISIBLE_DEVICES to nothing .*version mismatch"):
        main.run(settings)
    assert find_slots(1, {"CUDA_VISIBLE_DEVICES": visible}).device == "cpu"
