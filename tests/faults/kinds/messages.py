"""Messages come again, and claims race."""

from __future__ import annotations

import random
import threading
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager

import redis

from control_plane import jobs, leases, projects
from control_plane.database import Database
from control_plane.ids import new_id
from control_plane.job_requests import read_request
from control_plane.leases import Claim
from control_plane.tables import File, Model
from migrations.run import upgrade
from tests.faults.deployment import Deployment
from tests.faults.fault import Fault, Played, struck
from tests.faults.kinds.postgres import pass_by
from tests.faults.scene import Scene

TIMES = 3
"""How often each message is delivered."""
RACES = 100
"""In one go; ten of them make a thousand."""
PUSH = "LPUSH celery "
OVER = "no more is repeated"


@contextmanager
def repeated(socket: str) -> Iterator[list[str]]:
    """Whoever pushes a message into the workers' queue meanwhile, it is there TIMES times; yields all of them."""
    seen: list[str] = []
    watched = threading.Event()
    client = redis.Redis(unix_socket_path=socket, decode_responses=True)

    def repeat() -> None:
        # Without a timeout: one that ran out between two messages would end the connection.
        with redis.Redis(unix_socket_path=socket, socket_timeout=None) as watching, watching.monitor() as monitor:
            watched.set()
            for told in monitor.listen():
                command = str(told["command"])
                if command == f"ECHO {OVER}":
                    return
                message = command.removeprefix(PUSH)
                if message != command and message not in seen:
                    seen.append(message)
                    client.lpush("celery", *[message] * (TIMES - 1))

    thread = threading.Thread(target=repeat, name="repeats messages")
    thread.start()
    assert watched.wait(60), "Redis tells no commands"
    try:
        yield seen
    finally:
        client.echo(OVER)
        thread.join()
        if seen:
            client.lpush("celery", *seen)  # and all of them once more, late
        client.close()


def deliver_again(scene: Scene) -> None:
    """Three more jobs come meanwhile; all their hints are heard three times, and once more in the end."""
    with repeated(str(scene.deployment.redis_socket)) as seen:
        scene.others += [scene.deployment.start_job() for _ in range(3)]
        pass_by(1.0)
        scene.mark()
    assert seen, "no message was seen, so none was repeated"


def race(deployment: Deployment, draw: random.Random, times: int) -> Played:
    """Two workers claim one job at the same time, RACES times: one has it, the other nothing."""
    del draw, times
    with claimable(deployment) as (database, project_id):
        begun = time.monotonic()
        for number in range(RACES):
            job_id = _job(database, project_id)
            claims = _both_claim(database)
            won = [claim for claim in claims if claim is not None]
            assert len(won) == 1, f"race {number}: {len(won)} workers have {job_id}"
            assert (won[0].job_id, won[0].fence) == (job_id, 1), f"race {number}: {won[0]}"
            with database.transaction() as session:
                jobs.cancel(session, project_id, job_id)
    return Played([(time.monotonic() - begun) / RACES])


def _both_claim(database: Database) -> list[Claim | None]:
    claims: list[Claim | None] = []
    together = threading.Barrier(2)

    def claim(name: str) -> None:
        with database.transaction() as session:
            session.connection()
            together.wait(60)
            claims.append(leases.claim(session, worker_id=name, free=2, total=2, lease_seconds=60))

    threads = [threading.Thread(target=claim, args=(name,)) for name in ("a", "b")]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return claims


@contextmanager
def claimable(deployment: Deployment) -> Iterator[tuple[Database, str]]:
    """A database of the same PostgreSQL in which no worker looks for jobs, and its project."""
    name = f"race_{time.monotonic_ns()}"
    with deployment.admin() as admin:
        admin.execute(f"CREATE DATABASE {name}")  # type: ignore[call-overload]
    url = deployment.settings.database_url.get_secret_value().replace("@/postgres?", f"@/{name}?")
    upgrade(url)
    database = Database(url)
    try:
        with database.transaction() as session:
            project = projects.ensure(session, "default")
            session.add(Model(id="base/tiny", kind="base", form="full", path="/", facts={}))
        yield database, project.id
    finally:
        database.dispose()
        with closing(deployment.admin()) as admin:
            admin.execute(f"DROP DATABASE {name} WITH (FORCE)")  # type: ignore[call-overload]


def _job(database: Database, project_id: str) -> str:
    with database.transaction() as session:
        file = File(
            id=new_id("file"),
            project_id=project_id,
            filename="pairs.jsonl",
            purpose="fine-tune",
            bytes=1,
            sha256="0",
            storage_key="files/none",
            status="processed",
        )
        session.add(file)
        session.flush()
        body = {"model": "base/tiny", "training_file": file.id}
        return jobs.create(session, project_id, read_request(body)).id


FAULTS = [
    Fault(
        "every message is delivered three times",
        "a message only says that there is work: nothing runs twice",
        struck(deliver_again, another_attempt=False),
    ),
    Fault(
        f"two workers claim one job at the same time ({RACES} times in each)",
        "one has it, the other nothing",
        race,
    ),
]
