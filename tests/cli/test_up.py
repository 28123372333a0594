"""`dpo up`, as a user meets it: from nothing, again, twice, killed, and with a part killed."""

from __future__ import annotations

import shutil
import signal
import socket
import stat
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from tempfile import TemporaryDirectory

import openai
import pytest

from cli.data_folder import DataFolder, default_data
from cli.servers import socket_folder
from cli.up import welcome
from tests.cli.running import SECONDS, Running, argv, clean, dpo, until
from tests.makers import make_tiny_model

Start = Callable[..., Running]


@pytest.fixture(scope="module")
def data() -> Iterator[Path]:
    """One folder for all: each test finds what the one before left. Its name has a space and is not yet there.

    Not below pytest's own folder, for the reason that tests/conftest.py gives.
    """
    with TemporaryDirectory(prefix="dpo-test-up-") as folder:
        data = Path(folder) / "data folder"
        yield data
        shutil.rmtree(socket_folder(data), ignore_errors=True)  # elsewhere, because of the space


@pytest.fixture
def start(data: Path) -> Iterator[Start]:
    started: list[Running] = []

    def one(*program: str) -> Running:
        """`program`: what to run instead of `dpo`."""
        started.append(Running(data, program=program))
        return started[-1]

    yield one
    for running in started:
        running.clean_up()


def client(running: Running) -> openai.OpenAI:
    key = Path(running.record["api_key_file"]).read_text().strip()
    return openai.OpenAI(base_url=running.record["base_url"], api_key=key)


def models_of(running: Running) -> list[str]:
    with client(running) as api:
        return [model.id for model in api.models.list()]


def paste(running: Running) -> str:
    """What the printed exports and a first call through the `openai` client print."""
    exports = [line for line in running.said().splitlines() if line.startswith("  export ")]
    call = f"'{sys.executable}' -c 'from openai import OpenAI; print(len(OpenAI().files.list().data))'"
    done = subprocess.run(["bash", "-euc", "\n".join([*exports, call])], capture_output=True, text=True, check=False)
    return done.stdout.strip() or done.stderr


def test_from_nothing_until_ctrl_c(start: Start, data: Path, tmp_path: Path) -> None:
    running = start()
    assert paste(running) == "0"
    assert stat.S_IMODE((data / "api_key").stat().st_mode) == 0o600
    assert (data / "api_key").read_text().strip() in running.said()

    make_tiny_model(tmp_path / "tiny")
    added = dpo("models", "add", tmp_path / "tiny", "--data", data)
    assert (added.stdout, added.stderr) == ("base/tiny\n", "")
    assert models_of(running) == ["base/tiny"]

    assert running.stop(signal.SIGINT) == 0
    assert running.gone()
    assert not (data / "service.json").exists()
    stops = [line for line in running.said().splitlines() if line.startswith("stopping ")]
    assert stops == [f"stopping {part}" for part in ("api", "worker", "redis", "postgres")]


def test_started_again_it_finds_its_data_and_a_second_one_is_refused(start: Start, data: Path) -> None:
    running = start()
    key = (data / "api_key").read_text().strip()
    assert key not in running.said()
    assert paste(running) == "0"
    assert models_of(running) == ["base/tiny"]

    second = dpo("up", "--data", data, "--port", 0)
    assert second.returncode == 1
    assert second.stderr == (
        f"dpo: `dpo up` already runs on {data} (pid {running.process.pid}); stop that one, or choose another --data\n"
    )
    assert running.stop(signal.SIGTERM) == 0
    assert running.gone()


def test_what_a_killed_one_leaves_does_not_block_the_next(start: Start) -> None:
    killed = start()
    killed.process.kill()
    killed.process.wait()
    running = start()
    assert killed.gone()
    assert models_of(running) == ["base/tiny"]
    stops_at_once_when_asked_twice(running)


def stops_at_once_when_asked_twice(running: Running) -> None:
    worker = running.part("worker")
    assert worker is not None
    worker.suspend()  # it will not obey the first signal
    running.process.send_signal(signal.SIGINT)
    until(lambda: "stopping worker" in running.said(), "it waits for the worker")
    assert running.stop() == 0
    assert running.gone()


def test_a_terminal_that_is_gone_stops_it_in_order(data: Path) -> None:
    shut_down = shutdowns(data)
    program = argv(("up", "--data", data, "--port", 0, "--cpu-slots", 1))
    program = ["env", "--default-signal=HUP", *program]  # these tests may run under nohup themselves
    process = subprocess.Popen(program, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, env=clean({}))
    assert process.stdout is not None
    try:
        until(lambda: b"ready:" in process.stdout.readline(), "dpo up is ready")
        process.stdout.close()
        process.send_signal(signal.SIGHUP)
        assert process.wait(SECONDS) == 0
    finally:
        process.kill()
        process.wait()
    assert shutdowns(data) == shut_down + 1
    assert not (data / "service.json").exists()


def shutdowns(data: Path) -> int:
    """How often PostgreSQL was stopped in order."""
    log = data / "logs" / "postgres.log"
    return log.read_text().count("database system is shut down") if log.exists() else 0


def test_a_part_that_dies_is_started_again(start: Start) -> None:
    """Also where nobody watches any more."""
    running = start("nohup", *argv(()))
    running.process.send_signal(signal.SIGHUP)
    for name in ("postgres", "redis", "worker", "api"):
        kill_part(running, name)
        assert f"{name} ended (killed by SIGKILL); started again in 0.5 s" in running.said()
    assert running.stop() == 0
    assert running.gone()


def kill_part(running: Running, name: str) -> None:
    """Kills it, and waits until another one runs and the service answers."""
    victim = running.part(name)
    assert victim is not None, name
    victim.kill()
    until(lambda: running.part(name) not in (None, victim), f"{name} is started again")
    until(lambda: _lists(running), "the service answers again")


def _lists(running: Running) -> bool:
    try:
        return models_of(running) == ["base/tiny"]
    except openai.OpenAIError:
        return False


def test_a_port_that_is_taken_is_named_with_the_way_out(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        refused = dpo("up", "--data", tmp_path / "data", "--port", port)
    assert refused.returncode == 1
    assert refused.stderr == (
        f"dpo: port {port} of 127.0.0.1 is taken by another program; choose another one, or 0 for any: --port\n"
    )


def test_another_shell_is_told_the_data_folder_unless_every_shell_finds_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DPO_DATA", str(tmp_path))
    assert f" --data {tmp_path}\n" in welcome(DataFolder(tmp_path), "http://localhost", None)
    monkeypatch.delenv("DPO_DATA")
    assert "--data" not in welcome(DataFolder(default_data()), "http://localhost", None)
