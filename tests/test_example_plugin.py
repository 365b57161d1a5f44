"""A package of somebody else's adds a backend and a strategy without touching this repository."""

import json
import os
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

import pytest

EXAMPLE = Path(__file__).parent / "example_plugin"


@pytest.fixture(scope="module")
def environment(tmp_path_factory: pytest.TempPathFactory) -> Mapping[str, str]:
    """The plug-in, installed into a folder of its own that is on the path."""
    folder = tmp_path_factory.mktemp("site")
    pip = [sys.executable, "-m", "pip", "install", "-q", "--no-deps", "--no-build-isolation", "--no-index"]
    subprocess.run([*pip, "--target", folder, EXAMPLE], check=True, timeout=120)
    return {**os.environ, "PYTHONPATH": str(folder)}


def run(environment: Mapping[str, str], *arguments: str) -> str:
    command = [sys.executable, "-m", *arguments]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_it_passes_the_conformance_kit(environment: Mapping[str, str]) -> None:
    output = run(environment, "pytest", "-p", "no:cacheprovider", "-c", os.devnull, str(EXAMPLE / "tests"))
    assert "passed" in output


def test_it_is_listed(environment: Mapping[str, str]) -> None:
    listed = {(plugin["name"], plugin["distribution"], plugin["state"])
              for plugin in json.loads(run(environment, "pipeinfer", "plugins", "--json"))}  # fmt: skip
    assert {("recency", "pipeinfer-example", "ok"), ("follow", "pipeinfer-example", "ok")} <= listed


def test_its_strategy_gives_the_tokens_of_iterative_decoding_on_its_backend(environment: Mapping[str, str]) -> None:
    common = ("--backend", "recency", "--target", "recency", "--draft", "recency:shallow", "--transport", "inproc",
              "--tokens", "48", "--temperature", "0.8", "--seed", "3", "--json")  # fmt: skip
    found = {
        name: json.loads(run(environment, "pipeinfer", "generate", "Once upon", "--strategy", name, *common))
        for name in ("iterative", "follow", "pipeinfer")
    }
    assert found["follow"]["token_ids"] == found["pipeinfer"]["token_ids"] == found["iterative"]["token_ids"]
    assert len(found["iterative"]["token_ids"]) == 48
    assert found["follow"]["runs"]["speculative"] > 0
