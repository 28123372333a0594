from __future__ import annotations

import pytest

from dpo_core.schedule import learning_rate


def rates(schedule: str, total: int = 10, warmup_ratio: float = 0.2) -> list[float]:
    return [
        learning_rate(step, total, peak=1.0, schedule=schedule, warmup_ratio=warmup_ratio)  # type: ignore[arg-type]
        for step in range(total)
    ]


def test_linear() -> None:
    assert rates("linear") == pytest.approx([0.5, 1.0, 1.0, 7 / 8, 6 / 8, 5 / 8, 4 / 8, 3 / 8, 2 / 8, 1 / 8])


def test_cosine_starts_at_the_peak_and_is_halfway_in_the_middle() -> None:
    values = rates("cosine")
    assert (values[2], values[6]) == pytest.approx((1.0, 0.5))
    assert values[2:] == sorted(values[2:], reverse=True)


def test_constant() -> None:
    assert rates("constant") == pytest.approx([0.5] + [1.0] * 9)


@pytest.mark.parametrize("schedule", ["linear", "cosine", "constant"])
def test_without_warmup_the_first_step_has_the_peak(schedule: str) -> None:
    assert rates(schedule, warmup_ratio=0.0)[0] == 1.0


def test_all_warmup() -> None:
    assert rates("linear", total=2, warmup_ratio=0.99) == [0.5, 1.0]
