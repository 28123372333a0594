"""PostgreSQL: the engine, sessions, and the one clock that leases are compared with."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from datetime import datetime

from sqlalchemy import DateTime, Engine, create_engine
from sqlalchemy.orm import Session, sessionmaker
from sqlalchemy.sql.functions import GenericFunction

CONNECT_SECONDS = 10
"""A host that is gone answers nothing; without a limit every caller would wait for minutes."""


class dpo_now(GenericFunction[datetime]):  # noqa: N801 - the name of the SQL function
    """PostgreSQL's clock, behind a function of our own so that a test can replace it."""

    type = DateTime(timezone=True)
    inherit_cache = True


class Database:
    """One engine and its sessions."""

    def __init__(self, url: str, *, pool_size: int = 10) -> None:
        self.engine: Engine = create_engine(
            url,
            pool_size=pool_size,
            max_overflow=20,
            pool_pre_ping=True,
            connect_args={"connect_timeout": CONNECT_SECONDS},
        )
        self._sessions = sessionmaker(self.engine, expire_on_commit=False)

    @contextmanager
    def transaction(self) -> Iterator[Session]:
        """One transaction: committed at the end, rolled back by an exception."""
        with self._sessions() as session, session.begin():
            yield session

    def dispose(self) -> None:
        self.engine.dispose()
