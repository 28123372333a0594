"""The same running API that tests/api uses, and `dpo` commands that talk to it."""

from __future__ import annotations

import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import pytest

from cli.main import main
from control_plane import models
from control_plane.database import Database
from tests.api.conftest import Api, api, client, database_url, make_key, secret, settings, shared_api, shared_settings
from tests.control_plane.model_folders import make_folder
from tests.makers import write_preference_file

__all__ = ["api", "client", "database_url", "make_key", "secret", "settings", "shared_api", "shared_settings"]


@pytest.fixture
def base(database: Database, tmp_path: Path) -> str:
    with database.transaction() as session:
        return models.register_base(session, make_folder(tmp_path / "tiny")).id


@pytest.fixture
def pairs(tmp_path: Path) -> Path:
    return write_preference_file(tmp_path / "pairs.jsonl", 20)


@pytest.fixture
def environment(api: Api, secret: str) -> dict[str, str]:
    return {"OPENAI_BASE_URL": f"{api.url}/v1", "OPENAI_API_KEY": secret}


@dataclass(frozen=True)
class Done:
    returncode: int
    stdout: str
    stderr: str


class Dpo(Protocol):
    def __call__(self, *arguments: object, **environment: str) -> Done: ...


@pytest.fixture
def dpo(environment: dict[str, str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Dpo:
    """`dpo` with the service's address and key, in this process: starting one takes longer than most commands."""

    def run(*arguments: object, **changed: str) -> Done:
        for name, value in {**environment, **changed}.items():
            monkeypatch.setenv(name, value)
        monkeypatch.setattr(sys, "argv", ["dpo", *map(str, arguments)])
        with pytest.raises(SystemExit) as ended:
            main()
        return Done(int(ended.value.code or 0), *capsys.readouterr())

    return run


@pytest.fixture
def job_id(base: str, pairs: Path, dpo: Dpo) -> str:
    return dpo("submit", pairs, "--model", base).stdout.strip()
