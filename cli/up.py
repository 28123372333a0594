"""`dpo up`: the whole service on this machine, from one folder, until Ctrl-C."""

from __future__ import annotations

import errno
import os
import shlex
import signal
import socket
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType

import typer

from cli.data_folder import DataFolder, default_data
from cli.errors import CommandFailed
from cli.options import PROJECT
from cli.service import Service
from cli.words import command
from control_plane import keys, projects
from control_plane.database import Database
from control_plane.errors import Unauthenticated
from control_plane.settings import EmbeddedSettings

LOOPBACK = "127.0.0.1"
DEFAULT_PORT = 8000
STOP_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


def up(folder: DataFolder, *, port: int, cpu_slots: int | None) -> None:
    """Runs the embedded service until a signal. Raises CommandFailed when it can't be started."""
    folder.make()
    with folder.locked() as lock, listening(port) as listener:
        service = Service(folder, listener=listener, lock=lock, cpu_slots=cpu_slots, say=say)
        with stop_signals(hurry=service.hurry):
            try:
                _serve(service)
            except KeyboardInterrupt:
                say("\nstopping; running jobs make a checkpoint first (again to hurry)")
            finally:
                service.stop()


def say(message: str) -> None:
    """To a terminal that may be gone: what runs is stopped in order, or goes on, all the same."""
    try:
        typer.echo(message)
    except OSError:
        with open(os.devnull, "w") as nowhere:  # also for what is still in stdout's buffer
            os.dup2(nowhere.fileno(), sys.stdout.fileno())


def _serve(service: Service) -> None:
    from migrations.run import upgrade

    folder = service.folder
    typer.echo(f"starting in {folder.path}")
    settings = service.start_servers()
    url = settings.database_url.get_secret_value()
    upgrade(url)
    new_key = first_key(folder, url)
    service.start_program(settings)
    base_url = f"http://{service.host}:{service.port}/v1"
    folder.announce(base_url)
    typer.echo(welcome(folder, base_url, new_key))
    service.watch()


def first_key(folder: DataFolder, url: str) -> str | None:
    """Makes the default project's first key and keeps it in the folder; None when the kept one still works."""
    database = Database(url)
    try:
        with database.transaction() as session:
            project = projects.ensure(session, PROJECT)
            kept = folder.kept_key()
            if kept is not None:
                try:
                    keys.authenticate(session, kept)
                    return None
                except Unauthenticated:
                    pass
            _, secret = keys.create(session, project.id, "dpo up")
            folder.keep_key(secret)  # before the commit: a key that nobody kept would stay valid for ever
            return secret
    finally:
        database.dispose()


def welcome(folder: DataFolder, base_url: str, new_key: str | None) -> str:
    """What to paste into a shell and into Python. A new key is shown here and never again."""
    # Another shell need not have this one's DPO_DATA.
    found = EmbeddedSettings().data is None and folder.path == default_data()
    data = [] if found else ["--data", str(folder.path)]
    key_file = shlex.quote(str(folder.api_key_file))
    key = new_key or f'"$(cat {key_file})"'
    shown_once = f"\nThe key is kept in {folder.api_key_file}; it is shown only this once.\n" if new_key else ""
    return f"""
ready: {base_url}    data and logs: {folder.path}    Ctrl-C stops everything

In another shell:

  export OPENAI_BASE_URL={base_url}
  export OPENAI_API_KEY={key}
  {command("models", "add", "/path/to/model", *data)}
  {command("submit", "pairs.jsonl", "--model", "base/model", "--watch")}
{shown_once}
In Python:

  from openai import OpenAI
  client = OpenAI()
  pairs = client.files.create(file=open("pairs.jsonl", "rb"), purpose="fine-tune")
  job = client.fine_tuning.jobs.create(model="base/model", training_file=pairs.id, method={{"type": "dpo"}})
  print(client.fine_tuning.jobs.retrieve(job.id).status)
"""


@contextmanager
def listening(port: int) -> Iterator[socket.socket]:
    """A socket bound to `port` of the loopback address (0: any free one). Raises CommandFailed."""
    with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as listener:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            listener.bind((LOOPBACK, port))
        except OSError as error:
            if error.errno == errno.EADDRINUSE:
                why = "is taken by another program"
            else:
                why = f"can't be used ({os.strerror(error.errno or 0)})"
            raise CommandFailed(f"port {port} of {LOOPBACK} {why}; choose another one, or 0 for any: --port") from None
        yield listener


@contextmanager
def stop_signals(hurry: Callable[[], None]) -> Iterator[None]:
    """The first stop signal raises KeyboardInterrupt wherever the main thread is; every further one hurries."""

    def first(_number: int, _frame: FrameType | None) -> None:
        for number in heard:
            signal.signal(number, lambda _number, _frame: hurry())
        raise KeyboardInterrupt

    heard = [
        number for number in STOP_SIGNALS if signal.getsignal(number) is not signal.SIG_IGN
    ]  # nohup's stay ignored
    former = {number: signal.signal(number, first) for number in heard}
    try:
        yield
    finally:
        for number, handler in former.items():
            signal.signal(number, handler)
