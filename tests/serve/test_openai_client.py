"""OpenAI's own Python client, as people use it."""

from collections.abc import Iterator
from typing import Any

import pytest
from web_client import TEMPLATE, Served, WebClient, web_server

KEY = "sk-test"
HI = [{"role": "user", "content": "Hi"}]


@pytest.fixture(scope="module")
def openai() -> Any:
    """Imported where it is used, not by every worker of a run: it is large."""
    return pytest.importorskip("openai", reason="openai is not installed: pip install 'pipeinfer[test]'")


@pytest.fixture(scope="module")
def keyed(served: Served) -> Iterator[WebClient]:
    with web_server(*served, key=KEY, template=TEMPLATE) as client:
        yield client


@pytest.fixture(scope="module")
def client(openai: Any, keyed: WebClient) -> Iterator[Any]:
    with openai.OpenAI(base_url=f"{keyed.url}/v1", api_key=KEY, max_retries=0) as made:
        yield made


def test_models(client: Any) -> None:
    (model,) = client.models.list().data
    assert (model.id, model.owned_by) == ("target", "pipeinfer")


def test_completions_whole_and_streamed(client: Any) -> None:
    asked = {"model": "target", "prompt": "import os\n", "max_tokens": 12, "temperature": 0.7, "seed": 1}
    whole = client.completions.create(**asked)
    assert whole.usage is not None
    assert (whole.choices[0].finish_reason, whole.usage.completion_tokens) == ("length", 12)
    pieces = client.completions.create(**asked, stream=True)
    assert "".join(chunk.choices[0].text for chunk in pieces) == whole.choices[0].text


def test_chat_whole_and_streamed(client: Any) -> None:
    asked = {"model": "target", "messages": HI, "max_completion_tokens": 12, "temperature": 0}
    whole = client.chat.completions.create(**asked)
    message = whole.choices[0].message
    assert message.role == "assistant"
    *chunks, last = client.chat.completions.create(**asked, stream=True, stream_options={"include_usage": True})
    assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks) == message.content
    assert last.usage is not None
    assert whole.usage is not None
    assert last.usage.total_tokens == whole.usage.total_tokens
    assert last.usage.prompt_tokens_details is not None
    held = last.usage.prompt_tokens_details.cached_tokens
    assert held == whole.usage.prompt_tokens - 1, "the second time they need not be computed"
    assert last.model_extra is not None
    assert last.model_extra["metrics"]["speculative_decoding"]["num_spec_steps"] >= 0


def test_what_this_server_has_of_its_own_goes_into_the_extra_body(client: Any) -> None:
    answer = client.completions.create(
        model="target", prompt="x", max_tokens=2, extra_body={"pipeinfer": {"strategy": "iterative"}}
    )
    assert answer.model_extra is not None
    assert answer.model_extra["metrics"]["pipeinfer"]["choices"][0]["strategy"] == "iterative"


def test_errors_are_those_that_the_client_knows(openai: Any, client: Any, keyed: WebClient) -> None:
    with pytest.raises(openai.BadRequestError, match="logprobs is not supported") as wrong:
        client.chat.completions.create(model="target", messages=HI, logprobs=True)
    assert (wrong.value.param, wrong.value.code) == ("logprobs", "unsupported_value")
    with pytest.raises(openai.NotFoundError, match="no model 'another'"):
        client.completions.create(model="another", prompt="x")
    with (
        openai.OpenAI(base_url=f"{keyed.url}/v1", api_key="wrong", max_retries=0) as stranger,
        pytest.raises(openai.AuthenticationError, match="expected the server's key"),
    ):
        stranger.models.list()
