"""What `nvidia-smi` says about the host's GPUs: which there are, and why one must not be used.

It is asked for its XML, which has every fact in one answer and simply lacks those that a driver doesn't know. On a host
without the driver nothing is run.
"""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from xml.etree import ElementTree
from xml.etree.ElementTree import Element

ANSWER_SECONDS = 30.0
"""A broken GPU may keep nvidia-smi waiting for ever."""

UNSEEN_MIB = 1024
"""Memory of a GPU that no visible process uses: more than a driver keeps, so somebody is there, as a process of another
container is."""

UNHEALTHY = {
    "remapped_rows/remapped_row_failure": "its memory could not be repaired; it has to be replaced",
    "remapped_rows/remapped_row_pending": "a repair of its memory waits for a reset of the GPU",
    "retired_pages/pending_retirement": "bad pages of its memory wait for a reset of the GPU",
    "gpu_reset_status/reset_required": "it has to be reset",
    "ecc_errors/unrepairable_memory": "its memory can't be repaired; it has to be replaced",
}
"""Places in the answer where `Yes` takes a GPU out. Errors that the driver has repaired don't."""

RECOVERED = ("", "None", "N/A")
"""What `gpu_recovery_action` says where there is nothing to recover from."""


@dataclass(frozen=True)
class Gpu:
    index: str
    uuid: str
    broken: str | None = None
    """Why it failed its health check."""
    busy: str | None = None
    """The processes on it, as `pid 4711, 3.2 GiB`."""


class NoAnswer(Exception):
    """`nvidia-smi` is there, and gives none; the message says what it says."""


def look() -> list[Gpu]:
    """The host's GPUs as they are now; none where there is no driver. NoAnswer."""
    return parse(ask()) if shutil.which("nvidia-smi") is not None else []


def ask() -> str:
    """What `nvidia-smi` answers. NoAnswer where it fails or takes too long."""
    try:
        answer = subprocess.run(
            ["nvidia-smi", "-q", "-x"], capture_output=True, text=True, timeout=ANSWER_SECONDS, check=False
        )
    except subprocess.TimeoutExpired:
        raise NoAnswer(f"it gave no answer within {ANSWER_SECONDS:g} s") from None
    if answer.returncode != 0:
        raise NoAnswer((answer.stdout + answer.stderr).strip() or f"it ended with exit code {answer.returncode}")
    return answer.stdout


def parse(answer: str) -> list[Gpu]:
    """The GPUs in an answer, in its order, which is that of their indices. NoAnswer where it can't be read."""
    try:
        log = ElementTree.fromstring(answer)  # noqa: S314 - the driver's own program wrote it
    except ElementTree.ParseError as error:
        raise NoAnswer(f"its answer can't be read ({error}): {answer[:200]}") from None
    return [
        Gpu(str(index), _text(gpu, "uuid"), broken=_broken(gpu), busy=_busy(gpu))
        for index, gpu in enumerate(log.findall("gpu"))
    ]


def _broken(gpu: Element) -> str | None:
    for place, meaning in UNHEALTHY.items():
        if _text(gpu, place) == "Yes":
            return meaning
    action = _text(gpu, "gpu_recovery_action")
    if action not in RECOVERED:
        return f"the driver asks for: {action}"
    used = _text(gpu, "fb_memory_usage/used")
    if _mib(used) is None:  # the answer of a GPU that fell off the bus, or hangs
        return f"it doesn't answer: its memory in use is {used or 'not told'}"
    return None


def _busy(gpu: Element) -> str | None:
    """Who computes on it. A desktop's windows (type G) don't, but their memory is not somebody unseen's."""
    processes = gpu.findall("processes/process_info")
    computing = [process for process in processes if "C" in _text(process, "type")]
    if computing:
        return "; ".join(_described(computing))
    known = sum(_mib(_text(process, "used_memory")) or 0 for process in processes)
    unseen = (_mib(_text(gpu, "fb_memory_usage/used")) or 0) - known
    return f"pid unknown, {_gib(unseen)}: a process that can't be seen from here" if unseen > UNSEEN_MIB else None


def _described(processes: list[Element]) -> Iterator[str]:
    for process in processes:
        used = _mib(_text(process, "used_memory"))
        yield f"pid {_text(process, 'pid') or 'unknown'}, {_gib(used) if used is not None else '? GiB'}"


def _text(element: Element, place: str) -> str:
    return (element.findtext(place) or "").strip()


def _mib(text: str) -> int | None:
    """Of `1234 MiB`; None for `N/A` and whatever a broken GPU says."""
    number, _, unit = text.partition(" ")
    return int(number) if unit == "MiB" and number.isdecimal() else None


def _gib(mib: int) -> str:
    return f"{mib / 1024:.1f} GiB"
