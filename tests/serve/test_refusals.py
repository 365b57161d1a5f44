"""What is refused, how it is told, and that others are served meanwhile."""

import http.client
import json
import socket
import time
from collections.abc import Iterator
from typing import Any

import pytest
from test_service import head_held_up
from web_client import PATIENCE_S, TEMPLATE, Served, WebClient, serving, web_server

from pipeinfer.cluster.plan import Plan
from pipeinfer.engine.chat import ChatTemplate
from pipeinfer.serve import handlers, http_limits
from pipeinfer.serve.guard import MOST_BODY
from pipeinfer.serve.http_limits import MOST_HEADERS
from pipeinfer.serve.server import listen

COMPLETIONS, CHAT = "/v1/completions", "/v1/chat/completions"
KEY = "a key of a test"

HI = [{"role": "user", "content": "Hi"}]

WRONG: list[tuple[str, Any, str | None, str]] = [
    (COMPLETIONS, b"{", None, "expected a JSON object"),
    (COMPLETIONS, b"\xff", None, "expected a JSON object"),
    (COMPLETIONS, b"[" * 100_000, None, "expected a JSON object"),
    (COMPLETIONS, [], None, "expected a JSON object, came list"),
    (COMPLETIONS, {}, "prompt", "prompt is missing"),
    (COMPLETIONS, {"prompt": ""}, "prompt", "at least one token"),
    (COMPLETIONS, {"prompt": []}, "prompt", "length >= 1"),
    (COMPLETIONS, {"prompt": [[]]}, "prompt[0]", "length >= 1"),
    (COMPLETIONS, {"prompt": ["x", 1]}, "prompt", "not both"),
    (COMPLETIONS, {"prompt": [99999]}, "prompt", "knows tokens 0..299"),
    (COMPLETIONS, {"prompt": ["x", -1]}, "prompt[1]", ">= 0"),
    (COMPLETIONS, {"prompt": ["x"] * 33}, "prompt", "at most 32 texts"),
    (COMPLETIONS, {"prompt": "x " * 2000}, "prompt", "leave no room"),
    (COMPLETIONS, {"prompt": "x", "max_tokens": 0}, "max_tokens", ">= 1"),
    (COMPLETIONS, {"prompt": "x", "max_tokens": "7"}, "max_tokens", "expected `int"),
    (COMPLETIONS, {"prompt": "x", "n": 0}, "n", ">= 1"),
    (COMPLETIONS, {"prompt": "x", "n": 33}, "n", "<= 32"),
    (COMPLETIONS, {"prompt": "x", "temperature": -0.1}, "temperature", "temperature = -0.1"),
    (COMPLETIONS, {"prompt": "x", "top_p": 1.1}, "top_p", "top_p = 1.1"),
    (COMPLETIONS, {"prompt": "x", "top_k": -2}, "top_k", ">= -1"),
    (COMPLETIONS, {"prompt": "x", "stop": ["y"] * 17}, "stop", "length <= 16"),
    (COMPLETIONS, {"prompt": "x", "logprobs": 5}, "logprobs", "logprobs is not supported"),
    (COMPLETIONS, {"prompt": "x", "echo": True}, "echo", "echo is not supported"),
    (COMPLETIONS, {"prompt": "x", "presence_penalty": 0.5}, "presence_penalty", "not supported"),
    (COMPLETIONS, {"prompt": "x", "response_format": {"type": "json_object"}}, "response_format", "not supported"),
    (COMPLETIONS, {"prompt": "x", "chat_template": "{{ 1 }}"}, "chat_template", "unrecognised field: chat_template"),
    (COMPLETIONS, {"prompt": "x", "stream_options": {"x": 1}}, "stream_options.x", "unrecognised field"),
    (COMPLETIONS, {"prompt": "x", "pipeinfer": {"strategy": "no"}}, None, 'no strategy "no"'),
    (COMPLETIONS, {"prompt": "x", "pipeinfer": {"strategy": "dsi"}}, None, "simulate"),
    (COMPLETIONS, {"prompt": "x", "pipeinfer": {"strategy": "speculative", "options": {"z": 1}}}, None, "no option"),
    (CHAT, {"messages": []}, "messages", "length >= 1"),
    (CHAT, {"messages": [{"role": "user"}]}, "messages[0].content", "is missing"),
    (CHAT, {"messages": [{"role": "tool", "content": "x"}]}, "messages[0].role", "came 'tool'"),
    (CHAT, {"messages": [*HI, {"role": "assistant", "content": "x"}]}, "messages", "has the last word"),
    (CHAT, {"messages": [{"role": "user", "content": [{"type": "image_url", "text": "file:///etc/passwd"}]}]},
     "messages[0].content", "came 'image_url'"),
    (CHAT, {"messages": HI, "tools": [{"type": "function"}]}, "tools", "tools is not supported"),
    (CHAT, {"messages": HI, "top_logprobs": 2}, "top_logprobs", "not supported"),
]  # fmt: skip


