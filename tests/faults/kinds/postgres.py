"""PostgreSQL dies, restarts, refuses, hangs, and is migrated under running jobs."""

from __future__ import annotations

import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from functools import partial

import psutil
import psycopg
from psycopg.rows import TupleRow

from migrations.run import upgrade
from tests.faults.deployment import Deployment
from tests.faults.fault import Fault, struck
from tests.faults.scene import Scene, Strike, kill
from tests.service import poll_until


def kill_9(scene: Scene) -> None:
    kill(scene.part("postgres"))


def restart_at_once(scene: Scene) -> None:
    """SIGQUIT to the postmaster is `pg_ctl stop -m immediate`; `dpo up` starts it again, and it recovers its log."""
    scene.part("postgres").send_signal(signal.SIGQUIT)


@contextmanager
def refusing(deployment: Deployment) -> Iterator[None]:
    """Every connection to the service's database is closed, and no new one is taken."""
    with deployment.admin() as admin:
        admin.execute("ALTER DATABASE postgres ALLOW_CONNECTIONS false")
        try:
            admin.execute("SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = 'postgres'")
            yield
        finally:
            admin.execute("ALTER DATABASE postgres ALLOW_CONNECTIONS true")


def refuse_for(leases: float, at_most: float) -> Strike:
    """A strike: refusal for between `leases` and `at_most` times the lease."""

    def refuse(scene: Scene) -> None:
        lease = scene.deployment.size.lease_seconds
        with refusing(scene.deployment):
            pass_by(scene.draw.uniform(leases * lease, at_most * lease))
        scene.mark()

    return refuse


def hang(scene: Scene) -> None:
    """Every process of it is stopped for longer than a lease: connections stay and answer nothing."""
    server = scene.part("postgres")
    processes = [server, *server.children(recursive=True)]
    for process in processes:
        with suppress(psutil.NoSuchProcess):
            process.suspend()
    try:
        pass_by(1.5 * scene.deployment.size.lease_seconds)
    finally:
        for process in processes:
            with suppress(psutil.NoSuchProcess):
                process.resume()
    scene.mark()


def migrate(scene: Scene) -> None:
    """Tables get a new column under everybody's feet, locked for a second; `dpo migrate` comes twice beside that."""
    deployment = scene.deployment
    url = deployment.settings.database_url.get_secret_value()
    tables = scene.draw.sample(["jobs", "attempts", "metrics", "events", "checkpoints", "workers"], 3)
    column = f"added_{time.monotonic_ns()}"
    with deployment.admin_of_service() as connection:
        for change in (f"ADD COLUMN {column} text DEFAULT 'new'", f"DROP COLUMN {column}"):
            poll_until(partial(_altered, connection, tables, change), "the tables are altered")
            upgrade(url)
    scene.mark()


def _altered(connection: psycopg.Connection[TupleRow], tables: list[str], change: str) -> bool:
    """In one transaction, as a migration does; somebody who holds the same locks the other way round may win."""
    try:
        with connection.transaction():
            for table in tables:
                connection.execute(f'ALTER TABLE "{table}" {change}')  # type: ignore[call-overload]
            pass_by(0.5)
    except psycopg.errors.DeadlockDetected:
        return False
    return True


def pass_by(seconds: float) -> None:
    end = time.monotonic() + seconds
    poll_until(lambda: time.monotonic() > end, "time goes by", every=0.05)


FAULTS = [
    Fault(
        "PostgreSQL: kill -9",
        "it recovers its log when it is started again; runs go on meanwhile",
        struck(kill_9, another_attempt=False),
    ),
    Fault(
        "PostgreSQL: immediate restart",
        "it recovers its log when it is started again; runs go on meanwhile",
        struck(restart_at_once, another_attempt=False),
        trainers=("stub", "real"),
    ),
    Fault(
        "PostgreSQL refuses connections for less than a lease",
        "runs go on; what they measured meanwhile is relayed later, once and in order",
        struck(refuse_for(0.1, 0.25), another_attempt=False),
        trainers=("stub", "real"),
    ),
    Fault(
        "PostgreSQL refuses connections for longer than a lease",
        "ranks stop before the lease ends; the job goes on from its last checkpoint when it is back",
        struck(refuse_for(1.3, 2.0), another_attempt=False),
        trainers=("stub", "real"),
    ),
    Fault(
        "PostgreSQL hangs for longer than a lease",
        "ranks stop before the lease ends; the job goes on from its last checkpoint when it answers again",
        struck(hang, another_attempt=False),
    ),
    Fault(
        "migrations while jobs run",
        "runs and requests wait for the locks and go on",
        struck(migrate, another_attempt=False),
    ),
]
