"""Whatever a request says, the answer is a text or one line about what is wrong with it: no 500, and no hang."""

import json
import re
import socket
import time
from collections import Counter
from typing import Any

import msgspec
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from web_client import WebClient

from pipeinfer.serve.request_schema import NEUTRAL, WITHOUT_BEARING, ChatRequest, CompletionRequest, TextRequest

BOUNDED = settings(
    max_examples=120, deadline=None, derandomize=True, database=None,
    suppress_health_check=list(HealthCheck), phases=[Phase.generate, Phase.shrink],
)  # fmt: skip
MOST_S = 60.0

ANYTHING = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=6,
)
TEXT = st.text(max_size=30)
NUMBER = st.integers(-3, 5) | st.floats(-1, 3) | st.integers()

FIELDS: dict[str, st.SearchStrategy[Any]] = {
    "temperature": NUMBER,
    "top_p": NUMBER,
    "top_k": NUMBER,
    "seed": st.integers(),
    "stop": TEXT | st.lists(TEXT, max_size=3),
    "n": st.integers(0, 3),
    "stream": st.booleans(),
    "stream_options": st.fixed_dictionaries({}, optional={"include_usage": st.booleans(), "x": ANYTHING}),
    "ignore_eos": st.booleans(),
    "model": st.just("target") | TEXT,
    "pipeinfer": st.fixed_dictionaries(
        {},
        optional={
            "strategy": st.sampled_from(["iterative", "speculative", "pipeinfer", "specpipe", "adaptive", "dsi", ""]),
            "options": st.dictionaries(st.sampled_from(["k", "draft", "width", "branches", "z"]), ANYTHING, max_size=2),
            "deadline_s": NUMBER,
            "token_ids": st.booleans(),
        },
    ),
}

ODD = dict.fromkeys([*NEUTRAL, *WITHOUT_BEARING, "unknown"], ANYTHING)

PROMPT = TEXT | st.lists(TEXT, max_size=3) | st.lists(st.integers(-1, 2100), max_size=5) | ANYTHING
MESSAGE = st.fixed_dictionaries(
    {"role": st.sampled_from(["system", "user", "assistant", "developer", "tool"]), "content": TEXT | ANYTHING},
    optional={"name": TEXT},
)
TEXTS = {
    "/v1/completions": ("prompt", PROMPT),
    "/v1/chat/completions": ("messages", st.lists(MESSAGE, max_size=3) | ANYTHING),
}


@st.composite
def bodies(draw: Any, path: str) -> dict[str, Any]:
    """What is asked, with some fields, and now and then one that is not for it."""
    name, text = TEXTS[path]
    chosen = draw(st.lists(st.sampled_from(sorted(FIELDS)), max_size=3, unique=True))
    odd = draw(st.lists(st.sampled_from(sorted(ODD)), max_size=1)) if draw(st.integers(0, 4)) == 0 else []
    return {name: draw(text)} | {field: draw({**FIELDS, **ODD}[field]) for field in [*chosen, *odd]}


answered: Counter[int] = Counter()
"""Statuses of the whole file."""


def hold(web: WebClient, path: str, body: bytes) -> None:
    """The promise."""
    start = time.monotonic()
    status, answer, headers = web.ask("POST", path, body)
    assert time.monotonic() - start < MOST_S
    answered[status] += 1
    assert status in (200, 400, 404), (status, answer)
    if status != 200:
        assert answer["error"].keys() == {"message", "type", "param", "code"}
        assert answer["error"]["message"]
    elif headers["content-type"].startswith("text/event-stream"):
        assert answer.endswith("data: [DONE]\n\n")
        assert '"error"' not in answer
    else:
        # What a deadline ends may not have begun.
        assert answer["usage"]["completion_tokens"] > 0 or b'"deadline_s"' in body


@BOUNDED
@given(path=st.sampled_from(sorted(TEXTS)), data=st.data(), tokens=st.integers(1, 3))
def test_bodies_of_the_schema(chat: WebClient, path: str, data: st.DataObject, tokens: int) -> None:
    body = {**data.draw(bodies(path)), "max_tokens": tokens}
    hold(chat, path, json.dumps(body).encode())


KINDS: dict[str, type[TextRequest]] = {"/v1/completions": CompletionRequest, "/v1/chat/completions": ChatRequest}


