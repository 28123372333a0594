"""How fast bytes come in and go out: `make bench-transfer`. The last line is JSON.

Up: a large file through `POST /v1/files`, beside a Python loop that reads and writes the same file on the same disk,
and how much more memory the API's process takes. Down: the same file from `GET /v1/files/{id}/content`, beside nginx
(Debian: apt install nginx-light) on the same stored file. Each is done in turn, and the median counts.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import shutil
import socket
import statistics
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.client import HTTPConnection
from pathlib import Path
from tempfile import TemporaryDirectory

from benchmarks.servers import dpo, running, servers
from cli.parts import Part
from control_plane import keys, projects
from control_plane.database import Database

MIB = 1024**2
BOUNDARY = b"--x\r\n"
HEAD = BOUNDARY + b'Content-Disposition: form-data; name="purpose"\r\n\r\nfine-tune\r\n' + BOUNDARY
HEAD += b'Content-Disposition: form-data; name="file"; filename="big.jsonl"\r\n\r\n'
TAIL = b"\r\n--x--\r\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--mib", type=int, default=2048, help="size of the file")
    parser.add_argument("--rounds", type=int, default=3)
    options = parser.parse_args()
    build = Path(__file__).parents[1] / "build"
    build.mkdir(exist_ok=True)
    with TemporaryDirectory(dir=build, prefix="transfer-") as folder, running_api(Path(folder)) as api:
        source = write_source(Path(folder) / "source", options.mib)
        result = {"mib": options.mib, "rounds": options.rounds, **upload(api, source, options.rounds)}
        result |= download(api, Path(folder), options.rounds)
    print(json.dumps(result))


class Api:
    def __init__(self, port: int, key: str, pid: int, storage: Path) -> None:
        self.port, self.key, self.storage = port, key, storage
        self._proc = Path(f"/proc/{pid}")

    def reset_peak(self) -> float:
        """Resident memory now, in MiB."""
        (self._proc / "clear_refs").write_text("5")
        return self._mib("VmRSS")

    def peak_mib(self) -> float:
        return self._mib("VmHWM")

    def _mib(self, field: str) -> float:
        (kib,) = re.findall(rf"{field}:\s+(\d+) kB", (self._proc / "status").read_text())
        return int(kib) / 1024


@contextmanager
def running_api(folder: Path) -> Iterator[Api]:
    """`dpo api` over a PostgreSQL and Redis of its own, with all its data in `folder`."""
    with servers(folder) as under, socket.create_server(("127.0.0.1", 0)) as listener:
        key = make_key(under.database_url)
        with dpo(under, "api", "--fd", str(listener.fileno()), keep_open=(listener.fileno(),)) as process:
            port = listener.getsockname()[1]
            wait_for(port, "/readyz")
            yield Api(port, key, process.pid, folder / "storage")


def make_key(database_url: str) -> str:
    database = Database(database_url)
    with database.transaction() as session:
        _, secret = keys.create(session, projects.ensure(session, "default").id, "benchmark")
    database.dispose()
    return secret


def write_source(path: Path, mib: int) -> Path:
    with open(path, "wb") as file:
        for number in range(mib):
            file.write((b"%063d\n" % number) * (MIB // 64))
        os.fsync(file.fileno())
    return path


def upload(api: Api, source: Path, rounds: int) -> dict[str, float]:
    send(api, source, MIB)  # everything that is loaded late is loaded now
    before = api.reset_peak()
    ours, loop = [], []
    for _ in range(rounds):
        ours.append(timed(lambda: send(api, source, source.stat().st_size)))
        loop.append(timed(lambda: copy(source, source.with_name("copy"))))
    rise = api.peak_mib() - before
    up, plain = statistics.median(ours), statistics.median(loop)
    print(f"up: {up:.2f} s, a loop that reads and writes it {plain:.2f} s; the API's memory rose by {rise:.1f} MiB")
    return {
        "upload_s": round(up, 3),
        "loop_s": round(plain, 3),
        "upload_times_loop": round(up / plain, 3),
        "memory_rise_mib": round(rise, 1),
    }


def send(api: Api, source: Path, size: int) -> None:
    """The first `size` bytes as an upload; its id stays in storage's folder."""
    with socket.create_connection(("127.0.0.1", api.port)) as connection, open(source, "rb") as file:
        length = len(HEAD) + size + len(TAIL)
        connection.sendall(
            f"POST /v1/files HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {api.key}\r\nConnection: close\r\n"
            f"Content-Type: multipart/form-data; boundary=x\r\nContent-Length: {length}\r\n\r\n".encode()
        )
        connection.sendall(HEAD)
        while size:
            block = file.read(min(MIB, size))
            size -= len(block)
            connection.sendall(block)
        connection.sendall(TAIL)
        answer = b"".join(iter(lambda: connection.recv(MIB), b""))
    if b" 200 " not in answer.splitlines()[0]:
        raise SystemExit(f"the upload was refused: {answer.decode(errors='replace')}")


