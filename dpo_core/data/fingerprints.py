"""Digests by which rows are compared: what they say, and what they ask. Texts themselves are not kept.

A file's digests are one array, `FINGERPRINT` a row: small enough to be sent between processes and put on disk.
"""

from __future__ import annotations

import hashlib

import numpy as np

from dpo_core.data.records import Example, Message, Pair, Text
from dpo_core.data.turns import as_turns

DIGEST_BYTES = 16

FINGERPRINT = np.dtype(
    [
        ("content", f"S{DIGEST_BYTES}"),  # of the exact prompt and answers, whatever the answers' order
        ("prompt", f"S{DIGEST_BYTES}"),  # of the normalised prompt
        ("line", "<i8"),
        ("row", "<i8"),  # its number in the file, which tells rows of one line apart
        ("file", "<i4"),  # the place of the row's file among those that are read
        ("swapped", "?"),  # whether the answers stand against the digests' order
    ]
)

Fingerprint = tuple[bytes, bytes, int, int, int, bool]
"""The fields of one FINGERPRINT."""


def fingerprint(row: Pair | Example, file: int = 0) -> Fingerprint:
    """What a row is known by among all others."""
    answers = [row.chosen, row.rejected] if isinstance(row, Pair) else [row.completion]
    digests = [_digest(answer, "assistant") for answer in answers]
    given = f"{row.tools or ''} {row.variables or ''}".encode()
    whole = b"".join([_digest(row.prompt, "user"), *sorted(digests), given])
    content = hashlib.blake2b(whole, digest_size=DIGEST_BYTES).digest()
    return content, prompt_key(row.prompt), row.line, row.row, file, digests != sorted(digests)


def prompt_key(prompt: Text) -> bytes:
    """A digest of the normalised prompt: case-folded, runs of whitespace made one space."""
    turns = [("user", prompt)] if isinstance(prompt, str) else [(turn.role, turn.content) for turn in prompt]
    normal = "\n".join(f"{role} {' '.join(content.casefold().split())}" for role, content in turns)
    return hashlib.blake2b(normal.encode(), digest_size=DIGEST_BYTES).digest()


def _digest(text: Text, role: str) -> bytes:
    """Of the exact text; a plain string is one turn of `role`."""
    digest = hashlib.blake2b(digest_size=DIGEST_BYTES)
    for turn in as_turns(text, role):
        content = turn.content.encode()
        digest.update(f"{turn.role} {len(content)} ".encode() + content)
        if extras := _beside_content(turn):
            digest.update(repr(extras).encode())
    return digest.digest()


def _beside_content(turn: Message) -> tuple[tuple[str, str], ...]:
    fields = ("reasoning", "tool_calls", "tool_call_id", "name")
    return tuple((field, value) for field in fields if (value := getattr(turn, field)) is not None)
