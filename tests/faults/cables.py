"""Network namespaces (`ip netns`), each with a worker in it, and the cable between it and PostgreSQL.

PostgreSQL listens on a unix socket alone, so a forwarder at the host's end passes bytes on to it. When that end is
down, packets vanish in both directions and no connection is told.
"""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path

PREFIX = "dpo"
CHUNK = 65_536


@dataclass
class Cable:
    """A namespace and the pair of interfaces that joins it to the host."""

    name: str
    subnet: int
    listener: socket.socket = field(default_factory=lambda: socket.socket(socket.AF_INET, socket.SOCK_STREAM))

    @property
    def host(self) -> str:
        """The host's address on it."""
        return f"10.213.{self.subnet}.1"

    def inside(self, *command: str) -> list[str]:
        return ["ip", "netns", "exec", self.name, *command]

    def set(self, state: str) -> None:
        """`up` or `down`."""
        _ip("link", "set", "dev", f"{self.name}h", state)

    def database_url(self, unix_socket: Path) -> str:
        """Where a worker in the namespace finds the PostgreSQL of that socket, from now on."""
        self.listener.bind((self.host, 0))
        self.listener.listen()
        threading.Thread(target=self._accept, args=(unix_socket,), name=self.name, daemon=True).start()
        return f"postgresql+psycopg://postgres@{self.host}:{self.listener.getsockname()[1]}/postgres"

    def _accept(self, unix_socket: Path) -> None:
        while True:
            try:
                near, _ = self.listener.accept()
            except OSError:  # it was closed
                return
            far = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
            try:
                far.connect(str(unix_socket))
            except OSError:  # PostgreSQL is away
                near.close()
                far.close()
                continue
            for source, sink in ((near, far), (far, near)):
                threading.Thread(target=_pass_on, args=(source, sink), name=self.name, daemon=True).start()


def _pass_on(source: socket.socket, sink: socket.socket) -> None:
    with suppress(OSError):
        while data := source.recv(CHUNK):
            sink.sendall(data)
    for end in (source, sink):
        with suppress(OSError):
            end.shutdown(socket.SHUT_RDWR)
        end.close()


@contextmanager
def cable(number: int) -> Iterator[Cable]:
    """One that is up; `number` tells this process's apart."""
    pid = os.getpid()
    joined = Cable(f"{PREFIX}{pid % 100_000}{'ab'[number]}", (2 * pid + number) % 250 + 1)
    end = f"{joined.name}n"
    _ip("netns", "add", joined.name)
    try:
        _ip("link", "add", f"{joined.name}h", "type", "veth", "peer", "name", end, "netns", joined.name)
        _ip("addr", "add", f"{joined.host}/24", "dev", f"{joined.name}h")
        _ip("-n", joined.name, "addr", "add", f"10.213.{joined.subnet}.2/24", "dev", end)
        _ip("-n", joined.name, "link", "set", "dev", "lo", "up")
        _ip("-n", joined.name, "link", "set", "dev", end, "up")
        joined.set("up")
        yield joined
    finally:
        joined.listener.close()
        _ip("netns", "del", joined.name)


def lacks_namespaces() -> str | None:
    """Why there can be no cable here, if so."""
    if os.geteuid() != 0 or shutil.which("ip") is None:
        return "a network namespace takes root and `ip` (iproute2)"
    probe = f"{PREFIX}{os.getpid() % 100_000}p"
    made = subprocess.run(["ip", "netns", "add", probe], capture_output=True, text=True, check=False)
    if made.returncode != 0:
        return f"`ip netns add` says: {made.stderr.strip()}"
    _ip("netns", "del", probe)
    return None


def _ip(*arguments: str) -> None:
    subprocess.run(["ip", *arguments], check=True, capture_output=True, text=True)
