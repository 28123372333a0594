"""Answers of `nvidia-smi -q -x`: its places and words, of as much as is read."""

from __future__ import annotations

from collections.abc import Mapping

Process = tuple[str, str, str]
"""pid, type, memory."""

HEALTHY = {
    "gpu_reset_status/reset_required": "No",
    "gpu_recovery_action": "None",
    "fb_memory_usage/used": "4 MiB",
    "remapped_rows/remapped_row_pending": "No",
    "remapped_rows/remapped_row_failure": "No",
    "retired_pages/pending_retirement": "N/A",
    "ecc_errors/unrepairable_memory": "No",
}


def gpu(uuid: str, changes: Mapping[str, str | None] | None = None, processes: tuple[Process, ...] = ()) -> str:
    """One GPU; `changes` by place, None for one that this driver doesn't know."""
    facts = {place: text for place, text in (HEALTHY | dict(changes or {})).items() if text is not None}
    found = "".join(
        "<process_info><gpu_instance_id>N/A</gpu_instance_id>"
        f"<pid>{pid}</pid><type>{kind}</type><process_name>python</process_name>"
        f"<used_memory>{memory}</used_memory></process_info>"
        for pid, kind, memory in processes
    )
    inner = "".join(_nested(place.split("/"), text) for place, text in facts.items())
    return f'<gpu id="00000000:01:00.0"><uuid>{uuid}</uuid>{inner}<processes>{found}</processes></gpu>'


def answer(*gpus: str) -> str:
    return (
        '<?xml version="1.0" ?>\n<!DOCTYPE nvidia_smi_log SYSTEM "nvsmi_device_v12.dtd">\n'
        f"<nvidia_smi_log><driver_version>580.65.06</driver_version>{''.join(gpus)}</nvidia_smi_log>"
    )


def _nested(places: list[str], text: str) -> str:
    for place in reversed(places):
        text = f"<{place}>{text}</{place}>"
    return text