def of_schema(schema: dict[str, Any], known: dict[str, Any]) -> st.SearchStrategy[Any]:
    """What a JSON schema allows, short where it may be long; `known` are the schemas that others name."""
    if "$ref" in schema:
        return of_schema(known[schema["$ref"].rpartition("/")[2]], known)
    if "anyOf" in schema:
        return st.one_of([of_schema(one, known) for one in schema["anyOf"]])
    least = schema.get("minimum", schema.get("exclusiveMinimum", -(2**63)))
    most = schema.get("maximum", 2**64)
    match schema["type"]:
        case "object" if "properties" in schema:
            fields = {name: of_schema(field, known) for name, field in schema["properties"].items()}
            needed = {name: fields.pop(name) for name in schema.get("required", ())}
            return st.fixed_dictionaries(needed, optional=fields)
        case "object":
            return st.dictionaries(st.text(max_size=8), of_schema(schema["additionalProperties"], known), max_size=2)
        case "array":
            return st.lists(of_schema(schema["items"], known), min_size=schema.get("minItems", 0), max_size=3)
        case "integer":
            return st.integers(least, schema.get("exclusiveMaximum", most + 1) - 1) | st.just(max(least, 1))
        case "number":
            return st.floats(max(least, -1e9), min(most, 1e9), exclude_min="exclusiveMinimum" in schema)
        case simple:
            return {"string": st.text(max_size=30), "boolean": st.booleans(), "null": st.none()}[simple]


def request_of(kind: type[TextRequest]) -> st.SearchStrategy[dict[str, Any]]:
    """Any that the schema allows, but for how much it asks for."""
    schema = msgspec.json.schema(kind)
    most = {"max_tokens": st.integers(1, 3), "max_completion_tokens": st.integers(1, 3), "n": st.integers(1, 3)}
    own = schema["$defs"][kind.__name__]["properties"]
    drawn = of_schema(schema, schema["$defs"])
    return st.tuples(drawn, st.fixed_dictionaries({name: most[name] for name in most if name in own})).map(
        lambda pair: pair[0] | pair[1])  # fmt: skip


@BOUNDED
@given(path=st.sampled_from(sorted(KINDS)), data=st.data())
def test_whatever_the_schema_allows(chat: WebClient, path: str, data: st.DataObject) -> None:
    """Every field of it, also those that a later version will have."""
    hold(chat, path, json.dumps(data.draw(request_of(KINDS[path]))).encode())


ODD_BYTES = st.binary(max_size=20)
TARGETS = ["/", "/health", "/metrics", "/v1/models", *TEXTS, "/v1", "/pipe", "//", "/%00", "*", "http://evil.example/"]
HEADERS: dict[str, list[str]] = {
    "host": ["localhost", "127.0.0.1:80", "evil.example", ""],
    "content-length": ["0", "2", "5", "-1", "99999999999999999999", "x"],
    "content-type": ["application/json", "application/json; charset=utf-16", "text/plain", "multipart/form-data"],
    "transfer-encoding": ["chunked", "gzip", "chunked, chunked"],
    "connection": ["close", "keep-alive", "upgrade"],
    "upgrade": ["websocket", "h2c"],
    "expect": ["100-continue", "miracles"],
    "authorization": ["Bearer x", "Basic eA=="],
    "content-encoding": ["gzip"],
}


@st.composite
def raw_requests(draw: Any) -> bytes:
    """What might be a request, with headers that go together or do not, and a body that fits them or not."""
    method = draw(st.sampled_from([b"GET", b"POST", b"HEAD", b"PUT", b"OPTIONS", b"CONNECT"]) | ODD_BYTES)
    target = draw(st.sampled_from(TARGETS).map(str.encode) | ODD_BYTES)
    names = draw(st.lists(st.sampled_from(sorted(HEADERS)), max_size=4))
    lines = [f"{name}: {draw(st.sampled_from(HEADERS[name]))}".encode() for name in names]
    lines += draw(st.lists(ODD_BYTES, max_size=1))
    body = draw(st.sampled_from([b"", b"{}", b"5\r\n{}\r\n0\r\n\r\n", b"2\r\n{}\r\n0\r\n\r\n"]) | ODD_BYTES)
    request = b"\r\n".join([method + b" " + target + b" HTTP/1.1", *lines, b"", body])
    return bytes(request[: draw(st.integers(0, len(request)))]) if draw(st.booleans()) else request


@BOUNDED
@given(request=raw_requests() | st.binary(max_size=200))
def test_any_bytes_on_a_connection(chat: WebClient, request: bytes) -> None:
    with socket.create_connection(("127.0.0.1", chat.port), timeout=MOST_S) as opened:
        opened.sendall(request)
        opened.shutdown(socket.SHUT_WR)
        said = b""
        try:
            while some := opened.recv(65536):
                said += some
        except ConnectionResetError:
            pass  # It left, with bytes of ours unread.
    statuses = re.findall(rb"HTTP/1\.1 (\d+)", said)
    assert all(200 <= int(status) < 500 for status in statuses), said
    assert statuses or not said


@BOUNDED
@given(path=st.sampled_from(sorted(TEXTS)), body=st.binary(max_size=60) | ANYTHING.map(json.dumps).map(str.encode))
def test_any_bytes(chat: WebClient, path: str, body: bytes) -> None:
    hold(chat, path, body)


def test_the_server_is_well_after_all_that(chat: WebClient) -> None:
    assert min(answered[200], answered[400]) > 10
    assert chat.complete(prompt="x", max_tokens=1)["choices"]
    chat.wait_until(lambda snapshot: snapshot.running == snapshot.waiting == 0)
