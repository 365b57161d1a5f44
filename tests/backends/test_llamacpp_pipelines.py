"""llama.cpp stages in live pipelines say what a single stage says."""

import shutil

import pytest
from llamacpp_stages import backend, chain, never, open_stages

from pipeinfer.assets import asset
from pipeinfer.cluster.launch import Cluster
from pipeinfer.cluster.plan import Plan
from pipeinfer.engine.sampling import Sampling, sample
from pipeinfer.plugins import open_strategy

STRATEGIES = {
    "iterative": ("iterative", {}),
    "speculative tree": ("speculative", {"k": 6, "branches": 3, "split": 0.05}),
    "pipeinfer": ("pipeinfer", {}),
    "pipeinfer tree": ("pipeinfer", {"draft": 4, "branches": 3, "split": 0.05}),
    "redundant runs": ("redundant", {}),
}


@pytest.fixture(scope="module")
def pair(shared):
    """A copy of the built-in pair."""
    for name in ("target", "draft"):
        shutil.copytree(asset(f"workloads/builtin/{name}"), shared / name)
    return str(shared / "target"), str(shared / "draft")


@pytest.fixture(scope="module")
def cluster(shared, pair):
    """Three stages of the target in llama.cpp, and a draft."""
    target, draft = pair
    options = {"kv_type": "f32", "quantisation": "f32", "cache": str(shared / "cache")}
    cluster = Cluster(
        Plan(
            backend="llamacpp",
            backend_options=options,
            target=target,
            draft=draft,
            stages=3,
            transport="inproc",
        )
    )
    yield cluster
    cluster.close()


@pytest.fixture(scope="module")
def whole(shared, pair):
    (stage,) = open_stages(backend(shared, kv_type="f32", quantisation="f32"), pair[0], cells=256)
    yield stage
    stage.close()


@pytest.mark.parametrize("how", [Sampling(), Sampling(temperature=0.8, top_p=0.95, seed=7)], ids=["T=0", "T=0.8"])
@pytest.mark.parametrize("strategy", STRATEGIES)
def test_every_strategy_says_what_a_single_stage_says(shared, pair, cluster, whole, strategy, how):
    name, options = STRATEGIES[strategy]
    prompt = backend(shared).tokenizer(pair[0]).encode("def merge(left, right):\n    result = []\n")
    trial = cluster.generate(prompt, open_strategy(name, options), max_tokens=96, sampling=how, stop_ids=())
    assert list(trial.token_ids) == plain_loop(whole, prompt, how, 96)


def plain_loop(stage, prompt, how, count):
    stage.clear()
    rows, text = prompt, []
    for position in range(len(prompt) - 1, len(prompt) - 1 + count):
        logits = stage.forward(chain(rows, start=position + 1 - len(rows), outputs=1), None, never)
        rows = [sample(logits[-1], position + 1, how)]
        text += rows
    return text
