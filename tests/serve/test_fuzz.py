"""Whatever a body says, the answer is a text or one line about what is wrong with it: no 500, and no hang."""

import json
import time
from collections import Counter
from typing import Any

from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from web_client import WebClient

from pipeinfer.serve.request_schema import NEUTRAL, WITHOUT_BEARING

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
    "model": st.just("builtin:target") | TEXT,
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
        assert answer["usage"]["completion_tokens"] > 0


@BOUNDED
@given(path=st.sampled_from(sorted(TEXTS)), data=st.data(), tokens=st.integers(1, 3))
def test_bodies_of_the_schema(chat: WebClient, path: str, data: st.DataObject, tokens: int) -> None:
    body = {**data.draw(bodies(path)), "max_tokens": tokens}
    hold(chat, path, json.dumps(body).encode())


@BOUNDED
@given(path=st.sampled_from(sorted(TEXTS)), body=st.binary(max_size=60) | ANYTHING.map(json.dumps).map(str.encode))
def test_any_bytes(chat: WebClient, path: str, body: bytes) -> None:
    hold(chat, path, body)


def test_the_server_is_well_after_all_that(chat: WebClient) -> None:
    assert min(answered[200], answered[400]) > 10
    assert chat.complete(prompt="x", max_tokens=1)["choices"]
    chat.wait_until(lambda snapshot: snapshot.running == snapshot.waiting == 0)