@pytest.mark.parametrize(("path", "body", "param", "said"), WRONG, ids=range(len(WRONG)))
def test_a_wrong_request_is_one_line_about_its_field(
    chat: WebClient, path: str, body: Any, param: str | None, said: str
) -> None:
    status, answer, _ = chat.ask("POST", path, body)
    error = answer["error"]
    assert (status, error["param"]) == (400, param), error
    assert said.lower() in error["message"].lower()
    assert error["type"] == "invalid_request_error"
    assert "\n" not in error["message"]


def test_fields_that_change_nothing_are_taken(chat: WebClient) -> None:
    harmless = {
        "logprobs": None, "frequency_penalty": 0, "logit_bias": {}, "user": "somebody", "tools": [], "top_k": -1,
        "repetition_penalty": 1.0, "response_format": {"type": "text"}, "store": False,
    }  # fmt: skip
    assert chat.complete(prompt="x", max_tokens=1, best_of=1, echo=False, **harmless)["choices"]
    assert chat.post(CHAT, messages=HI, max_tokens=1, top_logprobs=0, **harmless)["choices"]


def test_other_models_routes_methods_and_kinds_of_content_are_refused(web: WebClient) -> None:
    for method, path, body, headers, expected in (
        ("POST", COMPLETIONS, {"prompt": "x", "model": "gpt-4"}, {}, 404),
        ("POST", COMPLETIONS, b"prompt=x", {"content-type": "application/x-www-form-urlencoded"}, 415),
        ("POST", COMPLETIONS, b"{}", {"content-type": "text/plain"}, 415),
        ("GET", COMPLETIONS, None, {}, 405),
        ("DELETE", "/v1/models", None, {}, 405),
        ("GET", "/v1/embeddings", None, {}, 404),
        ("GET", "/../../etc/passwd", None, {}, 404),
        ("POST", CHAT, {"messages": HI}, {}, 400),
    ):
        status, answer, _ = web.ask(method, path, body, headers)
        assert (status, list(answer["error"])) == (expected, ["message", "type", "param", "code"])


def test_a_name_that_leads_here_from_elsewhere_is_refused(web: WebClient) -> None:
    for host, expected in (("localhost:1", 200), ("127.0.0.1", 200), ("[::1]:80", 200), ("evil.example", 403),
                           ("localhost.evil.example", 403), ("[", 403)):  # fmt: skip
        assert web.ask("GET", "/health", headers={"host": host})[0] == expected


@pytest.fixture
def keyed(served: Served) -> Iterator[WebClient]:
    with web_server(*served, key=KEY, template=TEMPLATE) as client:
        yield client


def test_without_the_key_nothing_but_the_page_and_health_is_there(keyed: WebClient) -> None:
    paths = (("GET", "/v1/models"), ("GET", "/metrics"), ("GET", "/pipe"), ("POST", COMPLETIONS), ("GET", "/none"))
    for given in ("", "Bearer", "Bearer wrong", f"Basic {KEY}", f"Bearer {KEY}x", f"Bearer {KEY[:-1]}", "\xe9"):
        for method, path in paths:
            status, answer, headers = keyed.ask(method, path, headers={"authorization": given})
            assert (status, answer["error"]["code"]) == (401, "invalid_api_key")
            assert headers["www-authenticate"] == "Bearer"
    for path in ("/", "/health"):
        assert keyed.ask("GET", path, headers={"authorization": "", "host": "evil.example"})[0] == 200
    assert keyed.complete(prompt="x", max_tokens=1)["choices"]


def test_another_address_needs_a_key() -> None:
    for host in ("0.0.0.0", "::"):
        with pytest.raises(ValueError, match="--api-key"):
            listen(host, 0, None)
    listen("0.0.0.0", 0, KEY).close()
    for key in ("", " x", "\xe9", "a\nb"):
        with pytest.raises(ValueError, match="printable ASCII"):
            listen("127.0.0.1", 0, key)
    with pytest.raises(ValueError, match="--host nosuchhost"):
        listen("nosuchhost.invalid", 0, None)
    with listen("127.0.0.1", 0, None) as taken:
        taken.listen()
        with pytest.raises(OSError, match="cannot listen on 127"):
            listen("127.0.0.1", taken.getsockname()[1], None)


