"""With `--exact` no text parts from iterative decoding, to the last bit of the margins, whatever the arithmetic.

With `pytest --full` as many texts as found ties without it (docs/fairness.md): tens of minutes.
"""

import queue
from itertools import chain, product

import msgspec
import pytest

from pipeinfer.cluster.launch import Cluster
from pipeinfer.cluster.plan import Plan
from pipeinfer.engine.sampling import Sampling
from pipeinfer.plugins import open_strategy
from pipeinfer.prompt_sets import suite
from pipeinfer.results.divergence import divergence
from pipeinfer.serve.events import Ended, Failed, Tokens
from pipeinfer.serve.service import Service

TREE = {"branches": 3, "split": 0.05}
GREEDY, SAMPLED = Sampling(), Sampling(temperature=0.8, top_p=0.95, seed=7)
SCHEDULES = {
    GREEDY: [("speculative", {"k": 6, **TREE}), ("pipeinfer", {})],
    SAMPLED: [("pipeinfer", {"draft": 4, **TREE}), ("adaptive", {})],
}
ARITHMETIC = {
    "numpy": ("numpy", {}),
    "torch float32": ("torch", {"dtype": "float32"}),
    "torch bfloat16": ("torch", {"dtype": "bfloat16"}),
    "llamacpp f16": ("llamacpp", {}),
    "llamacpp q8_0": ("llamacpp", {"quantisation": "q8_0"}),
    "llamacpp q4_K": ("llamacpp", {}),
}


def target(arithmetic, folder):
    """The built-in target in that arithmetic: its name, or a file."""
    if not arithmetic.endswith("q4_K"):
        return "builtin:target"
    from pipeinfer.engine.huggingface.folder import builtin_folder
    from pipeinfer_llamacpp.trials import write_quantised

    for file in builtin_folder("builtin:target").iterdir():
        (folder / file.name).symlink_to(file)
    return write_quantised(folder, "q4_K")


@pytest.mark.parametrize("arithmetic", ARITHMETIC)
def test_no_text_parts(arithmetic, tmp_path, request):
    backend, options = ARITHMETIC[arithmetic]
    pytest.importorskip({"llamacpp": "llama_cpp"}.get(backend, backend), reason=f"needs pipeinfer[{backend}]")
    full = request.config.getoption("--full")
    texts, beginning, tokens = (20, None, 96) if full else (1, 32, 16)
    plan = Plan(backend=backend, backend_options=options, target=target(arithmetic, tmp_path), stages=2,
                transport="inproc", exact=True)  # fmt: skip
    one_stage = msgspec.structs.replace(plan, stages=1, draft=None)
    parted = []
    with Cluster(plan) as cluster, Cluster(one_stage) as alone:
        for text, how in product(suite()[:texts], SCHEDULES):
            prompt = cluster.tokenizer.encode(text)[:beginning]
            arguments = {"max_tokens": tokens, "sampling": how, "margins": True, "stop_ids": ()}
            reference = alone.generate(prompt, open_strategy("iterative", {}), **arguments)
            for name, settings in chain(*SCHEDULES.values()) if full else SCHEDULES[how]:
                trial = cluster.generate(prompt, open_strategy(name, settings), **arguments)
                if trial.token_ids != reference.token_ids or trial.margins != reference.margins:
                    parted.append((name, settings, how, divergence(trial, reference)))
    assert not parted
    assert reference.precision.endswith(", exact")


@pytest.mark.parametrize("arithmetic", ["numpy", "torch bfloat16", "llamacpp f16"])
def test_requests_at_once_have_the_texts_that_they_have_alone(arithmetic):
    """With drafts, and a prompt that two of them have in common."""
    backend, options = ARITHMETIC[arithmetic]
    pytest.importorskip({"llamacpp": "llama_cpp"}.get(backend, backend), reason=f"needs pipeinfer[{backend}]")
    plan = Plan(backend=backend, backend_options=options, stages=2, transport="inproc", exact=True)
    ended = queue.SimpleQueue()
    with Cluster(plan) as cluster:
        asked = [(suite()[0], GREEDY), (suite()[1], SAMPLED), (suite()[0], SAMPLED), (suite()[2], GREEDY)]
        prompts = [(cluster.tokenizer.encode(text)[:24], how) for text, how in asked]
        with Service(cluster) as service:
            texts = [[] for _ in prompts]
            for (prompt, how), ids in zip(prompts, texts, strict=True):
                def on_event(event, ids=ids):
                    if isinstance(event, Tokens):
                        ids.extend(event.ids)
                    elif isinstance(event, Ended | Failed):
                        ended.put(event)

                service.submit(prompt, max_tokens=12, sampling=how, stop_ids=(), on_event=on_event)
            assert [type(ended.get(timeout=60)) for _ in prompts] == [Ended] * len(prompts)
        for (prompt, how), ids in zip(prompts, texts, strict=True):
            trial = cluster.generate(prompt, open_strategy("iterative", {}), max_tokens=12, sampling=how, stop_ids=())
            assert ids == list(trial.token_ids)
