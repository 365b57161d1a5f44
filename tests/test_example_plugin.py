"""A package of somebody else's adds a backend, a strategy and a transport without touching this repository."""

import json
import os
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest

EXAMPLE = Path(__file__).parent / "example_plugin"


@pytest.fixture(scope="module")
def environment(tmp_path_factory: pytest.TempPathFactory) -> Mapping[str, str]:
    """The plug-in, installed into a folder of its own that is on the path."""
    folder = tmp_path_factory.mktemp("site")
    pip = [sys.executable, "-m", "pip", "install", "-q", "--no-deps", "--no-build-isolation", "--no-index"]
    subprocess.run([*pip, "--target", folder, EXAMPLE], check=True, timeout=120)
    return {**os.environ, "PYTHONPATH": str(folder)}


def run(environment: Mapping[str, str], *command: str) -> str:
    """What Python says of it."""
    done = subprocess.run([sys.executable, *command], env=environment, capture_output=True, text=True, timeout=120,
                          check=False)  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


LINES = """
import json, sys
from pipeinfer.cli import run
sys.exit(max([run(["generate", *line, "--json"]) for line in json.loads(sys.argv[1])]))
"""


def generated(environment: Mapping[str, str], **lines: Sequence[str]) -> dict[str, Any]:
    """What each line of `pipeinfer generate` says, by its name; one process runs them one after another."""
    said = run(environment, "-c", LINES, json.dumps(list(lines.values())))
    return dict(zip(lines, map(json.loads, said.splitlines()), strict=True))


def test_it_passes_the_conformance_kit(environment: Mapping[str, str]) -> None:
    output = run(environment, "-m", "pytest", "-p", "no:cacheprovider", "-c", os.devnull, str(EXAMPLE / "tests"))
    assert "passed" in output


def test_it_is_listed(environment: Mapping[str, str]) -> None:
    listed = {(plugin["name"], plugin["distribution"], plugin["state"])
              for plugin in json.loads(run(environment, "-m", "pipeinfer", "plugins", "--json"))}  # fmt: skip
    for name in ("recency", "follow", "alternate", "phrases"):
        assert (name, "pipeinfer-example", "ok") in listed


def test_its_strategy_gives_the_tokens_of_iterative_decoding_on_its_backend(environment: Mapping[str, str]) -> None:
    common = ("--backend", "recency", "--target", "recency", "--draft", "recency:shallow", "--transport", "inproc",
              "--tokens", "48", "--temperature", "0.8", "--seed", "3")  # fmt: skip
    names = ("iterative", "follow", "pipeinfer")
    found = generated(environment, **{name: ("Once upon", "--strategy", name, *common) for name in names})
    assert found["follow"]["token_ids"] == found["pipeinfer"]["token_ids"] == found["iterative"]["token_ids"]
    assert len(found["iterative"]["token_ids"]) == 48
    assert found["follow"]["runs"]["speculative"] > 0


HELD_AGAINST = """
import sys
from pathlib import Path
from msgspec.structs import replace
from pipeinfer.report.write import conclude
from pipeinfer.results import load
from pipeinfer.results.records import Store
from pipeinfer.study.recipes import Contender, read_recipe
from pipeinfer.study.run import run

recipe, folder = read_recipe("phases"), Path(sys.argv[1])
mine = {"foresight": Contender(), "epsilon-greedy": Contender(), "follow": Contender(options={"k": [1, 2]})}
sweep = replace(recipe.simulated, nodes=[9], seeds=[0], tokens=192)
recipe = replace(recipe, simulated=sweep, strategies={**recipe.strategies, **mine})
store = Store(folder)
run(recipe, store, 1, lambda *_: None)
conclude([recipe], store, folder)
best = load(folder).trials.query("best and status == 'passed'")
print(best.pivot(index="acceptance", columns="contender", values="tokens_per_s").to_json(orient="index"))
"""


def test_adaptive_is_held_against_fixed_lengths_foresight_and_measured_reward(
    environment: Mapping[str, str], tmp_path: Path
) -> None:
    """Its own strategies stand in a recipe, are swept by what they say themselves, and drawn."""
    said = run(environment, "-c", HELD_AGAINST, str(tmp_path))
    found = {float(rate): there for rate, there in json.loads(said).items()}
    diverse, alternating, repetitive = (found[rate] for rate in sorted(found))
    for there in (diverse, alternating, repetitive):
        assert there["adaptive"] > 0.9 * max(there["speculative"], there["pipeinfer"])
        assert there["adaptive"] > 0.8 * there["foresight"]
        assert there["adaptive"] > 1.3 * there["epsilon-greedy"]
    assert alternating["adaptive"] > 1.05 * max(alternating["speculative"], alternating["pipeinfer"])
    said = (tmp_path / "report.md").read_text()
    assert "follow k from 2 up to " in said
    assert "epsilon-greedy" in (tmp_path / "figures" / "phases-generation-speed-by-run-size.svg").read_text()


UNIX = ("1 2", "--backend", "emulated", "--backend-option", "layer_s=0.0001", "--nodes", "2", "--tokens", "6")


def test_ranks_are_launched_over_its_transport(environment: Mapping[str, str]) -> None:
    found = generated(environment, **{name: (*UNIX, "--transport", name) for name in ("unix", "inproc")})
    assert found["unix"]["token_ids"] == found["inproc"]["token_ids"]
    assert len(found["unix"]["token_ids"]) == 6


def test_its_workers_are_reached_by_their_scheme_and_need_no_key(
    environment: Mapping[str, str], tmp_path: Path
) -> None:
    addresses = [f"unix://{tmp_path / str(rank)}" for rank in range(2)]
    command = [sys.executable, "-m", "pipeinfer", "worker", "--once"]
    workers = [
        subprocess.Popen([*command, "--rank", str(rank), "--listen", address], env=environment, stdout=subprocess.PIPE,
                         text=True)
        for rank, address in enumerate(addresses)
    ]  # fmt: skip
    try:
        for worker, address in zip(workers, addresses, strict=True):
            assert worker.stdout is not None
            assert worker.stdout.readline() == f"listening {address}\n"
        found = generated(environment, workers=(*UNIX, "--workers", ",".join(addresses)))
        assert len(found["workers"]["token_ids"]) == 6
        assert [worker.wait(60) for worker in workers] == [0, 0]
    finally:
        for worker in workers:
            worker.kill()
            worker.communicate()


def test_its_draft_policy_and_a_strategy_of_its_own_go_together(environment: Mapping[str, str]) -> None:
    common = ("--backend", "recency", "--target", "recency", "--transport", "inproc", "--nodes", "2", "--tokens", "48")
    phrases = ("--drafting", "phrases", "--drafting-option", "least=2")
    names = {"iterative": (), "alternate": (), "pipeinfer": phrases}
    found = generated(
        environment, **{name: ("a b a b", "--strategy", name, *more, *common) for name, more in names.items()}
    )
    assert found["alternate"]["token_ids"] == found["pipeinfer"]["token_ids"] == found["iterative"]["token_ids"]
    assert len(found["iterative"]["token_ids"]) == 48
    assert found["alternate"]["runs"]["speculative"] > 0
