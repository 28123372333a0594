"""What a start of PostgreSQL changes outside the data folder, it says."""

from __future__ import annotations

import os
import stat
from pathlib import Path
from tempfile import TemporaryDirectory

from cli.servers import postgres


def test_folders_that_are_opened_for_roots_postgresql_are_named_once() -> None:
    said: list[str] = []
    with TemporaryDirectory(prefix="dpo-test-closed-") as closed:
        data = Path(closed) / "data"
        data.mkdir()
        postgres(data, said.append)
        opened = [line for line in said if f" {closed}: " in line]
        assert len(opened) == (os.geteuid() == 0), said
        assert bool(stat.S_IMODE(Path(closed).stat().st_mode) & stat.S_IXOTH) == (os.geteuid() == 0)
        said.clear()
        postgres(data, said.append)
        assert said == []
