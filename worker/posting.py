"""A POST to a URL that somebody else chose: to a public address only, to the one that was looked at, and not for ever.

Resolving a name twice, once to look at it and once to connect, would let its owner answer differently in between. So
the name is resolved once, and the connection is made to the address itself; the Host header, SNI and the certificate's
name stay the host's. A redirect is an answer like any other: nothing follows it. No proxy is asked.
"""

from __future__ import annotations

import socket
import ssl
import threading
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from http.client import HTTPConnection, HTTPException
from ipaddress import ip_address

from control_plane.addresses import ALLOW_PRIVATE, Address, Target

CONNECT_SECONDS = 5.0
"""For each address, and for each silence later on."""
SECONDS = 15.0
"""For all of a try, however little comes at a time."""
ANSWER_BYTES = 16 * 1024
"""Read of an answer's body, so that its sender sees no broken connection; nobody looks at them."""

ERROR_CHARACTERS = 300

Resolve = Callable[[str, int], Sequence[Address]]
Permit = Callable[[Address], str | None]
"""What keeps us from an address, or None."""


class NotSent(Exception):
    """Nothing answered; the words say why."""


def resolve(host: str, port: int) -> Sequence[Address]:
    """All addresses of a host, as the system knows them. Raises OSError."""
    found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    return list(dict.fromkeys(ip_address(str(address[0]).partition("%")[0]) for *_, address in found))


def post(
    target: Target,
    body: bytes,
    headers: Mapping[str, str],
    *,
    permit: Permit,
    tls: ssl.SSLContext,
    resolve: Resolve = resolve,
    seconds: float = SECONDS,
) -> int:
    """Sends `body` and returns the answer's status. Raises NotSent."""
    connection = _Pinned(target, _addresses(target, resolve, permit), tls)
    watchdog = threading.Timer(seconds, connection.abort)
    watchdog.daemon = True
    watchdog.start()
    try:
        connection.request("POST", target.path, body, dict(headers))
        answer = connection.getresponse()
        if connection.aborted:  # http.client takes headers that were cut off for all of them
            raise TimeoutError
        with suppress(OSError, HTTPException):  # the status is what counts
            answer.read(ANSWER_BYTES)
    except (OSError, HTTPException, ValueError) as error:
        if connection.aborted:
            raise NotSent(f"{target.host} did not answer within {seconds:g} s") from None
        raise NotSent(f"{target.host} could not be asked: {_words_of(error)}") from None
    finally:
        watchdog.cancel()
        connection.close()
    return answer.status


def _words_of(error: Exception) -> str:
    """What an error says. It may quote what the other side sent, and is kept in PostgreSQL: so printable, and short."""
    said = str(error) or type(error).__name__
    return "".join(letter for letter in said if letter.isprintable())[:ERROR_CHARACTERS]


def _addresses(target: Target, resolve: Resolve, permit: Permit) -> Sequence[Address]:
    """Where the host is, once all of it may be connected to: one private address among public ones is a trap, too."""
    try:
        found = resolve(target.host, target.port)
    except (OSError, UnicodeError) as error:
        raise NotSent(f"{target.host} could not be resolved: {error}") from None
    for address in found:
        if (reason := permit(address)) is not None:
            raise NotSent(f"{target.host} was not asked: {reason}; {ALLOW_PRIVATE}")
    if not found:
        raise NotSent(f"{target.host} has no address")
    return found


class _Pinned(HTTPConnection):
    """A connection to one of the given addresses, in the host's name."""

    def __init__(self, target: Target, addresses: Sequence[Address], tls: ssl.SSLContext) -> None:
        # The default port, which the Host header leaves out, depends on the scheme.
        self.default_port = 443 if target.secure else 80
        super().__init__(target.host, target.port, timeout=CONNECT_SECONDS)
        self.aborted = False
        self._target, self._addresses, self._tls = target, addresses, tls

    def connect(self) -> None:
        self.sock = self._first_that_answers()
        self._require_time()
        if self._target.secure:
            # Shaking hands later, so that `abort` finds the socket while that goes on.
            wrapped = self._tls.wrap_socket(self.sock, server_hostname=self.host, do_handshake_on_connect=False)
            self.sock = wrapped
            self._require_time()
            wrapped.do_handshake()

    def abort(self) -> None:
        """From another thread: whatever waits on the connection ends with an error."""
        self.aborted = True
        if self.sock is not None:
            try:
                socket.socket.shutdown(self.sock, socket.SHUT_RDWR)  # an SSLSocket's own would forget its TLS meanwhile
            except OSError:
                return  # nobody is connected any more

    def _require_time(self) -> None:
        """Behind each new socket: an `abort` just before it found none, or another one. Raises TimeoutError."""
        if self.aborted:
            raise TimeoutError

    def _first_that_answers(self) -> socket.socket:
        failure: OSError = OSError("no address")
        for address in self._addresses:
            if self.aborted:
                break
            try:
                return socket.create_connection((str(address), self.port), CONNECT_SECONDS)
            except OSError as error:
                failure = error
        raise failure
