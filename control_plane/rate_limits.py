"""How often a key may ask: a bucket of tokens in Redis for each key, one token a request.

A bucket holds a minute's worth and fills evenly. Redis counts for all API processes together. Where it is away nobody
is limited: it only protects the service from a client's runaway loop, and jobs must not depend on it.
"""

from __future__ import annotations

import logging
import math
import time
from dataclasses import dataclass

import redis

from control_plane.hints import redis_py_url

SECONDS = 0.25
"""How long a request may be held up by a Redis that doesn't answer."""

REST_SECONDS = 5.0
"""After that it isn't asked for so long."""

# One step for Redis: by its own clock, so that API processes on several hosts agree.
TAKE = """
local t = redis.call('TIME')
local now = t[1] + t[2] / 1000000
local size = tonumber(ARGV[1])
local rate = size / 60
local state = redis.call('HMGET', KEYS[1], 'tokens', 'at')
local tokens = math.min(size, (tonumber(state[1]) or size) + math.max(0, now - (tonumber(state[2]) or now)) * rate)
local taken = 0
if tokens >= 1 then
  tokens = tokens - 1
  taken = 1
end
redis.call('HSET', KEYS[1], 'tokens', tostring(tokens), 'at', string.format('%.6f', now))
redis.call('EXPIRE', KEYS[1], 120)
return {taken, tostring(tokens)}
"""

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Verdict:
    allowed: bool
    limit: int
    """Requests a minute."""
    remaining: int
    """That may be sent at once."""
    full_in: float
    """Seconds until the whole limit is there again."""
    next_in: float
    """Seconds until the next request is allowed; 0 where it is."""

    @property
    def headers(self) -> dict[str, str]:
        """Under OpenAI's names; with `Retry-After`, which its client waits for, where the request is refused."""
        told = {
            "x-ratelimit-limit-requests": str(self.limit),
            "x-ratelimit-remaining-requests": str(self.remaining),
            "x-ratelimit-reset-requests": f"{self.full_in:.3f}s",
        }
        return told if self.allowed else {**told, "Retry-After": str(math.ceil(self.next_in))}


class RateLimits:
    def __init__(self, redis_url: str) -> None:
        self._redis = redis.Redis.from_url(
            redis_py_url(redis_url), socket_timeout=SECONDS, socket_connect_timeout=SECONDS
        )
        self._take = self._redis.register_script(TAKE)
        self._not_before = 0.0

    def take(self, key_id: str, per_minute: int) -> Verdict | None:
        """One request of a key; None where Redis is away."""
        if time.monotonic() < self._not_before:
            return None
        try:
            taken, tokens = self._take(keys=[f"dpo:rate:{key_id}"], args=[per_minute])
        except redis.RedisError as error:
            self._not_before = time.monotonic() + REST_SECONDS
            logger.warning("Nobody's requests are limited for a while: Redis can't be reached (%s).", error)
            return None
        left, rate = float(tokens), per_minute / 60
        next_in = 0.0 if taken else (1 - left) / rate
        return Verdict(bool(taken), per_minute, int(left), (per_minute - left) / rate, next_in)

    def close(self) -> None:
        self._redis.close()
