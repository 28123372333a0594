"""README names every command."""

from __future__ import annotations

from pathlib import Path

import typer.main

from cli.main import app

README = Path(__file__).parents[2] / "README.md"


def test_readme_names_every_command() -> None:
    commands = typer.main.get_command(app).commands  # type: ignore[attr-defined]
    text = README.read_text(encoding="utf-8")
    named = {name for name in commands if f"`dpo {name}" in text}
    assert named == {name for name, command in commands.items() if not command.hidden}
