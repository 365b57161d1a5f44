"""A public model served, through OpenAI's client: its texts are those of `pipeinfer generate` on the same prompts."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from processes import start
from test_command import server

openai = pytest.importorskip("openai", reason="openai is not installed: pip install 'pipeinfer[test]'")
pytest.importorskip("llama_cpp", reason="needs llama-cpp-python: pip install pipeinfer[llamacpp]")

PROMPT = "The capital of France is"
TOKENS = 10
END_S = 200.0

pytestmark = pytest.mark.timeout(2 * END_S)


@pytest.fixture(scope="module")
def options(gemma: Path) -> list[str]:
    """Two stages, guesses without a draft model, and no text that parts from another at a tie. Few cells: each rank
    tries as far as they go how many rows it may compute at once, before it is there."""
    return ["--backend", "llamacpp", "--target", str(gemma), "--nodes", "2", "--cells", "64", "--drafting", "ngram",
            "--exact"]  # fmt: skip


@pytest.fixture(scope="module")
def client(options: list[str]) -> "Iterator[openai.OpenAI]":
    with server(*options) as (_, url), openai.OpenAI(base_url=f"{url}/v1", api_key="none", max_retries=0) as made:
        yield made


def generated(options: list[str], *arguments: str) -> dict[str, Any]:
    """What the command says."""
    process = start("generate", *arguments, *options, "--tokens", str(TOKENS), "--json")
    output, errors = process.communicate(timeout=END_S)
    assert process.returncode == 0, errors
    return dict(json.loads(output))


@pytest.mark.parametrize("sampling", [{"temperature": 0}, {"temperature": 0.8, "seed": 7}], ids=["greedy", "sampled"])
def test_completions_are_what_generate_says(
    client: "openai.OpenAI", options: list[str], sampling: dict[str, float]
) -> None:
    (model,) = client.models.list().data
    asked = {"model": model.id, "prompt": PROMPT, "max_tokens": TOKENS, **sampling}
    whole = client.completions.create(**asked)
    said = generated(options, PROMPT, *[word for name, value in sampling.items() for word in (f"--{name}", str(value))])
    assert whole.choices[0].text == said["text"]
    assert whole.usage is not None
    assert whole.usage.prompt_tokens == said["prompt_tokens"]
    pieces = client.completions.create(**asked, stream=True)
    assert "".join(chunk.choices[0].text for chunk in pieces) == said["text"]
