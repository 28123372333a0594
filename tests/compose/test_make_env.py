from __future__ import annotations

import subprocess
from pathlib import Path

from tests.compose.engine import REPOSITORY


def test_secrets_are_random_private_and_made_once(tmp_path: Path) -> None:
    script = REPOSITORY / "deploy" / "make-env"
    first, second = tmp_path / "first.env", tmp_path / "second.env"
    for file in (first, second):
        subprocess.run([script, file], check=True, capture_output=True)
    assert first.stat().st_mode & 0o077 == 0
    assert first.read_text() != second.read_text()
    before = first.read_text()
    again = subprocess.run([script, first], check=False, capture_output=True, text=True)
    assert again.returncode == 1
    assert "stays as it is" in again.stderr
    assert first.read_text() == before


def test_no_password_is_no_file(tmp_path: Path) -> None:
    script = REPOSITORY / "deploy" / "make-env"
    without = subprocess.run(["/bin/sh", script, tmp_path / ".env"], env={"PATH": ""}, check=False, capture_output=True)
    assert without.returncode != 0
    assert not (tmp_path / ".env").exists()
