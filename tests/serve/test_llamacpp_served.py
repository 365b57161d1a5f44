"""A public model served, through OpenAI's client: its texts are those of `pipeinfer.Pipeline` on the same prompts."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from test_command import server

from pipeinfer import Pipeline

pytest.importorskip("llama_cpp", reason="needs llama-cpp-python: pip install pipeinfer[llamacpp]")

PROMPT = "The capital of France is"
TOKENS = 10
END_S = 200.0

pytestmark = pytest.mark.timeout(2 * END_S)


@pytest.fixture(scope="module")
def settings(gemma: Path) -> dict[str, Any]:
    """Two stages. Few cells: where no text may part from another at a tie, each rank tries as far as they go how many
    rows it may compute at once, before it is there."""
    return {"backend": "llamacpp", "target": str(gemma), "nodes": 2, "cells": 32}


@pytest.fixture(scope="module")
def client(settings: dict[str, Any]) -> Iterator[Any]:
    """It guesses, without a draft model."""
    openai = pytest.importorskip("openai", reason="openai is not installed: pip install 'pipeinfer[test]'")
    options = [word for name, value in settings.items() for word in (f"--{name}", str(value))]
    with server(*options, "--drafting", "ngram", "--exact") as (_, url), openai.OpenAI(
        base_url=f"{url}/v1", api_key="none", max_retries=0
    ) as made:
        yield made


@pytest.fixture(scope="module")
def pipeline(settings: dict[str, Any]) -> Iterator[Pipeline]:
    with Pipeline(draft=None, transport="inproc", exact=True, **settings) as made:
        yield made


@pytest.mark.parametrize("sampling", [{"temperature": 0}, {"temperature": 0.8, "seed": 7}], ids=["greedy", "sampled"])
def test_completions_are_what_a_pipeline_generates(
    client: Any, pipeline: Pipeline, sampling: dict[str, Any]
) -> None:
    (model,) = client.models.list().data
    asked = {"model": model.id, "prompt": PROMPT, "max_tokens": TOKENS, **sampling}
    whole = client.completions.create(**asked)
    generated = pipeline.generate(PROMPT, tokens=TOKENS, **sampling)
    assert whole.choices[0].text == generated.text
    assert whole.usage is not None
    assert whole.usage.prompt_tokens == len(generated.prompt_ids)
    pieces = client.completions.create(**asked, stream=True)
    assert "".join(chunk.choices[0].text for chunk in pieces) == generated.text
