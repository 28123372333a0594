from __future__ import annotations

from pathlib import Path

import torch
from torch import nn

from dpo_core import generators

CPU = torch.device("cpu")


def test_restored_numbers_go_on_where_they_were(tmp_path: Path) -> None:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(1)
        generators.save(tmp_path, 3, CPU)
        expected = torch.rand(5)
        torch.manual_seed(2)
        generators.restore(tmp_path, 3, CPU)
        assert torch.equal(torch.rand(5), expected)


def test_every_seed_step_and_rank_draws_numbers_of_its_own() -> None:
    def drawn(seed: int, step: int, rank: int) -> tuple[float, ...]:
        generators.reseed(seed, step, rank)
        return tuple(torch.rand(3).tolist())

    with torch.random.fork_rng(devices=[]):
        places = [(1, 3, 0), (1, 3, 1), (1, 4, 0), (2, 3, 0), (13, 0, 0)]
        assert len({drawn(*place) for place in places}) == len(places)
        assert drawn(1, 3, 1) == drawn(1, 3, 1)


def test_only_dropout_that_drops_uses_them() -> None:
    assert generators.are_used(nn.Sequential(nn.Linear(2, 2), nn.Dropout(0.1)))
    assert not generators.are_used(nn.Sequential(nn.Linear(2, 2), nn.Dropout(0.0)))
