"""The worker's postman: takes webhook deliveries that are due, sends them, and notes what came of it.

A thread of its own with a few more for the sending, so that no endpoint ever holds up a trainer.
"""

from __future__ import annotations

import logging
import ssl
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta

from sqlalchemy.exc import ProgrammingError

from control_plane import deliveries
from control_plane.addresses import Address, read_url, why_not
from control_plane.database import DATABASE_AWAY, WORKER_IDLE_SECONDS, Database
from control_plane.deliveries import Claim, Outcome
from control_plane.errors import InvalidRequest, StaleFence
from control_plane.ids import new_id
from control_plane.settings import Settings
from control_plane.webhooks import signature
from worker.posting import NotSent, Permit, Resolve, post, resolve

logger = logging.getLogger(__name__)

AT_ONCE = 8
REDIRECTS = range(300, 400)


class Postman:
    """`start`, and later `stop`, which waits for what is being sent."""

    def __init__(self, settings: Settings, *, resolve: Resolve = resolve, permit: Permit | None = None) -> None:
        """`permit`: which addresses may be sent to, instead of the settings' answer."""
        self._settings = settings
        self._database = Database(
            settings.database_url.get_secret_value(), pool_size=2, idle_seconds=WORKER_IDLE_SECONDS
        )
        self._resolve = resolve
        self._permit = permit or (_anywhere if settings.webhook_allow_private else why_not)
        self._tls = ssl.create_default_context()
        self._id = new_id("postman")
        self._pool = ThreadPoolExecutor(AT_ONCE, thread_name_prefix="webhook")
        self._free = AT_ONCE
        self._lock = threading.Lock()
        self._stopping = False
        self._awake = threading.Event()
        self._thread = threading.Thread(target=self._run, name="webhooks", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def stop(self) -> None:
        self._stopping = True
        self._awake.set()
        self._thread.join()
        self._pool.shutdown()
        self._database.dispose()

    def _run(self) -> None:
        while not self._stopping:
            try:
                while self._take_one():
                    continue
            except DATABASE_AWAY as error:
                logger.warning("PostgreSQL doesn't answer, webhooks wait: %s", error)
            except ProgrammingError as error:  # as the supervisor says, too: the schema is another version's
                logger.warning("webhooks wait: %s", error.orig)
            except Exception:
                logger.exception("webhooks could not be looked for; trying again")
            self._awake.wait(self._settings.poll_seconds)
            self._awake.clear()  # before anything is looked at: a call that comes later is not lost

    def _take_one(self) -> bool:
        """Begins to send one that is due; False where there is none, or no room."""
        with self._lock:
            if self._free == 0 or self._stopping:
                return False
        with self._database.transaction() as session:
            claim = deliveries.claim(session, self._id)
        if claim is None:
            return False
        with self._lock:
            self._free -= 1
        self._pool.submit(self._deliver, claim)
        return True

    def _deliver(self, claim: Claim) -> None:
        try:
            outcome = self._send(claim)
            if outcome.error is not None:
                logger.info("webhook %s: %s", claim.delivery_id, outcome.error)
            with self._database.transaction() as session:
                days = timedelta(days=self._settings.webhook_disable_days)
                deliveries.report(session, claim, outcome, disable_after=days)
        except StaleFence:
            logger.info("webhook %s: its endpoint was deleted, or another worker sends it", claim.delivery_id)
        except DATABASE_AWAY as error:
            logger.warning("webhook %s: not noted, so it will be sent again: %s", claim.delivery_id, error)
        except Exception:
            logger.exception("webhook %s: could not be sent or noted", claim.delivery_id)
        finally:
            with self._lock:
                self._free += 1
            self._awake.set()

    def _send(self, claim: Claim) -> Outcome:
        try:
            target = read_url(claim.url, allow_http=self._settings.webhook_allow_http, allow_private=True)
            body, headers = claim.body.encode(), signed(claim, int(time.time()))
            status = post(target, body, headers, permit=self._permit, tls=self._tls, resolve=self._resolve)
        except (InvalidRequest, NotSent) as error:
            return Outcome(None, str(error))
        if 200 <= status < 300:
            return Outcome(status, None)
        also = "; redirects are not followed, register the URL that it leads to" if status in REDIRECTS else ""
        return Outcome(status, f"it answered HTTP {status}{also}")


def signed(claim: Claim, timestamp: int) -> dict[str, str]:
    """The headers of a try: a signature by each secret that is valid now."""
    signatures = [signature(secret, claim.message_id, timestamp, claim.body) for secret in claim.secrets]
    return {
        "Content-Type": "application/json",
        "User-Agent": "dpo-service",
        "webhook-id": claim.message_id,
        "webhook-timestamp": str(timestamp),
        "webhook-signature": " ".join(signatures),
    }


def _anywhere(_: Address) -> None:
    """The operator allows every address."""
