"""What a run that was out of memory could do with less: what its memory plan found beside what it chose. No torch."""

from __future__ import annotations

from collections.abc import Iterator

from dpo_core.footprint import amount
from dpo_core.prepare_report import MemoryReport, StageMemory
from dpo_core.spec import TrainingSpec

IN_GENERAL = "Lower micro_batch_tokens or max_length, set activation_checkpointing, raise zero_stage, or use lora."
"""For who knows no plan."""
NOTICEABLY = 0.9
"""What takes more than this share of the present peak is no way out."""


def takes_less(memory: MemoryReport, training: TrainingSpec) -> str | None:
    """A sentence with changes to the spec, each of which alone takes less; None where the plan knows of none.

    `training` is the resolved spec that ran.
    """
    ways = list(_ways(memory, training))
    return f"What would take less: {'; or '.join(ways)}." if ways else None


def _ways(memory: MemoryReport, training: TrainingSpec) -> Iterator[str]:
    chosen = next((stage for stage in memory.stages if stage.chosen), None)
    if chosen is None:
        return
    for stage in memory.stages:
        if not stage.chosen and stage.rank["peak"] <= NOTICEABLY * chosen.rank["peak"] and _host_has(stage, memory):
            now, then = amount(chosen.rank["peak"]), amount(stage.rank["peak"])
            yield f"{_named(stage)}, about {then} a rank, where {now} were planned"
    if training.activation_checkpointing is False:
        yield "`activation_checkpointing` true"
    if isinstance(training.micro_batch_tokens, int) and training.micro_batch_tokens > 1:
        yield f"`micro_batch_tokens` {training.micro_batch_tokens // 2}, half of now, down to the longest row"
    if training.lora is None:
        yield "`lora`"
    if isinstance(training.max_length, int):
        yield f"a `max_length` below {training.max_length}"


def _named(stage: StageMemory) -> str:
    beside = "" if stage.offload == "none" else f" with `offload` {stage.offload}"
    return f"`zero_stage` {stage.zero_stage}{beside}"


def _host_has(stage: StageMemory, memory: MemoryReport) -> bool:
    """What is offloaded has to fit into the host, which the plan has looked at."""
    return stage.offload == "none" or stage.fits is not False or memory.rank is None
