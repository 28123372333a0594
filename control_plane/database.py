"""PostgreSQL: the engine, sessions, and the one clock that leases are compared with."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from datetime import datetime
from typing import Any

from psycopg.errors import IdleInTransactionSessionTimeout, ReadOnlySqlTransaction
from sqlalchemy import ColumnElement, DateTime, Engine, Integer, create_engine, event, literal_column
from sqlalchemy.exc import InterfaceError, InternalError, OperationalError
from sqlalchemy.exc import TimeoutError as PoolTimeoutError
from sqlalchemy.orm import Session, sessionmaker
from sqlalchemy.sql.functions import GenericFunction

CONNECT_SECONDS = 10
"""A host that is gone answers nothing; without a limit every caller would wait for minutes."""

IDLE_SECONDS, WORKER_IDLE_SECONDS = 30, 10
"""How long a transaction may stand still, and a worker's, whose jobs others wait for. A frozen process would keep its
row locks, and the reconciler's, for as long as it is frozen: nobody could take its jobs over."""

KEEPALIVE = {"keepalives_idle": 5, "keepalives_interval": 5, "keepalives_count": 2, "tcp_user_timeout": 15_000}
"""libpq's own: a host that goes away in the middle of a query is given up after 15 seconds (the last is in
milliseconds) instead of two hours. A query that merely takes long is not affected: its host still answers."""

AWAY = (IdleInTransactionSessionTimeout, ReadOnlySqlTransaction)
"""No OperationalErrors to psycopg, but to us: the second comes from a server that was demoted in a failover."""

DATABASE_AWAY = (OperationalError, InterfaceError, PoolTimeoutError)
"""PostgreSQL doesn't answer: worth another try."""

ONE: ColumnElement[int] = literal_column("1", Integer)
"""For LIMIT in what workers ask for ever. PostgreSQL keeps a plan that is no worse than those for each call's values,
and for a LIMIT that it doesn't know it reckons with a tenth of all rows."""


class dpo_now(GenericFunction[datetime]):  # noqa: N801 - the name of the SQL function
    """PostgreSQL's clock, behind a function of our own so that a test can replace it."""

    type = DateTime(timezone=True)
    inherit_cache = True


def make_engine(url: str, *, idle_seconds: int = IDLE_SECONDS, **pool: Any) -> Engine:
    """Connections that give up a host that is gone, and of which PostgreSQL ends a transaction that stands still.

    `idle_seconds`: for how long one may. `pool`: SQLAlchemy's options of its pool.
    """
    still = f"-c idle_in_transaction_session_timeout={idle_seconds}s"
    engine = create_engine(
        url, connect_args={"connect_timeout": CONNECT_SECONDS, **KEEPALIVE, "options": still}, **pool
    )
    # psycopg's executemany sends a Flush behind the Sync. To PostgreSQL that is another message: it counts no more
    # how long this one stands still, and a process that is frozen there would keep its locks for good.
    event.listen(engine, "do_executemany", _one_by_one)
    engine.dialect.supports_sane_multi_rowcount = False  # the cursor has the last row's
    return engine


class Database:
    """One engine and its sessions."""

    def __init__(self, url: str, *, pool_size: int = 10, idle_seconds: int = IDLE_SECONDS) -> None:
        """`idle_seconds`: how long a transaction may stand still."""
        self.engine = make_engine(
            url, idle_seconds=idle_seconds, pool_size=pool_size, max_overflow=20, pool_pre_ping=True
        )
        self._sessions = sessionmaker(self.engine, expire_on_commit=False)

    @contextmanager
    def transaction(self, **info: object) -> Iterator[Session]:
        """One transaction: committed at the end, rolled back by an exception. `info` goes along as `session.info`.

        Raises OperationalError where PostgreSQL is away, and where it ended the transaction because that stood still
        for `idle_seconds`, or takes no writes any more: for the caller the connection is lost either way.
        """
        try:
            with self._sessions() as session, session.begin():
                session.info.update(info)
                yield session
        except InternalError as error:
            if not isinstance(error.orig, AWAY):
                raise
            self.engine.dispose()  # the next try connects anew, perhaps to the server that takes over
            raise OperationalError(error.statement, error.params, error.orig, connection_invalidated=True) from error

    def dispose(self) -> None:
        self.engine.dispose()


def _one_by_one(cursor: Any, statement: str, rows: Sequence[Any], _: object) -> bool:
    """A statement for each row; True: nothing else is to be executed. For many rows write one statement instead.

    How many rows an UPDATE of several objects found isn't checked: whoever writes them has locked them.
    """
    for row in rows:
        cursor.execute(statement, row)
    return True
