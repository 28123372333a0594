"""`dpo queue`."""

from __future__ import annotations

from datetime import timedelta

from sqlalchemy import update

from control_plane import workers
from control_plane.database import Database, dpo_now
from control_plane.tables import Worker
from control_plane.workers import Condition, Facts
from tests.cli.conftest import Dpo
from tests.cli.work import claim, validated


def test_the_queue_says_why_jobs_wait_and_which_gpus_are_out(job_id: str, dpo: Dpo, database: Database) -> None:
    validated(database)
    *lines, last = dpo("queue").stdout.splitlines()
    assert last == "there is no worker"
    assert lines[0].split() == ["job", "state", "priority", "gpus", "age", "until", "why"]
    assert lines[1].split()[:4] == [job_id, "queued", "normal", "1"]
    assert lines[1].endswith("There is no worker that takes work.")
    with database.transaction() as session:
        workers.register(session, Facts("worker-1", "host", 7, "cuda", 2))
        out = {"GPU-b": "busy (pid 4711, 3.2 GiB)"}
        workers.beat(session, "worker-1", Condition(usable=1, gpus=("GPU-a", "GPU-b"), out=out))
    done = dpo("queue").stdout
    assert "There is room: a worker takes it, or one before it, within seconds." in done
    assert "worker-1: GPU-b is not used: busy (pid 4711, 3.2 GiB)" in done
    claim(database)
    assert dpo("queue").stdout.startswith("no job waits\n\nworker ")


def test_a_worker_that_may_be_gone_says_since_when(job_id: str, dpo: Dpo, database: Database) -> None:
    validated(database)
    with database.transaction() as session:
        workers.register(session, Facts("worker-1", "host", 7, "cuda", 2))
        session.execute(update(Worker).values(last_seen=dpo_now() - timedelta(seconds=30)))
    done = dpo("queue").stdout
    assert "There is no worker that takes work. One was not heard of for 3" in done
    assert done.rstrip().splitlines()[-1].split()[:6] == ["worker-1", "cuda", "2", "2", "0", "not"]


def test_a_long_queue_is_cut_and_says_so(job_id: str, base: str, pairs: object, dpo: Dpo) -> None:
    dpo("submit", pairs, "--model", base)
    done = dpo("queue", "--limit", 1).stdout
    assert done.splitlines()[1].startswith(job_id) and "… and more: --limit 2 shows them" in done


def test_priority_and_preemptible_go_with_the_request(base: str, pairs: object, dpo: Dpo) -> None:
    dpo("submit", pairs, "--model", base, "--priority", "low", "--preemptible")
    assert dpo("queue").stdout.splitlines()[1].split()[1:3] == ["validating", "low"]
    refused = dpo("submit", pairs, "--model", base, "--priority", "urgent")
    assert refused.returncode == 2 and "urgent" in refused.stderr
