from __future__ import annotations

from typing import Any

from dpo_core.prepare_report import MemoryReport, StageMemory
from dpo_core.spec import LoraSpec, TrainingSpec
from dpo_core.takes_less import takes_less

GIB = 2**30


def stage(zero_stage: int, peak: float, **changes: Any) -> StageMemory:
    fields: dict[str, Any] = {
        "offload": "none",
        "activation_checkpointing": False,
        "micro_batch_tokens": 8192,
        "host": 0,
    }
    fields |= {"zero_stage": zero_stage, "rank": {"peak": int(peak * GIB)}, "fits": True, "chosen": False} | changes
    return StageMemory(**fields)


def report(*stages: StageMemory) -> MemoryReport:
    return MemoryReport(device="cuda", ranks=2, rank=80 * GIB, stages=list(stages))


SPEC = TrainingSpec(activation_checkpointing=False, micro_batch_tokens=8192, max_length=2048)


def test_stages_that_take_less_are_named_with_what_they_take() -> None:
    memory = report(stage(0, 60), stage(2, 40, chosen=True), stage(3, 39), stage(3, 20, offload="parameters"))
    assert takes_less(memory, SPEC) == (
        "What would take less: `zero_stage` 3 with `offload` parameters, about 20 GiB a rank, where 40 GiB were "
        "planned; or `activation_checkpointing` true; or `micro_batch_tokens` 4096, half of now, "
        "down to the longest row; or `lora`; or a `max_length` below 2048."
    )


def test_what_is_done_already_is_not_advised() -> None:
    memory = report(stage(0, 10, chosen=True), stage(3, 5, offload="optimizer", fits=False))
    done = SPEC.model_copy(update={"activation_checkpointing": True, "lora": LoraSpec(), "micro_batch_tokens": 1})
    assert takes_less(memory, done) == "What would take less: a `max_length` below 2048."


def test_without_a_plan_there_is_nothing_to_say() -> None:
    assert takes_less(report(), SPEC) is None
