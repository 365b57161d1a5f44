"""`generate --check`: the same tokens, a tie of coarse arithmetic, or an error that says where."""

import json
import subprocess
import sys
from typing import Any

import msgspec
import pytest
import typer

from pipeinfer.cluster.launch import Cluster
from pipeinfer.cluster.plan import Plan
from pipeinfer.commands.check import Check, check, single_stage
from pipeinfer.engine.sampling import Sampling
from pipeinfer.plugins import open_strategy
from pipeinfer.prompt_sets import prompt_named
from pipeinfer.results.divergence import Divergence, divergence
from pipeinfer.results.trial import Trial

PLAN = Plan(transport="inproc", stages=2)
TOKENS = 24
WARM = Sampling(temperature=0.8, top_p=0.95, seed=3)


@pytest.fixture(scope="module")
def generated() -> tuple[list[int], Trial]:
    """A prompt, and what PipeInfer says after it."""
    with Cluster(PLAN) as cluster:
        prompt = cluster.tokenizer.encode("def merge(left, right):\n")
        return prompt, cluster.generate(prompt, open_strategy("pipeinfer", {}), max_tokens=TOKENS, sampling=WARM)


def test_the_same_tokens_are_said_to_be_the_same(generated: tuple[list[int], Trial]) -> None:
    checked = check(PLAN, generated[0], WARM, generated[1])
    assert checked == Check(TOKENS, None)
    assert checked.text == "check: the same 24 token ids as one by one on a single stage"
    checked.conclude()


def test_a_wrong_token_is_named_and_ends_with_an_exit_code(
    generated: tuple[list[int], Trial], capsys: pytest.CaptureFixture[str]
) -> None:
    prompt, trial = generated
    ids = trial.token_ids
    wrong = msgspec.structs.replace(trial, token_ids=(*ids[:7], ids[7] + 1, *ids[8:]))
    checked = check(PLAN, prompt, WARM, wrong)
    assert checked.divergence is not None
    assert (checked.divergence.at, checked.divergence.precision, checked.passed) == (7, "float32", False)
    assert checked.divergence.margin is not None
    with pytest.raises(typer.Exit) as left:
        checked.conclude()
    assert left.value.exit_code == 1
    assert capsys.readouterr().err.startswith("check: the token ids differ from those one by one on a single")


@pytest.mark.parametrize(
    ("margin", "precision", "is_tie"),
    [
        (0.0, "float32", False),
        (1e-7, "float32", False),
        (0.05, "float16", True),
        (0.1, "float16", False),
        (0.1, "bfloat16", True),
        (0.1, "q4_k", True),
        (0.7, "bfloat16", False),
        (None, "bfloat16", False),
    ],
)
def test_what_is_a_tie_depends_on_the_arithmetic(margin: float | None, precision: str, is_tie: bool) -> None:
    assert Divergence(3, margin, precision).is_tie == is_tie
    assert Check(9, Divergence(3, margin, precision)).passed == is_tie


def test_a_text_without_tokens_is_what_it_should_be(generated: tuple[list[int], Trial]) -> None:
    assert check(PLAN, generated[0], WARM, msgspec.structs.replace(generated[1], token_ids=())).passed


def test_the_single_stage_is_the_whole_target_on_the_first_rank() -> None:
    plan = Plan(workers=("tcp://a:1", "tcp://b:1"), key="key", layers="0.5,0.5", latency_s=1.0, cpu_share=0.5)
    alone = single_stage(plan)
    assert (alone.workers, alone.stages, alone.layers, alone.draft) == (("tcp://a:1",), 1, None, None)
    assert (alone.latency_s, alone.cpu_share, alone.key) == (0.0, 1.0, "key")


def run(*options: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "pipeinfer", "generate", "--tokens", str(TOKENS), "--nodes", "2", *options]
    return subprocess.run(command, text=True, capture_output=True, timeout=120, check=False)


def test_the_command_checks_after_it_has_generated() -> None:
    done = run("--check", "--transport", "inproc", "--json")
    assert done.returncode == 0
    assert json.loads(done.stdout)["check"] == {"passed": True, "divergence": None}
    assert "check: the same 24 token ids" in done.stderr


# Coarse arithmetic ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("backend", "options"),
    [("llamacpp", {"quantisation": "q8_0"}), ("torch", {"device": "cpu", "dtype": "bfloat16"})],
    ids=["q8_0", "bfloat16"],
)
def test_in_coarse_arithmetic_texts_part_at_ties_alone(backend: str, options: dict[str, Any]) -> None:
    pytest.importorskip({"torch": "transformers", "llamacpp": "llama_cpp"}[backend], reason=f"{backend} is missing")
    plan = Plan(backend=backend, backend_options=options, transport="inproc", stages=2)
    found = []
    with Cluster(plan) as split, Cluster(single_stage(plan)) as alone:
        for name in ("socket-server", "date-difference"):
            prompt = split.tokenizer.encode(prompt_named(name).text)
            one, other = [
                cluster.generate(prompt, open_strategy(*strategy), max_tokens=48, stop_ids=(), margins=True)
                for cluster, strategy in ((split, ("speculative", {"k": 4})), (alone, ("iterative", {})))
            ]
            assert one.precision == options.get("dtype", options.get("quantisation"))
            assert len(other.margins) == len(other.token_ids)
            found.append(divergence(one, other))
    parted = [one for one in found if one is not None]
    assert all(one.is_tie for one in parted), [one.text for one in parted]
    if not parted:
        pytest.skip("on this processor no text parted")
