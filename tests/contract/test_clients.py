"""The same calls under several versions of the unmodified openai client, each in a process of its own."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from control_plane import models
from control_plane.database import Database
from control_plane.settings import Settings
from tests.api.conftest import Api
from tests.control_plane.model_folders import make_folder
from tests.worker.stubs import stub_programs, supervisor

ROOT = Path(__file__).parents[2]
CLIENTS = Path(__file__).parent / "clients"
OTHERS = [pytest.param(path.stem, marks=pytest.mark.long) for path in sorted(CLIENTS.glob("openai-*.txt"))]


def interpreter(name: str) -> str:
    if name == "installed":
        return sys.executable
    python = ROOT / "build" / name / "bin" / "python"
    if not python.exists():
        pytest.skip(f"build/{name} is not there; `make clients` makes it")
    return str(python)


@pytest.fixture
def environment(api: Api, secret: str, database: Database, tmp_path: Path) -> dict[str, str]:
    """Nothing of this process's own but where the service is."""
    with database.transaction() as session:
        models.register_base(session, make_folder(tmp_path / "tiny"))
    return {
        "PATH": os.environ["PATH"],
        "PYTHONDONTWRITEBYTECODE": "1",
        "OPENAI_BASE_URL": f"{api.url}/v1",
        "OPENAI_API_KEY": secret,
        "CONTRACT_GO": str(tmp_path / "go"),
    }


@pytest.mark.parametrize("suite", sorted(path.stem for path in CLIENTS.glob("*.py")))
@pytest.mark.parametrize("name", ["installed", *OTHERS])
def test_the_client(environment: dict[str, str], settings: Settings, tmp_path: Path, name: str, suite: str) -> None:
    quick = settings.model_copy(update={"heartbeat_seconds": 0.2, "poll_seconds": 0.2, "cpu_slots": 2})
    command = [interpreter(name), "-m", "pytest", "-q", "-x", "-c", os.devnull, "-p", "no:cacheprovider"]
    command += ["--rootdir", str(CLIENTS), "--confcutdir", str(CLIENTS), str(CLIENTS / f"{suite}.py")]
    with supervisor(quick, stub_programs(["--hold-at=3", f"--until={environment['CONTRACT_GO']}"])):
        done = subprocess.run(
            command, env=environment, cwd=tmp_path, capture_output=True, text=True, timeout=500, check=False
        )
    assert done.returncode == 0, done.stdout + done.stderr
