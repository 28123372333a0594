"""The script of docs/migrate-from-openai.md runs here, with the one line changed that the page changes."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

from control_plane import models
from control_plane.database import Database
from tests.makers import make_tiny_model, write_preference_file
from tests.service import Service

PAGE = Path(__file__).parents[2] / "docs" / "migrate-from-openai.md"
MODEL = "gpt-4o-mini-2024-07-18"


def test_the_pages_script_runs_with_one_line_changed(running: Service, tmp_path: Path) -> None:
    page = PAGE.read_text(encoding="utf-8")
    script = page.split("```python\n")[1].partition("```")[0]
    removed, added = page.split("```diff\n")[1].partition("```")[0].splitlines()
    assert script.splitlines().count(removed[1:]) == 1
    program = script.replace(removed[1:], added[1:].replace("http://127.0.0.1:8000", running.url))
    database = Database(running.settings.database_url.get_secret_value())
    with database.transaction() as session:  # `dpo models add … --name …`
        models.register_base(session, make_tiny_model(tmp_path / "tiny"), MODEL)
    database.dispose()
    write_preference_file(tmp_path / "pairs.jsonl", 40)
    write_preference_file(tmp_path / "held_out.jsonl", 10)
    environment = {name: value for name, value in os.environ.items() if not name.startswith("OPENAI_")}
    done = subprocess.run(
        [sys.executable, "-c", program],
        cwd=tmp_path,
        env=environment | {"OPENAI_API_KEY": running.key},
        capture_output=True,
        text=True,
        timeout=240,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    *_, columns, last = done.stdout.splitlines()
    assert columns.startswith("step,train_loss,train_accuracy,valid_loss,valid_mean_token_accuracy,")
    status, name = last.split()
    assert status == "succeeded" and name.startswith(f"default/{MODEL}-support-")
    assert f"{name}-step-" in done.stdout
