"""A target whose logits are not finite ends in one line that says where and what to do: never in a text or a speed."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from pipeinfer.cluster.launch import Cluster
from pipeinfer.cluster.plan import Plan
from pipeinfer.core.messages import KvSeqCp, KvSeqRm
from pipeinfer.engine.backend import Batch, chain
from pipeinfer.engine.sampling import Sampling
from pipeinfer.errors import LaunchError
from pipeinfer.plugins import open_backend, open_strategy
from pipeinfer.results.trial import Trial
from pipeinfer.study.cells import run_live
from pipeinfer.study.points import LiveCell
from pipeinfer.study.recipes import Live
from pipeinfer.testing.backends import never
from pipeinfer.testing.models import write_llama

PROMPT = [40, 41, 42, 43]
LINE = r"rank 1 \(\w+\): the logits for position 4 are not finite \(the best is nan\): .*choose a data type"
GREEDY, WARM, FILTERED = Sampling(), Sampling(0.8, seed=1), Sampling(0.8, 40, 0.9, 1)


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """A sound model, and the same with one weight of a layer in the first stage, or in the last, that is no number."""
    folder = tmp_path_factory.mktemp("models")
    sound = write_llama(folder / "sound", layers=2)
    return {
        "sound": str(sound),
        "first": str(damaged(sound, folder / "first", 0)),
        "last": str(damaged(sound, folder / "last", 1)),
    }


def damaged(sound: Path, folder: Path, layer: int) -> Path:
    folder.mkdir()
    for name in ("config.json", "tokenizer.json"):
        (folder / name).write_bytes((sound / name).read_bytes())
    tensors = load_file(sound / "model.safetensors")
    tensors[f"model.layers.{layer}.mlp.down_proj.weight"][5, 7] = np.nan
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    return folder


def text(target: str, draft: str | None, strategy: str, sampling: Sampling, backend: str = "numpy") -> tuple[int, ...]:
    plan = Plan(backend=backend, target=target, draft=draft, stages=2, transport="inproc", cells=256)
    with Cluster(plan) as cluster:
        chosen = open_strategy(strategy, {})
        return cluster.generate(PROMPT, chosen, max_tokens=6, sampling=sampling, stop_ids=()).token_ids


@pytest.mark.parametrize("sampling", [GREEDY, WARM, FILTERED], ids=["greedy", "warm", "filtered"])
@pytest.mark.parametrize("strategy", ["iterative", "speculative", "pipeinfer"])
def test_the_last_stage_says_that_logits_are_not_finite(
    models: dict[str, str], strategy: str, sampling: Sampling
) -> None:
    with pytest.raises(LaunchError, match=LINE):
        text(models["last"], None if strategy == "iterative" else models["sound"], strategy, sampling)


@pytest.mark.parametrize("backend", ["numpy", "torch", "llamacpp"])
def test_hidden_states_that_are_not_finite_lead_there_too(models: dict[str, str], backend: str) -> None:
    pytest.importorskip({"torch": "torch", "llamacpp": "llama_cpp", "numpy": "numpy"}[backend])
    # llamacpp tries what it has cut, and finds it there already; whichever of the two ranks is first says so.
    line = r"rank [01] cannot load .* numbers that are not finite" if backend == "llamacpp" else LINE
    with pytest.raises(LaunchError, match=line):
        text(models["first"], models["sound"], "pipeinfer", WARM, backend)


@pytest.mark.parametrize("sampling", [GREEDY, FILTERED], ids=["greedy", "filtered"])
@pytest.mark.parametrize("strategy", ["speculative", "pipeinfer"])
def test_a_draft_that_is_not_finite_costs_its_guesses_alone(
    models: dict[str, str], strategy: str, sampling: Sampling
) -> None:
    expected = text(models["sound"], None, "iterative", sampling)
    assert text(models["sound"], models["last"], strategy, sampling) == expected


UNTRAINED = 290
"""A token that no text has: the target's embedding of it is NaN, and the draft thinks that it always comes next."""


@pytest.fixture(scope="module")
def wild(models: dict[str, str], tmp_path_factory: pytest.TempPathFactory) -> tuple[str, str]:
    """Such a target and such a draft."""
    folder = tmp_path_factory.mktemp("wild")
    target, draft = (damaged(Path(models["sound"]), folder / role, 0) for role in ("target", "draft"))
    sound = load_file(Path(models["sound"]) / "model.safetensors")
    embedding, likes = sound["model.embed_tokens.weight"].copy(), sound["lm_head.weight"].copy()
    embedding[UNTRAINED] = np.nan
    likes[:] = 0
    save_file(sound | {"model.embed_tokens.weight": embedding}, target / "model.safetensors", metadata={"format": "pt"})
    likes[UNTRAINED] = 30 * sound["lm_head.weight"][UNTRAINED]
    likes[UNTRAINED + 1] = -likes[UNTRAINED]  # one of the two is above 0, and all others are 0
    save_file(sound | {"lm_head.weight": likes}, draft / "model.safetensors", metadata={"format": "pt"})
    return str(target), str(draft)


