"""A POST to somebody else's URL, against real servers on loopback addresses; the resolver is the attacker's."""

from __future__ import annotations

import socket
import ssl
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from ipaddress import ip_address

import pytest

from control_plane.addresses import Address, Target, read_url, why_not
from tests.receiver import receiving
from worker.posting import NotSent, post, resolve

TLS = ssl.create_default_context()
OUTSIDE, INSIDE = "127.0.0.1", "127.0.0.2"


def permit(address: Address) -> str | None:
    """What is public in these tests: one loopback address."""
    return None if str(address) == OUTSIDE else f"{address} is inside"


def answering(*answers: str | Sequence[str]) -> tuple[Callable[[str, int], list[Address]], list[str]]:
    """A resolver with these answers, one after another; and which names it was asked for."""
    asked: list[str] = []

    def resolver(host: str, _port: int) -> list[Address]:
        answer = answers[min(len(asked), len(answers) - 1)]
        asked.append(host)
        return [ip_address(one) for one in ([answer] if isinstance(answer, str) else answer)]

    return resolver, asked


def target(port: int, scheme: str = "http") -> Target:
    return read_url(f"{scheme}://hooks.example:{port}/a?b=c", allow_http=True, allow_private=False)


def test_the_address_that_was_looked_at_is_the_one_that_is_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    """DNS rebinding: the name leads outside when it is looked at, and inside ever after."""
    resolver, asked = answering(OUTSIDE, INSIDE)
    system = socket.getaddrinfo
    looked_up: list[object] = []

    def watched(host: object, *rest: object, **more: object) -> object:
        looked_up.append(host)
        return system(host, *rest, **more)  # type: ignore[call-overload]

    monkeypatch.setattr(socket, "getaddrinfo", watched)
    with receiving(OUTSIDE) as outside, receiving(INSIDE, outside.port) as inside:
        sent = post(target(outside.port), b"{}", {"webhook-id": "evt-1"}, permit=permit, tls=TLS, resolve=resolver)
        assert sent == 200
        (got,) = outside.got
        assert (got.path, got.body, got.headers["webhook-id"]) == ("/a?b=c", b"{}", "evt-1")
        assert got.headers["host"] == f"hooks.example:{outside.port}", "the host's name stays"
        assert asked == ["hooks.example"]
        assert set(looked_up) <= {OUTSIDE}, "nothing else resolves the name again"
        with pytest.raises(NotSent, match=r"127\.0\.0\.2 is inside"):
            post(target(outside.port), b"{}", {}, permit=permit, tls=TLS, resolve=resolver)
        assert inside.got == [] and len(outside.got) == 1


@pytest.mark.parametrize("found", [[OUTSIDE, INSIDE], [INSIDE, OUTSIDE]])
def test_one_private_address_among_public_ones_is_enough(found: list[str]) -> None:
    with receiving(OUTSIDE) as outside:
        with pytest.raises(NotSent, match="is inside; the operator may allow it with DPO_WEBHOOK_ALLOW_PRIVATE"):
            post(target(outside.port), b"{}", {}, permit=permit, tls=TLS, resolve=answering(found)[0])
        assert outside.got == []


@pytest.mark.parametrize("host", ["127.0.0.1", "2130706433", "0x7f000001", "0177.0.0.1", "127.1", "localhost"])
def test_every_spelling_of_this_machine_is_resolved_before_it_is_judged(host: str) -> None:
    with receiving(OUTSIDE) as receiver:
        spelled = Target(False, host, receiver.port, "/")
        with pytest.raises(NotSent, match="is a loopback address"):
            post(spelled, b"{}", {}, permit=why_not, tls=TLS, resolve=resolve)
        assert receiver.got == []


@pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
def test_a_redirect_is_never_followed(status: int) -> None:
    with receiving(OUTSIDE) as outside, receiving(INSIDE) as inside:
        outside.answers, outside.location = [status], inside.url
        assert post(target(outside.port), b"{}", {}, permit=permit, tls=TLS, resolve=answering(OUTSIDE)[0]) == status
        assert inside.got == []


@contextmanager
def raw_server(answer: Callable[[socket.socket], None]) -> Iterator[int]:
    """A server for one connection, which `answer` speaks with until the other side is gone."""
    listener = socket.create_server((OUTSIDE, 0))

    def serve() -> None:
        connection, _ = listener.accept()
        with connection:
            try:
                answer(connection)
            except OSError:
                return

    thread = threading.Thread(target=serve)
    thread.start()
    yield listener.getsockname()[1]
    thread.join(20)
    assert not thread.is_alive(), "the client must have gone away"
    listener.close()


