"""The one exception of this package: a run that can't go on, with the Failure that its status will show.

RunError
└── its `failure.kind` (user, resource, infrastructure, divergence) decides whether another attempt makes sense
"""

from __future__ import annotations

from dpo_core.run_directory import READER_KILLED, Failure


class RunError(Exception):
    """Carries a Failure; survives pickling."""

    def __init__(self, failure: Failure) -> None:
        super().__init__(failure)
        self.failure = failure

    def __str__(self) -> str:
        return self.failure.message


def user_error(code: str, message: str, *, param: str | None = None, line: int | None = None) -> RunError:
    """The user's data or spec is at fault: no other attempt can help, `message` says what does."""
    return RunError(Failure(kind="user", code=code, message=message, param=param, line=line))


def reader_killed() -> RunError:
    """A process that helps this one was killed from outside, which the kernel does where memory is short."""
    message = (
        "A process that read the data was killed, probably because the host's memory was short. Run fewer jobs at "
        "once on this host, or give it more memory."
    )
    return RunError(Failure(kind="resource", code=READER_KILLED, message=message))
