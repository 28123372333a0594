"""A file's name as its owner gave it: shown back, and never a path here."""

from __future__ import annotations

CHARACTERS = 255


def clean_filename(given: str) -> str:
    """The last part of the client's path, printable, at most CHARACTERS long."""
    name = given.replace("\\", "/").rsplit("/", 1)[-1]
    return "".join(letter for letter in name if letter.isprintable())[:CHARACTERS] or "file"
