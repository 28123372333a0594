"""Finds rows that say again, or contradict, what an earlier row said. Keeps one hash a row, no text."""

from __future__ import annotations

import hashlib

from dpo_core.data.records import Example, Pair, Text
from dpo_core.data.turns import as_turns


class Repeats:
    """The rows of one file, in order; texts are compared exactly."""

    def __init__(self) -> None:
        self._first: dict[bytes, tuple[int, bool]] = {}
        """For each prompt with its answers, whatever their order: the first row's line and order."""

    def look(self, row: Pair | Example) -> tuple[str, str] | None:
        """Takes the row in; a code (`duplicate_row`, `opposite_labels`) and a message if it isn't new."""
        prompt = _digest(row.prompt, "user")
        answers = [row.chosen, row.rejected] if isinstance(row, Pair) else [row.completion]
        digests = [_digest(answer, "assistant") for answer in answers]
        in_order = digests == sorted(digests)
        key = hashlib.blake2b(b"".join([prompt, *sorted(digests)]), digest_size=16).digest()
        line, order = self._first.setdefault(key, (row.line, in_order))
        if line == row.line:
            return None
        if order == in_order:
            message = (
                f"Line {row.line} repeats an earlier row (line {line}), so that row counts twice. "
                "Remove one, unless it is meant."
            )
            return "duplicate_row", message
        message = (
            f"Line {row.line} prefers the answer that line {line} rejects, to the same prompt: they work against each "
            "other. Remove the wrong one."
        )
        return "opposite_labels", message


def _digest(text: Text, role: str) -> bytes:
    digest = hashlib.blake2b(digest_size=16)
    for turn in as_turns(text, role):
        content = turn.content.encode()
        digest.update(f"{turn.role} {len(content)} ".encode() + content)
    return digest.digest()