def drip(connection: socket.socket, line: bytes) -> None:
    """A header that never ends, byte by byte: no single wait is long."""
    gone = threading.Event()
    connection.sendall(b"HTTP/1.1 200 OK\r\n")
    while True:
        connection.sendall(line)
        gone.wait(0.05)


def hang(connection: socket.socket) -> None:
    while connection.recv(65536):
        continue


@pytest.mark.parametrize(
    "server", [lambda it: drip(it, b"x"), lambda it: drip(it, b"a: b\r\n"), hang], ids=["header", "headers", "silent"]
)
def test_a_server_that_takes_its_time_is_left(server: Callable[[socket.socket], None]) -> None:
    with raw_server(server) as port, pytest.raises(NotSent, match=r"within 0\.5 s|could not be asked: got more than"):
        post(target(port), b"{}", {}, permit=permit, tls=TLS, resolve=answering(OUTSIDE)[0], seconds=0.5)


def test_the_time_is_up_just_when_the_connection_is_there(monkeypatch: pytest.MonkeyPatch) -> None:
    """The watchdog finds no socket to close then, and comes no second time."""
    connect = socket.create_connection

    def slow(address: tuple[str, int], timeout: float) -> socket.socket:
        deadline.wait(20)
        return connect(address, timeout)

    class Watchdog(threading.Timer):
        def run(self) -> None:
            super().run()
            deadline.set()

    deadline = threading.Event()
    monkeypatch.setattr("worker.posting.socket.create_connection", slow)
    monkeypatch.setattr("worker.posting.threading.Timer", Watchdog)
    with raw_server(lambda it: drip(it, b"x")) as port, pytest.raises(NotSent, match=r"within 0\.01 s"):
        post(target(port), b"{}", {}, permit=permit, tls=TLS, resolve=answering(OUTSIDE)[0], seconds=0.01)


@pytest.mark.parametrize("line", [b"\0\r\x1b[31mred\r\n", b"HTTP/1.1 99999 " + b"a" * 60_000 + b"\r\n"])
def test_what_is_told_of_an_answer_that_is_no_http_can_be_kept(line: bytes) -> None:
    """PostgreSQL can't hold a NUL: a delivery that could not be noted would be sent again for ever."""

    def garbage(connection: socket.socket) -> None:
        connection.recv(65536)
        connection.sendall(line)

    with raw_server(garbage) as port, pytest.raises(NotSent, match="could not be asked: ") as failure:
        post(target(port), b"{}", {}, permit=permit, tls=TLS, resolve=answering(OUTSIDE)[0])
    assert str(failure.value).isprintable() and len(str(failure.value)) < 400


def test_an_endless_answer_is_cut_off() -> None:
    def flood(connection: socket.socket) -> None:
        connection.recv(65536)
        connection.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 1000000000\r\n\r\n")
        while True:
            connection.sendall(bytes(65536))

    with raw_server(flood) as port:
        assert post(target(port), b"{}", {}, permit=permit, tls=TLS, resolve=answering(OUTSIDE)[0]) == 200


def test_the_handshake_names_the_host_and_a_wrong_certificate_ends_it() -> None:
    hello: list[bytes] = []

    def listen(connection: socket.socket) -> None:
        hello.append(connection.recv(65536))

    with raw_server(listen) as port, pytest.raises(NotSent, match="could not be asked"):
        post(target(port, "https"), b"{}", {}, permit=permit, tls=TLS, resolve=answering(OUTSIDE)[0])
    assert b"hooks.example" in hello[0], "SNI is the host's name, though the connection goes to an address"
    assert TLS.check_hostname and TLS.verify_mode is ssl.CERT_REQUIRED


def test_nothing_there() -> None:
    with socket.create_server((OUTSIDE, 0)) as listener:
        port = listener.getsockname()[1]
    for found, words in (([OUTSIDE], "refused"), ([], "has no address")):
        with pytest.raises(NotSent, match=words):
            post(target(port), b"{}", {}, permit=permit, tls=TLS, resolve=answering(found)[0])

    def unknown(_host: str, _port: int) -> list[Address]:
        raise socket.gaierror("Name or service not known")

    with pytest.raises(NotSent, match="could not be resolved: Name or service not known"):
        post(target(port), b"{}", {}, permit=permit, tls=TLS, resolve=unknown)
