"""The database that a command talks to: the one of the environment, or an embedded service's."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from pydantic import ValidationError
from sqlalchemy.exc import OperationalError, ProgrammingError
from sqlalchemy.orm import Session

from cli.data_folder import DataFolder, default_data
from cli.errors import CommandFailed
from cli.servers import postgres_url
from control_plane.database import Database
from control_plane.settings import DatabaseSettings


@contextmanager
def transaction(data: Path | None) -> Iterator[Session]:
    """One transaction on the database of `data`, of DPO_DATABASE_URL, or of the default data folder.

    Raises CommandFailed where nothing answers, or where the schema is not there yet.
    """
    url, where, way_out = _target(data)
    database = Database(url)
    try:
        with database.transaction() as session:
            yield session
    except OperationalError as error:
        raise CommandFailed(f"no database answers at {where}; {way_out} ({_reason(error)})") from None
    except ProgrammingError as error:
        raise CommandFailed(f"the database at {where} lacks the schema; run `dpo migrate` ({_reason(error)})") from None
    finally:
        database.dispose()


def _target(data: Path | None) -> tuple[str, str, str]:
    """URL, what to call it, and what to do when it doesn't answer."""
    if data is None:
        try:
            url = DatabaseSettings().database_url.get_secret_value()
        except ValidationError:  # not set
            data = default_data()
        else:
            return url, "DPO_DATABASE_URL", "is PostgreSQL up, and the URL right?"
    folder = DataFolder(data)
    if not folder.path.exists():
        raise CommandFailed(
            f"there is no data folder {folder.path}; start the service with `dpo up`, name its folder with --data, "
            "or set DPO_DATABASE_URL"
        )
    return postgres_url(folder.path), str(folder.path), f"start the service with `dpo up --data {folder.path}`"


def _reason(error: OperationalError | ProgrammingError) -> str:
    return str(error.orig).strip().splitlines()[0]
