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
WORTH_TELLING = 15.0
"""Seconds of rest of which other workers hear."""


class Fitness:
    def __init__(self, room: Room) -> None:
        self._room = room
        self._full = False
        self._failed = ""
        self._rest = 0.0
        self._rests_until = 0.0

    @property
    def fit(self) -> bool:
        """Whether any work can be begun at all; what runs goes on as long as it can."""
        full = self._room.too_little
        if full and not self._full:
            logger.warning("the disk is full or doesn't answer: no work is taken until there is room (%d bytes)", LEAST)
        self._full = full
        return not full and time.monotonic() >= self._rests_until

    @property
    def away(self) -> bool:
        """Whether others should not count on it."""
        return not self.fit and (self._full or self._rest > WORTH_TELLING)

    def began(self) -> None:
        """A process of some work was started: disk and storage can do it."""
        self._failed, self._rest = "", 0.0

    def could_not_begin(self, row_id: str) -> None:
        """No process of that work could be started, through an error of the operating system.

        Where it is the same work again, the fault may be its own, such as a file that is gone: it waits by itself.
        """
        same, self._failed = self._failed in ("", row_id), row_id
        if same:
            return
        self._rest = min(LONGEST_REST, self._rest * GROWTH or FIRST_REST)
        self._rests_until = time.monotonic() + self._rest
        logger.warning("one piece of work after another could not be begun; none is taken for %g s", self._rest)
