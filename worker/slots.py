"""What a worker can train on: the host's GPUs, each by its id, or CPU processes that stand for them."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Collection, Mapping
from concurrent.futures import Executor, Future

from dpo_core.spec import Device
from worker import gpus
from worker.gpus import Gpu, NoAnswer

logger = logging.getLogger(__name__)

LOOK_SECONDS = 10.0
"""How often the GPUs are looked at."""

NONE_VISIBLE = ("", "-1")
"""What people write into CUDA_VISIBLE_DEVICES where no GPU is meant to be used."""


class UnknownGpus(Exception):
    """It can't be told which GPUs are to be used; the message says why, and the way out."""


class Slots:
    """Slots are taken by an attempt at its claim and come back when its sweep found no process left.

    One that must not be used is neither free nor counted, and `out` says why: its GPU failed its health check, somebody
    else's process sits on it, or another worker has it.
    """

    def __init__(self, device: Device, ids: list[str]) -> None:
        self.device = device
        self.ids = tuple(ids)
        self._idle = list(ids)
        self._broken: dict[str, str] = {}
        self._busy: dict[str, str] = {}
        self._others: dict[str, str] = {}

    @property
    def out(self) -> dict[str, str]:
        """Ids that must not be used, and why."""
        return {**self._others, **self._busy, **self._broken}

    @property
    def free(self) -> int:
        return len(self._usable())

    @property
    def total(self) -> int:
        """Those that may be used, whether something of ours runs on them or not."""
        return len(set(self.ids) - self.out.keys())

    def take(self, count: int) -> list[str]:
        """Ids for `CUDA_VISIBLE_DEVICES` (on the CPU: mere numbers). `count` is at most `free`."""
        taken = self._usable()[:count]
        if len(taken) < count:
            raise ValueError(f"{count} slots were to be taken, and {len(taken)} are free")
        self._idle = [slot for slot in self._idle if slot not in taken]
        return taken

    def give_back(self, ids: list[str]) -> None:
        self._idle.extend(ids)

    @property
    def idle(self) -> frozenset[str]:
        """Those that nothing of ours runs on."""
        return frozenset(self._idle)

    def seen(self, found: list[Gpu], *, idle: Collection[str]) -> None:
        """What a look at the GPUs brought. `idle`: those that were so before the look, and still are: who is on them
        then is none of ours."""
        known = {gpu.uuid: gpu for gpu in found}
        self._broken = {slot: "it is no longer listed by nvidia-smi" for slot in self.ids if slot not in known}
        self._broken |= {uuid: gpu.broken for uuid, gpu in known.items() if gpu.broken and uuid in self.ids}
        before = {slot: why for slot, why in self._busy.items() if slot not in idle and slot in self._idle}
        now = {slot: f"busy ({known[slot].busy})" for slot in idle if slot in known and known[slot].busy}
        self._busy = before | now

    def unseen(self, why: str) -> None:
        """Nothing is known of the GPUs now: none is used anew."""
        self._broken = dict.fromkeys(self.ids, f"nvidia-smi fails: {why}")

    def leave_to_others(self, owners: Mapping[str, str]) -> None:
        """Ids that another worker has, and which."""
        self._others = {slot: f"worker {owner} has it" for slot, owner in owners.items() if slot in self.ids}

    def _usable(self) -> list[str]:
        out = self.out
        return [slot for slot in self._idle if slot not in out]


class GpuWatch:
    """Looks at the GPUs every few seconds, beside the supervisor's loop: a broken one may keep nvidia-smi waiting."""

    def __init__(self, slots: Slots, pool: Executor, look: Callable[[], list[Gpu]] = gpus.look) -> None:
        self._slots, self._pool, self._look = slots, pool, look
        self.pending: Future[list[Gpu]] | None = None
        """The look that is under way."""
        self._idle: frozenset[str] = frozenset()
        self._begun = -LOOK_SECONDS

    def poll(self) -> None:
        """Takes what a look has brought, and begins the next one when it is due. Costs nothing on a CPU."""
        if self._slots.device != "cuda":
            return
        before, since = self._slots.out, time.monotonic() - self._begun
        if self.pending is not None and self.pending.done():
            self._take(self.pending)
            self.pending = None
        elif self.pending is not None and since > 2 * gpus.ANSWER_SECONDS:
            self._slots.unseen("it can't even be killed")
        if self.pending is None and since >= LOOK_SECONDS:
            self._begun = time.monotonic()
            self._idle = self._slots.idle
            self.pending = self._pool.submit(self._look)
        _tell(before, self._slots.out)

    def _take(self, done: Future[list[Gpu]]) -> None:
        try:
            found = done.result()
        except (NoAnswer, OSError) as error:
            self._slots.unseen(str(error))
        else:
            self._slots.seen(found, idle=self._idle & self._slots.idle)


def find_slots(cpu_slots: int, environment: Mapping[str, str]) -> Slots:
    """The GPUs that `nvidia-smi` lists, narrowed by CUDA_VISIBLE_DEVICES; without any, `cpu_slots` CPU processes.

    UnknownGpus where a driver fails, or none of its GPUs is meant: a host with GPUs must not train a whole queue on its
    CPU unless it is told to.
    """
    visible = environment.get("CUDA_VISIBLE_DEVICES")
    try:
        found = [] if visible in NONE_VISIBLE else gpus.look()
    except (NoAnswer, OSError) as error:
        raise UnknownGpus(
            "nvidia-smi fails, so it isn't known which GPUs there are. Mend the driver, or set CUDA_VISIBLE_DEVICES to "
            f"nothing to train on the CPU. It says: {error}"
        ) from None
    if not found:
        return Slots("cpu", [str(number) for number in range(cpu_slots)])
    wanted = None if visible is None else {name.strip() for name in visible.split(",")}
    ours = [gpu for gpu in found if wanted is None or any(_names(name, gpu) for name in wanted)]
    if not ours:
        there = ", ".join(f"{gpu.index} ({gpu.uuid})" for gpu in found)
        raise UnknownGpus(
            f"CUDA_VISIBLE_DEVICES={visible} names none of this host's GPUs: {there}. Set it to some of them, or to "
            "nothing to train on the CPU."
        )
    slots = Slots("cuda", [gpu.uuid for gpu in ours])
    slots.seen(found, idle=slots.idle)
    _tell({}, slots.out)
    return slots


def _names(name: str, gpu: Gpu) -> bool:
    """CUDA takes an index, or as much of the UUID as tells the GPU from the others."""
    return name == gpu.index or (name.startswith("GPU-") and gpu.uuid.startswith(name))


def _tell(before: Mapping[str, str], now: Mapping[str, str]) -> None:
    for slot, why in now.items():
        if before.get(slot) != why:
            logger.warning("GPU %s is not used: %s", slot, why)
    for slot in before.keys() - now.keys():
        logger.info("GPU %s is used again", slot)
