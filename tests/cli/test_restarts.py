"""When a part that ended is started again, with the seconds counted by hand."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from cli.parts import Part
from cli.restarts import LONGEST_SECONDS, STEADY_SECONDS, Watched


@pytest.fixture
def said() -> list[str]:
    return []


@pytest.fixture
def watched(tmp_path: Path, said: list[str]) -> Iterator[Watched]:
    part = Part(name="false", argv=["false"], log=tmp_path / "false.log", ready=lambda: True)
    part.start()
    yield Watched(part, said.append, started=0.0)
    part.stop()


def end(watched: Watched) -> None:
    assert watched.part.process is not None
    watched.part.process.wait()


def test_the_wait_doubles_and_has_an_end(watched: Watched, said: list[str]) -> None:
    now, waits = 0.0, []
    for _ in range(8):
        end(watched)
        watched.look(now)
        assert watched.due is not None
        waits.append(watched.due - now)
        now = watched.due
        watched.look(now)
    assert waits == [0.5, 1, 2, 4, 8, 16, LONGEST_SECONDS, LONGEST_SECONDS]
    assert said[0].startswith("false ended (exit code 1); started again in 0.5 s; see ")


def test_nothing_happens_before_it_is_due(watched: Watched) -> None:
    end(watched)
    watched.look(0.0)
    first = watched.part.process
    watched.look(0.4)
    assert watched.part.process is first
    watched.look(0.5)
    assert watched.part.process is not first


def test_a_part_that_ran_long_is_forgiven(watched: Watched) -> None:
    watched.failures = 6
    end(watched)
    watched.look(STEADY_SECONDS + 1)
    assert watched.due == STEADY_SECONDS + 1 + 0.5
