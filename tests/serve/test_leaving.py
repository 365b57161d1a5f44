"""Clients that go away at any byte, and servers that end: nothing is left of their requests."""

import asyncio
import json
import os
import re
import socket
import time
from collections.abc import AsyncIterator, Callable
from typing import Any

import pytest
from web_client import PATIENCE_S, Served, WebClient, serving, web_server

from pipeinfer.cluster.plan import Plan
from pipeinfer.serve import event_stream

LONG = {"prompt": "def f():\n", "max_tokens": 1800, "temperature": 0, "ignore_eos": True}


def leave(opened: socket.socket) -> None:
    """At once, with whatever has not been read."""
    opened.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
    opened.close()


def cancelled(web: WebClient) -> int:
    return int(web.service.snapshot().done.get("cancelled", 0))


@pytest.mark.parametrize("stream", [True, False])
@pytest.mark.parametrize("read", [0, 1, 700])
def test_a_client_that_goes_away_leaves_nothing(web: WebClient, stream: bool, read: int) -> None:
    before = cancelled(web)
    opened = web.open_request("/v1/completions", json.dumps({**LONG, "n": 2, "stream": stream}).encode())
    web.wait_until(lambda snapshot: snapshot.running + snapshot.waiting == 2)
    while stream and read > 0:
        read -= len(opened.recv(read))
    leave(opened)
    web.wait_until(lambda snapshot: snapshot.running == snapshot.waiting == snapshot.runs_in_flight == 0)
    assert cancelled(web) == before + 2


def test_a_request_that_never_came_whole_is_no_request(web: WebClient) -> None:
    body = json.dumps({**LONG, "stream": True}).encode()
    done = web.service.snapshot().done
    for size in range(0, len(body), 7):
        leave(web.open_request("/v1/completions", body[:size], length=len(body)))
    assert web.complete(prompt="x", max_tokens=1)["choices"]
    now: dict[str, Any] = web.service.snapshot().done
    assert sum(now.values()) == sum(done.values()) + 1


@pytest.mark.parametrize("stream", [True, False])
def test_a_client_that_disconnects_at_any_byte_leaves_nothing(served: Served, stream: bool) -> None:
    """Of its request each, and of the answer, whole or in pieces, every few."""
    cluster, _, _ = served
    asked = json.dumps({"prompt": "def f():\n", "max_tokens": 24, "seed": 1, "ignore_eos": True, "stream": stream})
    request = (f"POST /v1/completions HTTP/1.1\r\nhost: localhost\r\ncontent-type: application/json\r\n"
               f"connection: close\r\ncontent-length: {len(asked)}\r\n\r\n{asked}").encode()  # fmt: skip
    with web_server(*served) as web:
        answer = answered(web, request)
        web.wait_until(at_rest)
        before = descriptors()
        for size in range(len(request)):
            leave(sent(web, request[:size]))
        for size in range(0, len(answer) + 1, 1 + len(answer) // 24):
            opened = sent(web, request)
            while size > 0:
                size -= len(opened.recv(size)) or size
            leave(opened)
        web.wait_until(at_rest)
        wait_for(lambda: descriptors() <= before)
        web.wait_until(at_rest)
        assert cluster.scheduler is not None
        cluster.scheduler.validate()  # Each sequence is in one place, and none in a run or a text under way.
        assert text_of(answered(web, request)) == text_of(answer)


def text_of(answer: bytes) -> str:
    return "".join(json.loads(text) for text in re.findall(r'"text":("(?:[^"\\]|\\.)*")', answer.decode()))


def at_rest(snapshot: Any) -> bool:
    return bool(snapshot.running == snapshot.waiting == snapshot.runs_in_flight == 0)


def sent(web: WebClient, request: bytes) -> socket.socket:
    opened = socket.create_connection(("127.0.0.1", web.port), timeout=PATIENCE_S)
    opened.sendall(request)
    return opened


def answered(web: WebClient, request: bytes) -> bytes:
    with sent(web, request) as opened:
        return everything(opened)


def descriptors() -> int:
    """Of this process, in which the server is."""
    return len(os.listdir("/proc/self/fd"))


def wait_for(holds: Callable[[], bool]) -> None:
    deadline = time.monotonic() + PATIENCE_S
    while not holds():
        assert time.monotonic() < deadline, descriptors()
        time.sleep(0.01)


def test_a_reader_who_stops_reading_is_left(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without a socket: the system takes megabytes before it lets a sender wait."""
    monkeypatch.setattr(event_stream, "UNREAD_S", 0.05)
    closed: list[bool] = []

    async def events() -> AsyncIterator[bytes]:
        while True:
            yield b": still here\n\n"

    async def never(*_: Any) -> Any:
        await asyncio.Event().wait()

    async def main() -> None:
        await event_stream.EventStream(events(), lambda: closed.append(True))({"type": "http"}, never, never)

    asyncio.run(main())
    assert closed == [True]


def test_a_server_that_ends_lets_requests_end_and_listeners_go() -> None:
    plan = Plan(backend="emulated", backend_options={"layers": 4, "layer_s": 0.002}, stages=2, transport="inproc")
    with serving(plan, strategy="iterative") as made:
        with web_server(*made) as web:
            body = json.dumps({"prompt": "a b", "max_tokens": 40, "stream": True}).encode()
            answered = web.open_request("/v1/completions", body)
            looking = socket.create_connection(("127.0.0.1", web.port))
            looking.sendall(b"GET /pipe HTTP/1.1\r\nhost: localhost\r\n\r\n")
            web.wait_until(lambda snapshot: snapshot.running == 1)
        with answered, looking:
            assert everything(answered).count(b'"text":') == 41
            assert b"snapshot" in everything(looking)


def test_requests_to_a_service_that_has_ended_are_told_so() -> None:
    plan = Plan(backend="emulated", backend_options={"layers": 4, "layer_s": 0.002}, stages=2, transport="inproc")
    with serving(plan) as made, web_server(*made) as web:
        made[1].close()
        for method, path, body in (("GET", "/health", None), ("POST", "/v1/completions", {"prompt": "x"})):
            status, answer, _ = web.ask(method, path, body)
            assert (status, answer["error"]["type"]) == (503, "server_error")
            assert "closed" in answer["error"]["message"]


def everything(opened: socket.socket) -> bytes:
    """What comes until the other side closes."""
    deadline, read = time.monotonic() + 30, b""
    while some := opened.recv(65536):
        read += some
        assert time.monotonic() < deadline
    return read
