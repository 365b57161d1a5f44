"""One draft rank for several requests: their rows go as one forward, and each is drafted for by its own sampling."""

from collections.abc import Iterator, Sequence
from importlib.util import find_spec
from typing import Any

import pytest
from test_service import PROMPTS, alone, ask

from pipeinfer.cluster.launch import Cluster
from pipeinfer.cluster.plan import Plan
from pipeinfer.core import drafter
from pipeinfer.core.draft_forward import Share, assemble
from pipeinfer.core.effects import ComputeDraft
from pipeinfer.engine.sampling import Sampling
from pipeinfer.serve.events import Ended
from pipeinfer.serve.service import Service

RANKS: dict[str, dict[str, Any]] = {
    "numpy": {},
    "numpy, three draft ranks": {"draft_layers": "3,3,2"},
    "torch": {"backend": "torch", "backend_options": {"device": "cpu", "dtype": "float32"}},
    "llamacpp": {"backend": "llamacpp", "backend_options": {"quantisation": "f32", "kv_type": "f32"}},
}
NEEDS = {"torch": "transformers", "llamacpp": "llama_cpp"}

TOKENS = 16


@pytest.fixture(params=RANKS)
def cluster(request: pytest.FixtureRequest) -> Iterator[Cluster]:
    """The draft is the target, so that it is right wherever it is sampled as the target is."""
    needed = NEEDS.get(request.param)
    if needed and find_spec(needed) is None:
        pytest.skip(f"needs {needed}")
    plan = Plan(transport="inproc", stages=1, draft="builtin:target", cells=2048, sequences=64, **RANKS[request.param])
    with Cluster(plan) as made:
        yield made


def test_each_request_is_drafted_for_by_its_own_sampling(cluster: Cluster, monkeypatch: pytest.MonkeyPatch) -> None:
    together: list[int] = []

    def watched(shares: Sequence[Share]) -> ComputeDraft:
        together.append(len(shares))
        return assemble(shares)

    monkeypatch.setattr(drafter, "assemble", watched)
    samplings = [Sampling(), *(Sampling(0.8, 0, 0.95, seed) for seed in range(3))]
    asked = list(zip(PROMPTS, samplings, strict=False))
    with Service(cluster) as service:
        answers = [
            ask(service, prompt, cluster, sampling=sampling, max_tokens=TOKENS, strategy="speculative",
                options={"k": 3, "cutoff": 0.0})
            for prompt, sampling in asked
        ]  # fmt: skip
        ends = [answer.end() for answer in answers]
    assert max(together) > 1
    for (prompt, sampling), answer, end in zip(asked, answers, ends, strict=True):
        assert isinstance(end, Ended), end
        assert answer.ids == alone(cluster, prompt, sampling, TOKENS)
        for run in end.record.runs[:-1]:
            assert run.accepted == run.drafted, (sampling, run)