@pytest.mark.parametrize("backend", ["numpy", "torch", "llamacpp"])
@pytest.mark.parametrize(("strategy", "options"), [("speculative", {"k": 4}), ("pipeinfer", {}), ("specpipe", {})])
def test_a_wrong_guess_that_is_not_finite_is_a_wrong_guess(
    wild: tuple[str, str], backend: str, strategy: str, options: dict[str, int]
) -> None:
    pytest.importorskip({"torch": "torch", "llamacpp": "llama_cpp", "numpy": "numpy"}[backend])
    target, draft = wild
    expected = generate(target, None, "iterative", {}, backend).token_ids
    assert UNTRAINED not in expected
    trial = generate(target, draft, strategy, options, backend)
    assert trial.token_ids == expected
    if strategy == "speculative":  # the others may be faster than their draft
        assert sum(run.drafted for run in trial.runs) > len(expected)


@pytest.mark.parametrize("backend", ["numpy", "torch"])
def test_a_wrong_guess_whose_computation_is_stopped_leaves_nothing(wild: tuple[str, str], backend: str) -> None:
    """Not in a cell between others either, which they multiply by 0."""
    pytest.importorskip(backend)
    stage = open_backend(backend, {}).load(wild[0], (0, 2), cells=16, sequences=4)

    def fork(*tokens: int) -> Batch:
        """Each behind the text, in a sequence of its own."""
        for sequence in range(1, len(tokens) + 1):
            stage.apply(KvSeqCp(0, sequence, 0, 3))
        return Batch(tokens, [3] * len(tokens), [(sequence,) for sequence in range(1, len(tokens) + 1)], len(tokens))

    stage.forward(chain([1, 2, 3], 0, 1), None, never)
    expected = stage.forward(fork(4, 5, 6), None, never)
    for sequence in (1, 2):
        stage.apply(KvSeqRm(sequence, 0, -1))
    looks = iter([False])
    assert stage.forward(fork(4, UNTRAINED), None, lambda: next(looks, True)) is None
    came = stage.forward(fork(4), None, never)
    np.testing.assert_allclose(came[0], expected[0], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("strategy", ["iterative", "speculative", "pipeinfer"])
def test_a_right_guess_that_is_not_finite_ends_the_text_there(
    models: dict[str, str], tmp_path: Path, strategy: str
) -> None:
    sound = models["sound"]
    third = generate(sound, None, "iterative", {}, "numpy").token_ids[2]
    target = damaged(Path(sound), tmp_path / "target", 0)
    tensors = load_file(Path(sound) / "model.safetensors")
    tensors["model.embed_tokens.weight"][third] = np.nan
    save_file(tensors, target / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(LaunchError, match=rf"{target} on rank 1 \(numpy\): the logits for position 7 are not finite"):
        generate(str(target), None if strategy == "iterative" else sound, strategy, {}, "numpy")


def generate(target: str, draft: str | None, strategy: str, options: dict[str, int], backend: str) -> Trial:
    plan = Plan(backend=backend, target=target, draft=draft, stages=2, transport="inproc", cells=256)
    with Cluster(plan) as cluster:
        chosen = open_strategy(strategy, dict(options))
        return cluster.generate(PROMPT, chosen, max_tokens=12, stop_ids=())


@pytest.mark.parametrize("command", ["generate", "record"])
def test_on_the_command_line_it_is_one_line(models: dict[str, str], command: str, tmp_path: Path) -> None:
    arguments = ["--target", models["first"], "--draft", models["sound"], "--tokens", "4"]
    arguments += {
        "generate": ["x", "--nodes", "3", "--check", "--json"],
        "record": ["--prompts", "1", "--out", str(tmp_path / "trace.json")],
    }[command]
    done = subprocess.run([sys.executable, "-m", "pipeinfer", command, *arguments], capture_output=True,
                          text=True, timeout=60)  # fmt: skip
    assert done.returncode == 2
    assert done.stdout.strip() == ""
    assert done.stderr.splitlines()[-1].startswith("error: ")
    assert "are not finite (the best is nan)" in done.stderr
    assert "Traceback" not in done.stderr


def test_in_a_recipe_its_trials_are_errors_without_a_speed(models: dict[str, str]) -> None:
    live = Live(
        backend="numpy", target=models["first"], draft=models["sound"], transport="inproc", stages=2,
        prompts=["path-join"], temperatures=[0.0], top_p=1.0, seed=0, tokens=4, repeats=1,
    )  # fmt: skip
    cells = [LiveCell(strategy, {}, "path-join", 0.0, 0, live) for strategy in ("iterative", "pipeinfer")]
    for record in run_live(cells):
        assert record.trial is None
        assert "are not finite" in record.error
