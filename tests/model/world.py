"""What a run of the model takes place in: PostgreSQL with an injected clock, storage, and lines to act on.

Made once, emptied before each run: a run takes a fraction of a second.
"""

from __future__ import annotations

from datetime import UTC, datetime

import psycopg
from psycopg.sql import SQL, Identifier

from control_plane.settings import Settings
from control_plane.tables import Base
from tests.control_plane.rows import add_all
from tests.model.processes import STEPS, Bytes, Client, Held, Worker
from tests.model.promises import FINAL
from tests.model.seen import Jobs, look
from tests.model.stepped import Line, stopping_database

BEGINNING = datetime(2001, 1, 1, tzinfo=UTC)
"""Far from every real clock: whoever asks one of those is found out."""
CLIENTS, WORKERS = 2, 3
ROUNDS = 40
"""More than all jobs take, with an attempt that was lost before each."""

CLOCK = """
CREATE TABLE model_clock (now timestamptz NOT NULL);
INSERT INTO model_clock VALUES ('2001-01-01 00:00:00+00');
CREATE OR REPLACE FUNCTION dpo_now() RETURNS timestamptz LANGUAGE sql VOLATILE AS 'SELECT now FROM model_clock';
"""


class World:
    def __init__(self, url: str, settings: Settings) -> None:
        self._watch = psycopg.connect(url.replace("+psycopg", ""), autocommit=True)
        self._watch.execute(CLOCK)
        self._settings = settings
        lines = CLIENTS + 2 * WORKERS
        self._database = stopping_database(url, lines)
        self._lines: list[Line] = []
        self._lines += [Line(self._database, self._watch, self._lines) for _ in range(lines)]
        self.storage = Bytes()
        tables = [table.name for table in reversed(Base.metadata.sorted_tables)]
        self._empty = SQL("; ").join(SQL("DELETE FROM {}").format(Identifier(name)) for name in tables)

    def close(self) -> None:
        for line in self._lines:
            line.close()
        self._database.dispose()
        self._watch.close()

    def reset(self) -> float:
        """Nothing but a project, its file and a base model; returns what time it is."""
        for line in self._lines:
            line.kill()
        self._watch.execute(self._empty)
        self._watch.execute("UPDATE model_clock SET now = %s", [BEGINNING])
        self.storage.stored.clear()
        line = self._lines[0]
        line.run(lambda: self._stock(line))
        return BEGINNING.timestamp()

    def processes(self) -> tuple[list[Client], list[Worker]]:
        lines = iter(self._lines)
        clients = [Client(f"client-{n}", next(lines), self._settings) for n in range(CLIENTS)]
        return clients, [Worker(f"worker-{n}", next(lines), next(lines), self.storage) for n in range(WORKERS)]

    def let_pass(self, seconds: float) -> float:
        row = self._watch.execute(
            "UPDATE model_clock SET now = now + %s * interval '1 s' RETURNING extract(epoch FROM now)", [seconds]
        ).fetchone()
        assert row is not None
        return float(row[0])

    def look(self) -> Jobs:
        return look(self._watch)

    def finish(self, worker: Worker) -> Jobs:
        """One healthy worker alone does all that waits or was lost, and time passes; returns what became of it."""
        worker.held.clear()
        for _ in range(ROUNDS):
            jobs = self.look()
            if all(job.state in (*FINAL, "paused") for job in jobs.values()):
                break
            now = self.let_pass(3600)
            if any(job.lease_until is not None for job in jobs.values()):
                worker.loop.run(worker.reconcile)
            held = worker.loop.run(lambda: worker.claim(now))  # noqa: B023 - runs at once
            if held is not None:
                self._do(worker, held)
        return jobs

    def _do(self, worker: Worker, held: Held) -> None:
        """Who reads the data finds it bad: what counts is that it was taken up."""
        held.ending = "bad_data"
        if held.claim.kind == "train":
            held.ending, held.step = "succeeded", STEPS
            worker.loop.run(lambda: worker.relay(held, STEPS))
            worker.pool.run(lambda: worker.publish(held, STEPS))
        worker.loop.run(lambda: worker.report(held))

    def _stock(self, line: Line) -> None:
        with line.database.transaction() as session:
            add_all(session)
