"""What a worker can train on: the host's GPUs, or CPU processes that stand for them."""

from __future__ import annotations

import logging
import shutil
import subprocess
from collections.abc import Mapping

from dpo_core.spec import Device

logger = logging.getLogger(__name__)


class Slots:
    """Slots are taken by an attempt at its claim and come back when its sweep found no process left."""

    def __init__(self, device: Device, ids: list[str]) -> None:
        self.device = device
        self.total = len(ids)
        self._free = list(ids)

    @property
    def free(self) -> int:
        return len(self._free)

    def take(self, count: int) -> list[str]:
        """Ids for `CUDA_VISIBLE_DEVICES` (on the CPU: mere numbers). `count` is at most `free`."""
        taken, self._free = self._free[:count], self._free[count:]
        return taken

    def give_back(self, ids: list[str]) -> None:
        self._free.extend(ids)


def find_slots(cpu_slots: int, environment: Mapping[str, str]) -> Slots:
    """The GPUs that `nvidia-smi` lists, narrowed by CUDA_VISIBLE_DEVICES; without any, `cpu_slots` CPU processes."""
    visible = environment.get("CUDA_VISIBLE_DEVICES")
    wanted = None if visible is None else {name.strip() for name in visible.split(",")}
    gpus = [uuid for index, uuid in _gpus() if wanted is None or any(_names(name, index, uuid) for name in wanted)]
    if gpus:
        return Slots("cuda", gpus)
    return Slots("cpu", [str(number) for number in range(cpu_slots)])


def _names(name: str, index: str, uuid: str) -> bool:
    """CUDA takes an index, or as much of the UUID as tells the GPU from the others."""
    return name == index or (name.startswith("GPU-") and uuid.startswith(name))


def _gpus() -> list[tuple[str, str]]:
    """Index and UUID of every GPU; none where there is no driver."""
    if shutil.which("nvidia-smi") is None:
        return []
    listing = subprocess.run(
        ["nvidia-smi", "--query-gpu=index,uuid", "--format=csv,noheader"],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    if listing.returncode != 0:
        said = (listing.stdout + listing.stderr).strip()
        logger.warning("nvidia-smi fails, so there is no GPU to train on. It says: %s", said)
        return []
    rows = (line.split(",") for line in listing.stdout.splitlines() if line.strip())
    return [(index.strip(), uuid.strip()) for index, uuid in rows]
