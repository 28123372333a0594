"""`dpo files`: what is uploaded, without a job."""

from __future__ import annotations

import gzip
import os
import pty
import subprocess
from pathlib import Path

from openai import OpenAI

from tests.cli.conftest import Dpo
from tests.cli.running import SECONDS, argv, clean
from tests.makers import write_preference_file


def test_a_file_is_uploaded_listed_read_and_removed(client: OpenAI, pairs: Path, dpo: Dpo, tmp_path: Path) -> None:
    done = dpo("files", "add", pairs)
    file_id = done.stdout.strip()
    assert client.files.content(file_id).read() == pairs.read_bytes()
    assert done.stderr.splitlines()[-1].endswith(f" report {file_id}")
    assert dpo("files", "get", file_id).stdout.encode() == pairs.read_bytes()
    newer = dpo("files", "add", pairs).stdout.strip()

    titles, *rows = dpo("files", "list").stdout.splitlines()
    assert titles.split() == ["file", "name", "size", "purpose", "status"]
    assert [row.split()[:2] for row in rows] == [[newer, pairs.name], [file_id, pairs.name]]
    assert len(dpo("files", "list", "--limit", 1).stdout.splitlines()) == 2

    assert dpo("files", "remove", newer).stdout == f"removed {newer}\n"
    assert [row.split()[0] for row in dpo("files", "list").stdout.splitlines()[1:]] == [file_id]


def test_what_a_file_holds_comes_as_it_is(client: OpenAI, tmp_path: Path, environment: dict[str, str]) -> None:
    """Packed rows, which are no text: into a file, and not onto a terminal."""
    packed = gzip.compress(write_preference_file(tmp_path / "pairs.jsonl", 2000).read_bytes(), mtime=0)
    file_id = client.files.create(file=("pairs.jsonl.gz", packed), purpose="fine-tune").id
    command, variables = argv(("files", "get", file_id)), clean(environment)
    read = subprocess.run(command, env=variables, capture_output=True, timeout=SECONDS, check=True)
    assert read.stdout == packed
    ours, theirs = pty.openpty()
    ended = subprocess.run(command, env=variables, stdout=theirs, stderr=subprocess.PIPE, timeout=SECONDS, check=False)
    assert ended.returncode == 1 and b"it is no text; write it to a file: " in ended.stderr
    os.close(ours)
    os.close(theirs)


def test_what_cannot_be_uploaded_read_or_removed_is_said(base: str, dpo: Dpo, tmp_path: Path) -> None:
    assert f"there is no file {tmp_path / 'none'}" in dpo("files", "add", tmp_path / "none").stderr
    (tmp_path / "empty").touch()
    assert "is empty" in dpo("files", "add", tmp_path / "empty").stderr
    for verb in ("get", "remove"):
        refused = dpo("files", verb, "file-none")
        assert (refused.returncode, refused.stdout) == (1, "") and "file-none" in refused.stderr
