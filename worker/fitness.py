"""Whether a worker takes work: not while its disk is full, and not for a while after work that it could not begin.

A worker whose disk or storage is in trouble is always free, so that without this it would take one job after another.
"""

from __future__ import annotations

import logging
import time

from worker.room import LEAST, Room

logger = logging.getLogger(__name__)

FIRST_REST, GROWTH, LONGEST_REST = 5.0, 4.0, 300.0
"""Seconds without work after a failure of its own, how much longer the next rest is, and the longest one."""


class Fitness:
    def __init__(self, room: Room) -> None:
        self._room = room
        self._full = False
        self._failures = 0
        self._rests_until = 0.0

    @property
    def fit(self) -> bool:
        """Whether any work can be begun at all; what runs goes on as long as it can."""
        full = self._room.too_little
        if full and not self._full:
            logger.warning("the disk is full (%d bytes are needed): no work is taken until there is room", LEAST)
        self._full = full
        return not full and time.monotonic() >= self._rests_until

    def began(self) -> None:
        """Work was begun: it and its storage can do it."""
        self._failures = 0

    def could_not_begin(self) -> None:
        """Through nobody's fault but the worker's own, or its storage's."""
        rest = min(LONGEST_REST, FIRST_REST * GROWTH**self._failures)
        self._failures = min(self._failures + 1, 10)
        self._rests_until = time.monotonic() + rest
        logger.warning("work could not be begun; no other is taken for %g s", rest)
