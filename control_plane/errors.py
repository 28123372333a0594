"""The service's errors. `api` maps the class to an HTTP status; `worker` stores code and message on the job.

ServiceError
├── InvalidRequest      400   the request asks for something impossible; `param` names the field
├── Unauthenticated     401   no key, or a wrong one
├── PermissionDenied    403   the key may not do this
├── QuotaExceeded       403   the project has as much as it may have
├── RateLimited         429   the key asks too often
├── NotFound            404   no such thing in this project
├── Conflict            400   the thing is not in a state that allows this (never 409: clients retry it)
├── Stalled             408   the request's body stopped coming
├── GaveUp              408   the client hung up before it was its turn: nothing was made
├── TooLarge            413   more bytes than allowed
├── StorageFull         507   no room for the bytes (the openai client is told not to send them again)
└── StaleFence                a worker reported with a fence that is no longer the job's; changes nothing
"""

from __future__ import annotations


class ServiceError(Exception):
    """Base of the tree. `message` says what was wrong, where, and what to do."""

    code = "service_error"

    def __init__(self, message: str, *, param: str | None = None, code: str | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.param = param
        if code is not None:
            self.code = code

    def __reduce__(self) -> tuple[object, ...]:
        return (_rebuild, (type(self), self.message, self.param, self.code))


def _rebuild(kind: type[ServiceError], message: str, param: str | None, code: str) -> ServiceError:
    return kind(message, param=param, code=code)


class InvalidRequest(ServiceError):
    code = "invalid_request"


class Unauthenticated(ServiceError):
    code = "invalid_api_key"


class PermissionDenied(ServiceError):
    code = "permission_denied"


class QuotaExceeded(ServiceError):
    code = "quota_exceeded"


class RateLimited(ServiceError):
    code = "rate_limit_exceeded"


class NotFound(ServiceError):
    code = "not_found"


class Conflict(ServiceError):
    code = "conflict"


class Stalled(ServiceError):
    code = "request_timeout"


class GaveUp(ServiceError):
    code = "client_hung_up"


class TooLarge(ServiceError):
    code = "too_large"


class StorageFull(ServiceError):
    code = "storage_full"


class StaleFence(ServiceError):
    code = "stale_fence"
