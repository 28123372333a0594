"""Large bodies pass through in constant memory: the server is a process of its own, and its peak is measured."""

from __future__ import annotations

import hashlib
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import httpx2
import pytest

from control_plane.settings import Settings

MIB = 1024**2
SIZE_MIB = 160
ALLOWED_MIB = 48
"""How much more than before the server may use while SIZE_MIB pass through."""


class Server:
    def __init__(self, url: str, process: subprocess.Popen[str]) -> None:
        self.url = url
        self._status = Path(f"/proc/{process.pid}/status")
        self._peak_reset = Path(f"/proc/{process.pid}/clear_refs")

    def peak_mib(self) -> float:
        """The highest resident memory since the last reset."""
        (kib,) = re.findall(r"VmHWM:\s+(\d+) kB", self._status.read_text())
        return int(kib) / 1024

    def reset_peak(self) -> None:
        self._peak_reset.write_text("5")


@pytest.fixture
def server(settings: Settings) -> Iterator[Server]:
    environment = {
        **os.environ,
        "DPO_DATABASE_URL": settings.database_url.get_secret_value(),
        "DPO_REDIS_URL": settings.redis_url.get_secret_value(),
        "DPO_STORAGE_URL": settings.storage_url,
    }
    argv = [sys.executable, "-m", "uvicorn", "api.main:factory", "--factory", "--port", "0"]
    with subprocess.Popen(argv, env=environment, stderr=subprocess.PIPE, text=True) as process:
        assert process.stderr is not None
        for line in process.stderr:
            if found := re.search(r"running on (http://\S+)", line):
                break
        else:
            pytest.fail("the server ended before it listened")
        try:
            yield Server(found[1], process)
        finally:
            process.terminate()
            process.communicate(timeout=120)


def form(digest: hashlib._Hash) -> Iterator[bytes]:
    """A multipart form with SIZE_MIB of file, made while it is sent."""
    yield b'--x\r\nContent-Disposition: form-data; name="file"; filename="big.jsonl"\r\n\r\n'
    for number in range(SIZE_MIB):
        block = (b"%015d\n" % number) * (MIB // 16)
        digest.update(block)
        yield block
    yield b'\r\n--x\r\nContent-Disposition: form-data; name="purpose"\r\n\r\nfine-tune\r\n--x--\r\n'


def test_a_large_file_goes_up_and_down(server: Server, secret: str) -> None:
    headers = {"Authorization": f"Bearer {secret}"}
    with httpx2.Client(base_url=server.url, headers=headers, timeout=120) as http:
        assert http.get("/v1/files").status_code == 200  # everything that is loaded late is loaded now
        before = server.peak_mib()
        server.reset_peak()
        sent = hashlib.sha256()
        file = http.post("/v1/files", content=form(sent), headers={"Content-Type": "multipart/form-data; boundary=x"})
        assert file.json()["bytes"] == SIZE_MIB * MIB
        assert server.peak_mib() < before + ALLOWED_MIB
        received = hashlib.sha256()
        with http.stream("GET", f"/v1/files/{file.json()['id']}/content") as answer:
            for block in answer.iter_bytes():
                received.update(block)
        assert received.digest() == sent.digest()
        assert server.peak_mib() < before + ALLOWED_MIB
