"""`python -m worker.alive`: exit code 0 while a worker of this host is heard in PostgreSQL.

The health check of a worker's container: every container is a host with a worker of its own. A process that
merely exists may hang; one that beats does its work.
"""

from __future__ import annotations

import socket
import sys

from sqlalchemy import exists, select

from control_plane.database import Database, dpo_now
from control_plane.settings import DatabaseSettings
from control_plane.tables import Worker
from control_plane.workers import ALIVE


def alive(database: Database, hostname: str) -> bool:
    """Whether a worker of `hostname` was seen lately and didn't say goodbye."""
    beating = (Worker.hostname == hostname) & Worker.left_at.is_(None) & (Worker.last_seen > dpo_now() - ALIVE)
    with database.transaction() as session:
        return bool(session.scalar(select(exists().where(beating))))


if __name__ == "__main__":
    sys.exit(not alive(Database(DatabaseSettings().database_url.get_secret_value()), socket.gethostname()))
