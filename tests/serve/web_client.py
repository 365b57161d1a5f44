"""A server on this machine, in a thread of the test's process, and what tests ask it."""

import http.client
import json
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from pipeinfer.cluster.launch import Cluster
from pipeinfer.commands.serve import served_model
from pipeinfer.engine.chat import ChatTemplate
from pipeinfer.serve.handlers import Handlers
from pipeinfer.serve.pipe_events import PipeEvents
from pipeinfer.serve.server import Server, listen
from pipeinfer.serve.service import Service

PATIENCE_S = 60.0

Served = tuple[Cluster, Service, PipeEvents]

TEMPLATE = ChatTemplate("{% for message in messages %}# {{ message.role }}: {{ message.content }}\n{% endfor %}")


class WebClient:
    """Where a server listens, with what every request to it brings along."""

    def __init__(self, port: int, service: Service, key: str | None = None) -> None:
        self.port = port
        self.service = service
        self.headers = {} if key is None else {"authorization": f"Bearer {key}"}

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def ask(
        self, method: str, path: str, body: Any = None, headers: dict[str, str] | None = None
    ) -> tuple[int, Any, dict[str, str]]:
        """Status, body (JSON read) and headers. `body` is sent as JSON, or as it is where it is bytes."""
        given = {**self.headers, **({} if body is None else {"content-type": "application/json"}), **(headers or {})}
        sent = body if body is None or isinstance(body, bytes) else json.dumps(body).encode()
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=PATIENCE_S)
        try:
            connection.request(method, path, sent, given)
            answer = connection.getresponse()
            read = answer.read()
            kind = answer.headers.get("content-type", "")
            told = {name.lower(): value for name, value in answer.headers.items()}
            return answer.status, json.loads(read) if kind == "application/json" else read.decode(), told
        finally:
            connection.close()

    def post(self, path: str, **fields: Any) -> dict[str, Any]:
        """The answer to a request that succeeds."""
        status, answer, _ = self.ask("POST", path, fields)
        assert status == 200, answer
        return dict(answer)

    def complete(self, **fields: Any) -> dict[str, Any]:
        return self.post("/v1/completions", **fields)

    def stream(self, path: str, **fields: Any) -> list[dict[str, Any]]:
        """All chunks of a stream, which ends as it should."""
        status, text, headers = self.ask("POST", path, {**fields, "stream": True})
        assert status == 200, text
        assert headers["content-type"].startswith("text/event-stream")
        events = [event for event in text.split("\n\n") if event and not event.startswith(":")]
        assert events[-1] == "data: [DONE]"
        return [json.loads(event.removeprefix("data: ")) for event in events[:-1]]

    def open_request(self, path: str, body: bytes, *, length: int | None = None) -> socket.socket:
        """A connection on which a request was sent, its answer not read."""
        opened = socket.create_connection(("127.0.0.1", self.port), timeout=PATIENCE_S)
        head = (f"POST {path} HTTP/1.1\r\nhost: localhost\r\ncontent-type: application/json\r\n"
                f"content-length: {len(body) if length is None else length}\r\n\r\n")  # fmt: skip
        opened.sendall(head.encode() + body)
        return opened

    def wait_until(self, holds: Callable[[Any], bool]) -> None:
        """Until the service's snapshot is so."""
        deadline = time.monotonic() + PATIENCE_S
        while not holds(snapshot := self.service.snapshot()):
            assert time.monotonic() < deadline, snapshot
            time.sleep(0.01)


@contextmanager
def web_server(
    cluster: Cluster, service: Service, pipe: PipeEvents, *, key: str | None = None, **model: Any
) -> Iterator[WebClient]:
    """A server of its own for a service that runs, whose model differs in these fields of `ServedModel`."""
    started = threading.Event()
    opened = listen("127.0.0.1", 0, key)
    handlers = Handlers(service, served_model(cluster)._replace(**model), pipe)
    server = Server(handlers, key=key, started=started.set)
    thread = threading.Thread(target=server.run, args=([opened],))
    thread.start()
    try:
        assert started.wait(PATIENCE_S)
        yield WebClient(opened.getsockname()[1], service, key)
    finally:
        server.should_exit = True
        thread.join(PATIENCE_S)
        assert not thread.is_alive()


@contextmanager
def serving(plan: Any, **options: Any) -> Iterator[Served]:
    """Ranks, and a service over them."""
    pipe = PipeEvents()
    with Cluster(plan) as cluster, Service(cluster, observe=pipe.record, **options) as service:
        yield cluster, service, pipe
