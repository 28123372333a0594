"""kill -9 of any part, a frozen worker, an emptied Redis, a pause: the job ends as if nothing had happened.

The moments are random: `DPO_FAULT_SEED` repeats those of an earlier run, whose seed its output shows.
"""

from __future__ import annotations

import os
import random
import shutil
import sys
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest
import redis

from cli.servers import socket_folder
from tests.faults.embedded import STEPS, Embedded
from tests.service import FINAL, poll_until

LAST_STEP = STEPS - 8
"""No death later than this: it would come after the end."""

Strike = Callable[[Embedded, str, random.Random], None]
Moment = Callable[[Embedded, str], bool]


@pytest.fixture(scope="module")
def seed() -> int:
    return int(os.environ.get("DPO_FAULT_SEED") or random.SystemRandom().randrange(10**6))


@pytest.fixture
def tell(seed: int, capsys: pytest.CaptureFixture[str]) -> Callable[[str], None]:
    """Says what is about to happen, whether the test passes or not."""

    def say(plan: str) -> None:
        with capsys.disabled():
            sys.stdout.write(f"\nDPO_FAULT_SEED={seed}: {plan}\n")

    return say


@pytest.fixture(scope="module")
def embedded(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Embedded]:
    """One service for the whole file; after the last test it is stopped, and nothing of it may be left."""
    # Not below pytest's own folder, for the reason that tests/conftest.py gives.
    with TemporaryDirectory(prefix="dpo-test-deaths-") as folder:
        embedded = Embedded(Path(folder) / "data", tmp_path_factory.mktemp("deaths"))
        try:
            yield embedded
            embedded.stop()
        finally:
            embedded.close()
            shutil.rmtree(socket_folder(Path(folder) / "data"), ignore_errors=True)


# -- who dies ----------------------------------------------------------------------------------------------


def kill_a_rank(embedded: Embedded, job_id: str, draw: random.Random) -> None:
    draw.choice(embedded.ranks(job_id)).kill()


def kill_all_ranks(embedded: Embedded, job_id: str, draw: random.Random) -> None:
    for rank in embedded.ranks(job_id):
        rank.kill()


def kill_torchrun(embedded: Embedded, job_id: str, draw: random.Random) -> None:
    launched = embedded.launched(job_id)
    assert launched is not None
    launched.kill()


def kill_the_worker(embedded: Embedded, job_id: str, draw: random.Random) -> None:
    worker = embedded.worker_of(job_id)
    assert worker is not None
    worker.kill()


def freeze_the_worker(embedded: Embedded, job_id: str, draw: random.Random) -> None:
    """SIGSTOP until another worker has the job, then SIGCONT: what it held is another's, and it changes nothing."""
    worker, run, fence = embedded.worker_of(job_id), embedded.attempt(job_id), embedded.fence(job_id)
    assert worker is not None
    assert run is not None
    worker.suspend()
    poll_until(lambda: embedded.attempts(job_id)[-1][0] > fence, "another worker took the job")
    poll_until(lambda: goes_on(embedded, job_id), "the other worker goes on")
    ended = [attempt for attempt in embedded.attempts(job_id) if attempt[0] <= fence]
    published = embedded.published(job_id, fence)
    worker.resume()
    poll_until(lambda: not run.path.exists(), "the frozen worker woke and cleared away")
    assert [attempt for attempt in embedded.attempts(job_id) if attempt[0] <= fence] == ended
    assert ended[-1][2] == "lost"
    assert set(embedded.published(job_id, fence)) <= set(published)


def goes_on(embedded: Embedded, job_id: str) -> bool:
    return bool(embedded.ranks(job_id)) or embedded.service.job(job_id).status in FINAL


def kill_part(name: str) -> Strike:
    def kill(embedded: Embedded, job_id: str, draw: random.Random) -> None:
        poll_until(lambda: embedded.running.part(name) is not None, f"{name} runs")
        victim = embedded.running.part(name)
        assert victim is not None
        victim.kill()

    return kill


def flush_redis(embedded: Embedded, job_id: str, draw: random.Random) -> None:
    def flushed() -> bool:
        try:
            with redis.Redis(unix_socket_path=str(embedded.redis_socket)) as client:
                return bool(client.flushall())
        except (redis.ConnectionError, FileNotFoundError):  # it is being started again
            return False

    poll_until(flushed, "Redis is emptied")


ENDS_AN_ATTEMPT: dict[str, Strike] = {
    "a rank": kill_a_rank,
    "all ranks": kill_all_ranks,
    "torchrun": kill_torchrun,
    "the worker": kill_the_worker,
    "a frozen worker": freeze_the_worker,
}
SPARES_THE_RANKS: dict[str, Strike] = {
    "api": kill_part("api"),
    "redis": kill_part("redis"),
    "postgres": kill_part("postgres"),
    "FLUSHALL": flush_redis,
}


# -- when --------------------------------------------------------------------------------------------------


def at_step(step: int) -> Moment:
    return lambda embedded, job_id: embedded.step(job_id) >= step


def validating(embedded: Embedded, job_id: str) -> bool:
    return bool(embedded.ranks(job_id))


def starting(embedded: Embedded, job_id: str) -> bool:
    """torch is being imported, or the model loaded."""
    return bool(embedded.ranks(job_id)) and embedded.attempts(job_id)[-1][1] == "train"


def random_steps(draw: random.Random, count: int) -> list[int]:
    """One random step in each of `count` equal parts of the run: some progress lies between two deaths."""
    width = LAST_STEP / count
    return [int(width * part + draw.uniform(0, width)) for part in range(count)]


