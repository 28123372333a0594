"""Shards are written by one layout and read by another; the optimizers here are real, DeepSpeed is not needed."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path

import pytest
import torch
from torch import Tensor

from dpo_core import optimizer_state
from dpo_core.errors import RunError
from dpo_core.optimizer_state import Shard

SIZES = {"first": 7, "second": 5}
"""Two parameters, 12 elements in a row."""


def values() -> dict[str, Tensor]:
    """What a whole run holds, in a row; a zero keeps its sign."""
    return {
        "weight": torch.tensor([-0.0, *range(1, 12)]),
        "exp_avg": torch.arange(12.0) + 100,
        "exp_avg_sq": torch.arange(12.0) + 200,
    }


def optimizer_of(owner: Tensor) -> torch.optim.AdamW:
    return torch.optim.AdamW([owner])


def rank_of(cuts: list[int], rank: int) -> tuple[torch.optim.AdamW, list[Shard], Tensor]:
    """Rank `rank` of a layout that cuts the row at `cuts`: its optimizer, its shards, and what it updates."""
    begin, end = cuts[rank], cuts[rank + 1]
    owner = torch.zeros(end - begin)
    shards, behind = [], 0
    for name, size in SIZES.items():
        first, last = max(begin, behind), min(end, behind + size)
        if first < last:
            shards.append(Shard(name, first - behind, last - first, owner, first - begin))
        behind += size
    return optimizer_of(owner), shards, owner


def write(folder: Path, cuts: list[int]) -> None:
    for rank, (begin, end) in enumerate(pairwise(cuts)):
        optimizer, shards, owner = rank_of(cuts, rank)
        whole = values()
        owner.copy_(whole["weight"][begin:end])
        optimizer.state[owner] = {field: whole[field][begin:end].clone() for field in ("exp_avg", "exp_avg_sq")}
        optimizer_state.save(folder, rank, shards, optimizer)


@pytest.mark.parametrize("written", [[0, 12], [0, 6, 12], [0, 3, 9, 12]])
@pytest.mark.parametrize("read", [[0, 12], [0, 6, 12], [0, 5, 10, 12]])
def test_any_layout_reads_what_any_other_wrote(tmp_path: Path, written: list[int], read: list[int]) -> None:
    write(tmp_path, written)
    for rank, (begin, end) in enumerate(pairwise(read)):
        optimizer, shards, owner = rank_of(read, rank)
        optimizer_state.load(tmp_path, SIZES, shards, optimizer, step=9)
        state = optimizer.state[owner]
        found = {"weight": owner, "exp_avg": state["exp_avg"], "exp_avg_sq": state["exp_avg_sq"]}
        for field, expected in values().items():
            assert torch.equal(found[field], expected[begin:end])
            assert torch.equal(found[field].signbit(), expected[begin:end].signbit())
        assert state["step"] == 9


def test_a_restored_optimizer_goes_on_as_one_that_never_stopped(tmp_path: Path) -> None:
    gradients = torch.tensor([[0.5, -1.0, 2.0], [0.1, 0.2, -0.3]])
    through, stopped, again = torch.ones(3), torch.ones(3), torch.zeros(3)
    steps = [(through, optimizer_of(through)), (stopped, optimizer_of(stopped))]
    for owner, optimizer in steps:
        owner.grad = gradients[0].clone()
        optimizer.step()
    optimizer_state.save(tmp_path, 0, [Shard("weight", 0, 3, stopped, 0)], steps[1][1])
    restored = optimizer_of(again)
    optimizer_state.load(tmp_path, {"weight": 3}, [Shard("weight", 0, 3, again, 0)], restored, step=1)
    for owner, optimizer in (steps[0], (again, restored)):
        owner.grad = gradients[1].clone()
        optimizer.step()
    assert torch.equal(again, through)


def test_a_file_is_closed_when_it_is_full(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(optimizer_state, "FILE_BYTES", 12)
    write(tmp_path, [0, 6, 12])
    names = sorted(path.name for path in tmp_path.iterdir())
    assert names == ["0-0.safetensors", "1-0.safetensors", "1-1.safetensors"]
    optimizer, shards, owner = rank_of([0, 12], 0)
    optimizer_state.load(tmp_path, SIZES, shards, optimizer, step=1)
    assert torch.equal(owner, values()["weight"])


@pytest.mark.parametrize(
    ("sizes", "message"),
    [
        ({"first": 8, "second": 5}, "has 7 numbers for exp_avg of first, this run trains 8"),
        ({"first": 7}, "has 5 numbers for exp_avg of second, this run trains 0"),
        ({"first": 7, "second": 5, "third": 2}, "has 0 numbers for exp_avg of third, this run trains 2"),
    ],
)
def test_the_state_of_other_parameters_is_refused(tmp_path: Path, sizes: dict[str, int], message: str) -> None:
    write(tmp_path, [0, 6, 12])
    optimizer, shards, _ = rank_of([0, 12], 0)
    with pytest.raises(RunError, match=message) as refused:
        optimizer_state.load(tmp_path, sizes, shards, optimizer, step=1)
    assert (refused.value.failure.kind, refused.value.failure.code) == ("user", "resume_other_model")