def copy(source: Path, target: Path) -> None:
    """What the API can't do without: every byte read once and written once, and durable in the end."""
    with open(source, "rb") as reading, open(target, "wb") as writing:
        while block := reading.read(MIB):
            writing.write(block)
        writing.flush()
        os.fsync(writing.fileno())
    target.unlink()


def download(api: Api, folder: Path, rounds: int) -> dict[str, float | None]:
    stored = max((api.storage / "files").iterdir(), key=lambda path: path.stat().st_size)
    program = shutil.which("nginx") or shutil.which("/usr/sbin/nginx")
    ours, theirs = [], []
    at = f"/v1/files/{stored.name}/content"
    with nginx(program, folder, api.storage) as port:
        for _ in range(rounds):
            ours.append(timed(lambda: receive(api.port, at, api.key)))
            if port is not None:
                theirs.append(timed(lambda: receive(port, f"/files/{stored.name}", "")))
    gib = stored.stat().st_size / 1024**3
    speed = gib / statistics.median(ours)
    if not theirs:
        print(f"down: {speed:.2f} GiB/s; nginx is not installed here, so there is nothing to compare it with")
        return {"download_gib_s": round(speed, 3), "nginx_gib_s": None, "download_of_nginx": None}
    other = gib / statistics.median(theirs)
    print(f"down: {speed:.2f} GiB/s, nginx {other:.2f} GiB/s")
    return {
        "download_gib_s": round(speed, 3),
        "nginx_gib_s": round(other, 3),
        "download_of_nginx": round(speed / other, 3),
    }


@contextmanager
def nginx(program: str | None, folder: Path, root: Path) -> Iterator[int | None]:
    if program is None:
        yield None
        return
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    user = "user root;" if os.geteuid() == 0 else ""
    (folder / "nginx.conf").write_text(
        f"{user} worker_processes 1; daemon off; error_log {folder}/nginx.log; pid {folder}/nginx.pid;\n"
        f"events {{}}\nhttp {{ sendfile on; tcp_nopush on; access_log off; client_body_temp_path {folder}/body;\n"
        f"server {{ listen 127.0.0.1:{port}; root {root}; }} }}\n"
    )
    argv = [program, "-c", str(folder / "nginx.conf"), "-p", str(folder)]
    with running(Part("nginx", argv, folder / "logs" / "nginx.log", ready=lambda: True)):
        wait_for(port, "/")
        yield port


def receive(port: int, path: str, key: str) -> None:
    """The whole body, into one buffer again and again."""
    connection = HTTPConnection("127.0.0.1", port)
    connection.request("GET", path, headers={"Authorization": f"Bearer {key}"} if key else {})
    answer = connection.getresponse()
    left, buffer = int(answer.headers["Content-Length"]), bytearray(MIB)
    if answer.status != 200:
        raise SystemExit(f"{path}: {answer.status} {answer.read()!r}")
    while left:
        count = answer.readinto(buffer)
        if count == 0:
            raise SystemExit(f"{path} ended {left} bytes early")
        left -= count
    connection.close()


def wait_for(port: int, path: str, seconds: float = 60.0) -> None:
    deadline = time.monotonic() + seconds
    while True:
        try:
            connection = HTTPConnection("127.0.0.1", port, timeout=5)
            connection.request("GET", path)
            connection.getresponse()
            return
        except OSError:
            if time.monotonic() > deadline:
                raise
            time.sleep(0.1)
        finally:
            connection.close()


def timed(work: Callable[[], None]) -> float:
    began = time.perf_counter()
    work()
    return time.perf_counter() - began


if __name__ == "__main__":
    main()
