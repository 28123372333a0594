"""Which items of a table are trained on, how often, and which are held out; what the two sides share."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from dpo_core.data.fingerprints import DIGEST_BYTES
from dpo_core.data.problems import LINES_KEPT, Finding
from dpo_core.data.token_table import TokenTable

Places = NDArray[np.int64]
"""Of items in a table, ascending but for those that are there more than once."""

LEAK = (
    "The validation file asks what the training file asks too, so it measures in part what the model was shown. "
    "Remove these rows from one of the files."
)


def split(table: TokenTable, fraction: float, seed: int) -> tuple[Places, Places]:
    """Training and validation items; no normalised prompt is on both sides.

    Prompts are taken in the order of a seeded digest until `fraction` of the items is held out, so the
    choice depends on prompts and seed, not on the order of the file. The last prompt stays in training.
    """
    if fraction == 0:
        return np.arange(len(table)), np.empty(0, np.int64)
    keys = np.concatenate([np.empty(0, f"S{DIGEST_BYTES}"), *(block["known"]["prompt"] for block in table.blocks())])
    prompts, prompt_of, counts = np.unique(keys, return_inverse=True, return_counts=True)
    # An array of bytes forgets zeros at their end.
    order = np.argsort([_draw(seed, prompt.ljust(DIGEST_BYTES, b"\0").hex()) for prompt in prompts])[:-1]
    before = np.cumsum(counts[order]) - counts[order]
    held_out = np.zeros(len(prompts), bool)
    held_out[order[before < round(fraction * len(table))]] = True
    held = held_out[prompt_of]
    return np.flatnonzero(~held), np.flatnonzero(held)


def weigh(table: TokenTable, places: Places, weights: Sequence[float], seed: int) -> Places:
    """`places` as often as their file's weight says in an epoch: 2.5 is twice, and a seeded half once more."""
    if all(weight == 1 for weight in weights):
        return places
    taken = [np.empty(0, np.int64)]
    for number, weight in enumerate(weights):
        mine = places[table.rows["known"]["file"][places] == number]
        whole = math.floor(weight)
        some = round((weight - whole) * len(mine))
        rows = table.rows["known"]["row"][mine].tolist()
        order = np.argsort([_draw(seed, f"{number} {row}") for row in rows], kind="stable")
        taken += [np.repeat(mine, whole), mine[order[:some]]]
    return np.sort(np.concatenate(taken))


def _draw(seed: int, of: str) -> bytes:
    """A digest that stands for a random number; as bytes of equal length they sort like it."""
    return hashlib.blake2b(f"{seed} {of}".encode()).digest()


def leaks(training: TokenTable, validation: TokenTable) -> list[Finding]:
    """`prompt_in_training`, where the validation file has prompts of the training file: one finding or none."""
    asked = np.unique(np.concatenate([block["known"]["prompt"] for block in validation.blocks()]))
    found = np.zeros(len(asked), bool)
    for block in training.blocks():
        prompts = np.unique(block["known"]["prompt"])
        place = np.searchsorted(asked, prompts)
        place, prompts = place[place < len(asked)], prompts[place < len(asked)]
        found[place[asked[place] == prompts]] = True
    lines = [np.empty(0, np.int64)]
    for block in validation.blocks():
        known = block["known"]
        lines.append(known["line"][found[np.searchsorted(asked, known["prompt"])]])
    leaked = np.concatenate(lines)
    if not len(leaked):
        return []
    return [Finding("prompt_in_training", LEAK, len(leaked), leaked[:LINES_KEPT].tolist())]
