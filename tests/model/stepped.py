"""Actions of the service that stop at every statement, so that a test decides who goes on next.

Each action runs in a thread with a connection of its own (a `Line`). Before every SQL statement, before and after every
commit, and before every hint it stops and waits for the scheduler. So any two actions can be interleaved between any
two statements, though only one of them ever moves; and a process can die, or lose its connection, at any of those
places. An action that waits for another's lock is seen in pg_blocking_pids, whatever the machine's speed.
"""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import Future
from queue import SimpleQueue
from threading import Lock, Thread, local
from typing import Literal, TypeVar, cast

import psycopg
from sqlalchemy import event

from control_plane.database import Database

PATIENCE_SECONDS = 0.01
"""After so long the scheduler asks PostgreSQL whether a statement waits for a lock; a slow one is waited for."""

T = TypeVar("T")
Place = Literal["begin", "statement", "commit", "committed", "hint", "end"]
Fate = Literal["go on", "die", "lose connection"]


class Died(Exception):
    """The process was killed here: nothing of it runs any more, and PostgreSQL rolls its transaction back.

    No BaseException: for one of those SQLAlchemy closes the connection, which PostgreSQL notices in its own time.
    """


class _OfThread(local):
    line: Line


_of_this_thread = _OfThread()


def stopping_database(url: str, lines: int) -> Database:
    """A database for so many lines: what is done with it in a line's thread stops there."""
    database = Database(url, pool_size=lines)
    engine = database.engine
    engine.connect().close()  # the first one asks PostgreSQL what it is
    commit, rollback = engine.dialect.do_commit, engine.dialect.do_rollback

    @event.listens_for(engine, "checkout")
    def _learn_pid(connection: psycopg.Connection, *_: object) -> None:
        _of_this_thread.line.pid = connection.info.backend_pid

    @event.listens_for(engine, "checkin")
    def _forget_pid(*_: object) -> None:
        """The next one who has the connection may wait for a lock: who had it before does not."""
        _of_this_thread.line.pid = 0

    @event.listens_for(engine, "before_cursor_execute")
    def _before_statement(*_: object) -> None:
        _of_this_thread.line.in_transaction = True
        _of_this_thread.line.stop("statement")

    def do_commit(connection: psycopg.Connection) -> None:
        _of_this_thread.line.stop("commit")
        commit(connection)
        _of_this_thread.line.in_transaction = False
        _of_this_thread.line.stop("committed")

    def do_rollback(connection: psycopg.Connection) -> None:
        rollback(connection)
        _of_this_thread.line.in_transaction = False

    engine.dialect.do_commit, engine.dialect.do_rollback = do_commit, do_rollback
    return database


class Line:
    """One action at a time, in a thread with a connection of its own."""

    def __init__(self, database: Database, watch: psycopg.Connection, lines: list[Line]) -> None:
        """`database`: made by `stopping_database`. `watch`: a connection, to ask which of `lines` waits for which."""
        self.database = database
        self.pid = 0
        """Of its connection's process in PostgreSQL; 0 while it has none."""
        self.place: Place = "end"
        self.in_transaction = False
        self.waits = False
        """Whether it waits for a lock, as of the last look."""
        self.left = 0
        """How many more statements it may run before it stops."""
        self._watch, self._lines = watch, lines
        self._fate: Fate = "go on"
        self._go, self._stopped = Lock(), Lock()
        self._go.acquire(), self._stopped.acquire()
        self._work: SimpleQueue[tuple[Callable[[], object], Future[object]] | None] = SimpleQueue()
        self._thread = Thread(target=self._run, daemon=True)
        self._thread.start()

    # -- the scheduler's side ------------------------------------------------------------------------

    @property
    def idle(self) -> bool:
        return self.place == "end"

    def begin(self, work: Callable[[], object]) -> Future[object]:
        """Gives it an action, which waits to be let go on."""
        assert self.idle, self.place
        self._fate, self.place, self.left = "go on", "begin", 0
        answer: Future[object] = Future()
        self._work.put((work, answer))
        self._stopped.acquire()
        return answer

    def go(self, statements: int, fate: Fate = "go on") -> None:
        """On by so many statements, or up to the next commit, hint or end, or to a lock that another line holds."""
        if self.waits:
            assert fate != "go on"
            self._fate = "die" if fate == "die" else "go on"
            self._watch.execute("SELECT pg_cancel_backend(%s)", [self.pid])
            self._stopped.acquire()
            self.waits = False
        else:
            self._fate, self.left = fate, statements
            self._go.release()
            self.settle()

    def run(self, work: Callable[[], T]) -> T:
        """An action from begin to end, undisturbed."""
        answer = self.begin(work)
        while not self.idle:
            self.go(1_000_000)
        return cast(T, answer.result())

    def settle(self) -> None:
        """Waits until it stands at a place, or waits for a line that itself stands at one."""
        while not self._stopped.acquire(timeout=PATIENCE_SECONDS):
            if self.pid and self._is_blocked():
                self.waits, self.left = True, 0
                return
        self.waits = False

    def kill(self) -> None:
        """Whatever it does, it dies."""
        while not self.idle:
            self.go(0, "die")

    def close(self) -> None:
        self.kill()
        self._work.put(None)
        self._thread.join()

    def _is_blocked(self) -> bool:
        """Whether it waits for lines that stand still; not for PostgreSQL's own work or in a deadlock: those end."""
        ahead: set[int] = set()
        further = self._blockers(self.pid)
        while further:
            ahead |= further
            further = set().union(*map(self._blockers, further)) - ahead
        return bool(ahead) and self.pid not in ahead and ahead <= {line.pid for line in self._lines}

    def _blockers(self, pid: int) -> set[int]:
        row = self._watch.execute("SELECT pg_blocking_pids(%s)", [pid]).fetchone()
        return set(row[0]) if row else set()

    # -- the action's side, in the thread ------------------------------------------------------------

    def stop(self, place: Place) -> None:
        """Waits for the scheduler, if this is where the action is to stop."""
        if place != "statement" or self.left <= 0:
            self.place = place
            self._stopped.release()
            self._go.acquire()
        if place == "statement":
            self.left -= 1
        if self._fate == "die":
            raise Died
        if self._fate == "lose connection" and place not in ("begin", "hint"):
            self._fate = "go on"
            raise psycopg.OperationalError("the connection was cut")

    def _run(self) -> None:
        _of_this_thread.line = self
        while (order := self._work.get()) is not None:
            work, answer = order
            try:
                self.stop("begin")
                answer.set_result(work())
            except BaseException as error:  # noqa: BLE001 - the scheduler looks at it
                answer.set_exception(error)
            self.place = "end"
            self._stopped.release()
