"""The service of the demo: `dpo up` on a data folder of its own, as a user would start it."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from openai import OpenAI

from cli.parts import Part

DPO = str(Path(sys.executable).parent / "dpo")


class DemoFailed(Exception):
    """The demo can't go on; the message says why."""


@dataclass(frozen=True)
class Service:
    """A running service and a client for it."""

    data: Path
    base_url: str
    client: OpenAI

    def add_base_model(self, folder: Path, name: str) -> str:
        """`dpo models add`: registers a folder where it lies; returns the model's id."""
        command = [DPO, "models", "add", str(folder), "--name", name, "--data", str(self.data)]
        added = subprocess.run(command, capture_output=True, text=True, check=False)
        if added.returncode != 0:
            raise DemoFailed(f"`dpo models add` refused the base model: {added.stderr.strip()}")
        return added.stdout.strip()


@contextmanager
def running_service(data: Path) -> Iterator[Service]:
    """`dpo up` until the block ends, however it ends. Raises PartFailed where it doesn't start."""
    announcement = data / "service.json"
    part = Part(
        name="dpo up",
        argv=[DPO, "up", "--data", str(data), "--port", "0", "--cpu-slots", "2"],
        log=data / "logs" / "service.log",
        ready=announcement.exists,
        # On the CPU everywhere: a model this small gains nothing from a GPU, and the numbers stay comparable.
        environment={"CUDA_VISIBLE_DEVICES": ""},
        ready_seconds=120,
        stop_seconds=180,
    )
    try:
        part.start()
        part.wait_ready()
        told = json.loads(announcement.read_bytes())
        with OpenAI(base_url=told["base_url"], api_key=Path(told["api_key_file"]).read_text().strip()) as client:
            yield Service(data, told["base_url"], client)
    finally:
        part.stop()
