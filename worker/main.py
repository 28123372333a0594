"""`dpo worker`: the supervisor in the main thread, Celery's ear and the webhooks' postman in others."""

from __future__ import annotations

import logging
import os
import signal
import sys

from control_plane.settings import Settings
from worker import last_resort
from worker.app import Ear
from worker.launch import Programs
from worker.slots import UnknownGpus
from worker.supervisor import Supervisor
from worker.webhooks import Postman

HANGING_SECONDS = 20.0
"""After the time for checkpoints and for handing back."""
LOG_FORMAT = "%(asctime)s %(levelname)s %(name)s: %(message)s"


def run(settings: Settings, programs: Programs | None = None) -> None:
    """Works until SIGTERM or SIGINT: then trainers make a checkpoint and stop, and their jobs are handed back.

    That takes no longer than DPO_STOP_SECONDS for the checkpoints, DPO_LEASE_SECONDS to publish them and hand back, and
    twenty more for what hangs. A second signal kills the trainers at once. `programs`: what to launch instead of
    dpo_core, in tests.
    """
    logging.basicConfig(level=logging.INFO, format=LOG_FORMAT)
    for noisy in ("celery.worker.strategy", "celery.app.trace"):
        logging.getLogger(noisy).setLevel(logging.WARNING)  # two lines for every hint
    try:
        supervisor = Supervisor(settings, programs or Programs())
    except UnknownGpus as error:
        sys.exit(f"error: {error}")
    hand_back = settings.lease_seconds + HANGING_SECONDS
    last_resort.arm(first=settings.stop_seconds + hand_back, again=hand_back)
    for number in last_resort.STOP_SIGNALS:
        signal.signal(number, lambda _number, _frame: supervisor.stop())
    signal.signal(signal.SIGCHLD, lambda _number, _frame: supervisor.nudge())
    ear = Ear(settings.redis_url.get_secret_value(), supervisor.wake)
    ear.start()
    postman = Postman(settings)
    postman.start()
    in_order = supervisor.run()
    postman.stop()
    ear.stop()
    if not in_order:
        logging.getLogger(__name__).warning("something hangs, such as the storage: the worker leaves without it")
        os._exit(1)  # the interpreter would wait for the thread that hangs