def test_what_is_too_large_is_refused_before_it_is_read(web: WebClient) -> None:
    with web.open_request(COMPLETIONS, b"", length=MOST_BODY + 1) as opened:
        assert b" 413 " in opened.recv(1000).split(b"\r\n")[0]
    connection = http.client.HTTPConnection("127.0.0.1", web.port, timeout=PATIENCE_S)
    pieces = (b"x" * 65536 for _ in range(MOST_BODY // 65536 + 2))
    try:
        connection.request("POST", COMPLETIONS, pieces, {"content-type": "application/json"}, encode_chunked=True)
        assert connection.getresponse().status == 413
    except (BrokenPipeError, ConnectionResetError):
        pass  # The answer came, and the connection went, while the rest was still being sent.
    finally:
        connection.close()
    with socket.create_connection(("127.0.0.1", web.port), timeout=PATIENCE_S) as opened:
        opened.sendall(b"GET /health HTTP/1.1\r\nhost: localhost\r\nx: " + b"y" * (MOST_HEADERS + 1000))
        assert opened.recv(1000).startswith(b"HTTP/1.1 400")
    with socket.create_connection(("127.0.0.1", web.port), timeout=PATIENCE_S) as opened:
        opened.sendall(b"what is this\r\n\r\n")
        head, body = opened.makefile("rb").read().split(b"\r\n\r\n")
        assert head.startswith(b"HTTP/1.1 400")
        assert json.loads(body)["error"]["message"] == "Invalid HTTP request received."
    assert web.ask("GET", "/health")[0] == 200


def test_one_connection_too_many_is_told_so(web: WebClient, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(http_limits, "MOST_CONNECTIONS", 0)
    status, answer, headers = web.ask("GET", "/v1/models")
    assert (status, headers["connection"]) == (503, "close")
    assert answer["error"]["message"] == "0 connections are open already: try again later"
    monkeypatch.undo()
    assert web.ask("GET", "/v1/models")[0] == 200


def test_slow_senders_are_left_and_others_are_served(web: WebClient, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(http_limits, "HEAD_S", 0.5)
    monkeypatch.setattr(handlers, "BODY_S", 0.5)
    slow_head = socket.create_connection(("127.0.0.1", web.port), timeout=PATIENCE_S)
    slow_head.sendall(b"POST / HTTP/1.1\r\n")
    silent = socket.create_connection(("127.0.0.1", web.port), timeout=PATIENCE_S)
    slow_body = web.open_request(COMPLETIONS, b"{", length=100)
    with slow_head, silent, slow_body:
        assert web.complete(prompt="x", max_tokens=2)["choices"]
        until = time.monotonic() + PATIENCE_S
        try:
            while time.monotonic() < until:  # byte by byte, and never done
                slow_head.sendall(b"x")
                time.sleep(0.05)
        except OSError:
            pass
        assert time.monotonic() < until
        assert silent.recv(1) == b""
        assert b" 408 " in slow_body.recv(1000).split(b"\r\n")[0]


def test_a_conversation_that_the_template_refuses_is_the_client_s_mistake(served: Served) -> None:
    with web_server(*served, template=ChatTemplate("{{ raise_exception('no ' + messages[0].content) }}")) as other:
        status, answer, _ = other.ask("POST", CHAT, {"messages": HI})
    assert (status, answer["error"]["message"]) == (400, "the model's chat template refuses these messages: no Hi")


EMULATED = {"layers": 4, "layer_s": 0.01}


def test_a_full_queue_is_429_and_a_deadline_ends_a_text() -> None:
    plan = Plan(backend="emulated", backend_options=EMULATED, stages=2, transport="inproc", cells=600)
    with serving(plan, waiting=1, strategy="iterative") as made, web_server(*made) as web:
        long = json.dumps({"prompt": "a b", "max_tokens": 500, "stream": True}).encode()
        running = web.open_request(COMPLETIONS, long)
        web.wait_until(lambda snapshot: snapshot.running == 1)
        waiting = web.open_request(COMPLETIONS, long)
        web.wait_until(lambda snapshot: snapshot.waiting == 1)
        status, answer, headers = web.ask("POST", COMPLETIONS, {"prompt": "a b", "max_tokens": 500})
        assert (status, answer["error"]["code"], headers["retry-after"]) == (429, "queue_full", "1")
        assert answer["error"]["type"] == "rate_limit_error"
        running.close()
        waiting.close()
        web.wait_until(lambda snapshot: snapshot.running == snapshot.waiting == 0)
        status, answer, _ = web.ask("POST", COMPLETIONS, {"prompt": "a b", "max_tokens": 500, "n": 5})
        assert (status, answer["error"]["code"]) == (429, "queue_full")
        web.wait_until(lambda snapshot: snapshot.running == snapshot.waiting == 0)
        ended = web.complete(prompt="a b", max_tokens=500, pipeinfer={"deadline_s": 0.5})
        assert ended["metrics"]["pipeinfer"]["choices"][0]["reason"] == "deadline"
        assert ended["usage"]["completion_tokens"] < 500


def test_of_requests_that_come_at_once_those_are_refused_that_neither_run_nor_may_wait() -> None:
    """Streams too, with the status of a refusal and not in the middle of an answer."""
    plan = Plan(backend="emulated", backend_options=EMULATED, stages=2, transport="inproc", cells=600)
    with serving(plan, waiting=1, strategy="iterative") as made, web_server(*made) as web:
        asked = json.dumps({"prompt": "a b", "max_tokens": 500, "stream": True}).encode()
        with head_held_up(made[1]):
            opened = [web.open_request(COMPLETIONS, asked) for _ in range(5)]
            web.wait_until(lambda snapshot: snapshot.waiting == 5)
        web.wait_until(lambda snapshot: snapshot.done.get("refused") == 3)
        statuses = sorted(connection.recv(1000).split()[1] for connection in opened)
        assert statuses == [b"200"] * 2 + [b"429"] * 3
        for connection in opened:
            connection.close()
        web.wait_until(lambda snapshot: snapshot.running == snapshot.waiting == 0)