def strike(embedded: Embedded, job_id: str, draw: random.Random, blow: Strike, moments: list[Moment]) -> None:
    """A blow to a new attempt at each of these moments."""
    struck = 0
    for moment in moments:

        def due(moment: Moment = moment, struck: int = struck) -> bool:
            return embedded.fence(job_id) > struck and moment(embedded, job_id) and bool(embedded.worker_of(job_id))

        poll_until(due, f"{job_id} is at the next moment, behind attempt {struck}", every=0.01)
        struck = embedded.fence(job_id)
        blow(embedded, job_id, draw)


def check(embedded: Embedded, job_id: str) -> None:
    """The same bytes and the same measurements, each once, as of a job under which nothing died."""
    result = embedded.result(job_id)
    assert result.losses == embedded.undisturbed.losses
    assert result.weights == embedded.undisturbed.weights
    assert result.best == embedded.undisturbed.best


def ended_early(embedded: Embedded, job_id: str) -> int:
    return sum(outcome in ("lost", "failed") for _, _, outcome in embedded.attempts(job_id))


# -- the tests ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["a rank", "the worker"])
def test_one_death(embedded: Embedded, seed: int, tell: Callable[[str], None], name: str) -> None:
    draw = random.Random(f"{seed} {name}")
    steps = random_steps(draw, 1)
    tell(f"{name} at step {steps[0]}")
    job_id = embedded.start_job()
    strike(embedded, job_id, draw, ENDS_AN_ATTEMPT[name], [at_step(steps[0])])
    check(embedded, job_id)
    assert ended_early(embedded, job_id) >= 1
    embedded.service.nothing_left()


def test_paused_and_resumed(embedded: Embedded, seed: int, tell: Callable[[str], None]) -> None:
    """Real ranks stop after a checkpoint and leave nothing behind; the resumed run ends in the same bytes."""
    step = random.Random(f"{seed} pause").randrange(STEPS // 6)  # the order has to come before the run is over
    tell(f"paused at step {step}")
    job_id = embedded.start_job()
    poll_until(lambda: embedded.step(job_id) >= step, f"{job_id} is at step {step}", every=0.01)
    embedded.service.openai.fine_tuning.jobs.pause(job_id)
    poll_until(lambda: state_of(embedded, job_id) != "pausing", f"{job_id} is paused")
    assert state_of(embedded, job_id) == "paused"
    embedded.service.nothing_left()
    assert embedded.service.openai.fine_tuning.jobs.resume(job_id).status == "queued"
    check(embedded, job_id)
    assert [outcome for _, _, outcome in embedded.attempts(job_id)] == ["succeeded", "stopped", "succeeded"]


def state_of(embedded: Embedded, job_id: str) -> str:
    return str((embedded.service.job(job_id).model_extra or {})["run"]["state"])


@pytest.mark.long
@pytest.mark.timeout(900)
@pytest.mark.parametrize("name", ENDS_AN_ATTEMPT)
def test_five_deaths_of_what_trains(embedded: Embedded, seed: int, tell: Callable[[str], None], name: str) -> None:
    """One before the first step, four on the way."""
    draw = random.Random(f"{seed} {name}")
    early, steps = draw.choice([validating, starting]), random_steps(draw, 4)
    tell(f"{name} while {early.__name__} and at steps {steps}")
    with embedded.second_worker() if name == "a frozen worker" else nullcontext():
        job_id = embedded.start_job()
        strike(embedded, job_id, draw, ENDS_AN_ATTEMPT[name], [early, *map(at_step, steps)])
        check(embedded, job_id)
    assert ended_early(embedded, job_id) >= 5
    embedded.service.nothing_left()


@pytest.mark.long
@pytest.mark.timeout(900)
def test_five_deaths_of_every_part_beside_the_ranks(embedded: Embedded, seed: int, tell: Callable[[str], None]) -> None:
    """Five jobs, under each of which every part dies once; Redis is emptied while another job waits."""
    draw = random.Random(f"{seed} beside")
    job_id = embedded.start_job()
    for _ in range(5):
        waiting = embedded.start_job()
        plan = sorted((draw.randrange(LAST_STEP), name) for name in SPARES_THE_RANKS)
        tell(", ".join(f"{name} at step {step}" for step, name in plan))
        poll_until(partial(trains_or_is_over, embedded, job_id), f"{job_id} trains")
        for step, name in plan:
            due = partial(at_step_or_gone, embedded, job_id, step)
            poll_until(due, f"{job_id} is at step {step}", every=0.01)
            SPARES_THE_RANKS[name](embedded, job_id, draw)
        check(embedded, job_id)
        # A job that lost its lease while PostgreSQL was away lets the waiting one pass, even to its end.
        job_id = waiting if embedded.service.job(waiting).status not in FINAL else embedded.start_job()
    check(embedded, job_id)
    embedded.service.nothing_left()
    for name in ("api", "redis", "postgres"):
        assert embedded.running.said().count(f"{name} ended (killed by SIGKILL); started again in ") >= 5


def trains_or_is_over(embedded: Embedded, job_id: str) -> bool:
    return embedded.step(job_id) >= 0 or embedded.service.job(job_id).status in FINAL


def at_step_or_gone(embedded: Embedded, job_id: str, step: int) -> bool:
    """A job that is over, or waits again for its rescue, has no run directory; parts may die then too."""
    return embedded.attempt(job_id) is None or embedded.step(job_id) >= step
