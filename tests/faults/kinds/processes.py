"""Processes die or freeze: ranks, torchrun, workers, the reconciler, the whole service."""

from __future__ import annotations

import os
import random
import signal
import time
from contextlib import closing

import psutil
import psycopg
from psycopg.rows import TupleRow

from control_plane.leases import RECONCILER_LOCK
from tests.faults.deployment import MAX_ATTEMPTS, Deployment
from tests.faults.fault import Fault, Played, struck
from tests.faults.scene import Missed, Scene, kill
from tests.makers import write_rows
from tests.service import poll_until
from tests.stub_trainer import POISON
from worker.folders import LOCK


def kill_a_rank(scene: Scene) -> None:
    kill(scene.draw.choice(scene.ranks()))


def kill_every_rank(scene: Scene) -> None:
    for rank in scene.ranks():
        kill(rank)


def kill_torchrun(scene: Scene) -> None:
    """With its process group; each rank has a session of its own, so that this doesn't reach it."""
    try:
        os.killpg(scene.launched().pid, signal.SIGKILL)
    except ProcessLookupError:
        raise Missed from None


def kill_the_worker(scene: Scene) -> None:
    kill(scene.worker())


def freeze_the_worker(scene: Scene) -> None:
    """SIGSTOP until another worker trains the job, then SIGCONT: what it held is another's, and it changes nothing."""
    worker, run = scene.worker(), scene.deployment.attempt(scene.job_id)
    if run is None:
        raise Missed
    worker.suspend()
    try:
        scene.await_recovery(another_attempt=True)
        before = _told_of(scene)
    finally:
        worker.resume()
    poll_until(lambda: not run.path.exists(), "the frozen worker woke and cleared away")
    assert _told_of(scene) == before, "a worker that woke changed what had been decided without it"
    assert before[-1][1] == "lost", f"the frozen worker's attempt ended otherwise: {before[-1]}"


def _told_of(scene: Scene) -> list[tuple[int, str | None]]:
    """How the attempts up to the struck one ended."""
    attempts = scene.deployment.attempts(scene.job_id)
    return [(attempt.fence, attempt.outcome) for attempt in attempts if attempt.fence <= scene.fence]


def kill_the_reconciler(scene: Scene) -> None:
    """While it holds the advisory lock, in the middle of a rescue: a lock on the lost attempt's row makes it wait
    there. Then that worker, too, is killed."""
    deployment, fence = scene.deployment, scene.fence
    with closing(psycopg.connect(_url(deployment), autocommit=False)) as holding:
        query = "SELECT 1 FROM attempts WHERE job_id = %s AND fence = %s FOR NO KEY UPDATE"
        holding.execute(query, (scene.job_id, fence))
        _seem_to_be_elsewhere(scene)
        kill(scene.worker())
        with deployment.admin() as admin:
            poll_until(lambda: bool(_reconciler(deployment, admin)), "a reconciler waits in the middle of its rescue")
            kill(_reconciler(deployment, admin)[0])
        holding.rollback()
    deployment.look_after_workers()


def _seem_to_be_elsewhere(scene: Scene) -> None:
    """As a run in another container: its worker, started again, leaves the rescue to the reconciler."""
    run = scene.deployment.attempt(scene.job_id)
    if run is None:
        raise Missed
    try:
        (run.path / LOCK).write_text("elsewhere\n")
    except FileNotFoundError:
        raise Missed from None


def _reconciler(deployment: Deployment, admin: psycopg.Connection[TupleRow]) -> list[psutil.Process]:
    """The worker that holds the reconciler's lock and waits for a row, if there is one."""
    row = admin.execute(
        "SELECT application_name FROM pg_stat_activity JOIN pg_locks USING (pid) "
        "WHERE locktype = 'advisory' AND granted AND classid = %s AND objid = %s AND wait_event_type = 'Lock'",
        (RECONCILER_LOCK >> 32, RECONCILER_LOCK & 0xFFFFFFFF),
    ).fetchone()
    return [worker for worker in deployment.workers() if row and worker.environ().get("PGAPPNAME") == row[0]]


def _url(deployment: Deployment) -> str:
    return deployment.settings.database_url.get_secret_value().replace("+psycopg", "")


def kill_everything(scene: Scene) -> None:
    """kill -9 of `dpo up`: the kernel ends all that hangs below it. Then it is started again."""
    scene.deployment.kill_and_start_again()


def poison(deployment: Deployment, draw: random.Random, times: int) -> Played:
    """A job that kills its worker whenever it reaches step 1, beside one that does no harm."""
    del times
    rows = [{"input": {"messages": [{"role": "user", "content": f"{POISON} {draw.random()}"}]}}]
    answers = {name: [{"role": "assistant", "content": name}] for name in ("preferred_output", "non_preferred_output")}
    file_id = deployment.service.upload(
        write_rows(deployment.folder / "poison.jsonl", [{**row, **answers} for row in rows])
    )
    poisoned, harmless = deployment.start_job(file_id), deployment.start_job()
    since = time.monotonic()

    def over() -> bool:
        deployment.look_after_workers()
        return deployment.is_over(poisoned) and deployment.is_over(harmless)

    poll_until(over, "the poison job has failed, and the other one is over", seconds=deployment.patience)
    lost = [attempt for attempt in deployment.attempts(poisoned) if attempt.outcome == "lost"]
    error = deployment.job(poisoned).error or {}
    assert len(lost) == MAX_ATTEMPTS, f"{len(lost)} attempts were lost where {MAX_ATTEMPTS} are allowed"
    assert error.get("code") == "worker_lost", f"it failed with {error}"
    return Played([time.monotonic() - since], jobs=[harmless], doomed=[poisoned])


FAULTS = [
    Fault(
        "kill -9 of a rank",
        "the job goes on from its last checkpoint, at once",
        struck(kill_a_rank, another_attempt=True),
        trainers=("stub", "real"),
    ),
    Fault(
        "kill -9 of every rank",
        "the job goes on from its last checkpoint, at once",
        struck(kill_every_rank, another_attempt=True),
    ),
    Fault(
        "kill -9 of torchrun and its group",
        "no rank outlives it; the job goes on from its last checkpoint",
        struck(kill_torchrun, another_attempt=True),
        trainers=("stub", "real"),
    ),
    Fault(
        "kill -9 of a worker",
        "its ranks die with it; the same one started again goes on at once, another one when the lease has run out",
        struck(kill_the_worker, another_attempt=True),
        trainers=("stub", "real"),
    ),
    Fault(
        "SIGSTOP of a worker beyond its lease",
        "its ranks stop by themselves, another worker goes on, and when it wakes it changes nothing",
        struck(freeze_the_worker, another_attempt=True),
        trainers=("stub", "real"),
    ),
    Fault(
        "kill -9 of the reconciler during a rescue",
        "its transaction and its lock go with it; another worker carries the rescue out",
        struck(kill_the_reconciler, another_attempt=True),
    ),
    Fault(
        "kill -9 of `dpo up`",
        "nothing of it runs on; started again on its folder, it finds every job",
        struck(kill_everything, another_attempt=False),
    ),
    Fault(
        "a job that kills its worker every time",
        f"it fails after max_attempts (here {MAX_ATTEMPTS}) and says so; other jobs go on",
        poison,
    ),
]
