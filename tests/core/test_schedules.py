"""Whatever the network and the machines do, the tokens are those of the plain loop and every promise of the core holds.

Thousands of generations over the toy cluster: random clusters, strategies and schedules, tiny caches. A failing example
is printed whole, and shrinks towards few stages, few tokens and links that take turns.
"""

import os
from typing import Any

import msgspec
from hypothesis import HealthCheck, event, given, settings
from hypothesis import strategies as st
from toy_cluster import ToyCluster
from toy_model import ToyLanguage

from pipeinfer.core.effects import Request
from pipeinfer.core.head import Pipeline, Strategy
from pipeinfer.core.strategies.iterative import Iterative
from pipeinfer.core.strategies.pipeinfer import PipeInfer
from pipeinfer.core.strategies.speculative import Speculative

STRATEGIES: dict[str, Any] = {"iterative": Iterative, "speculative": Speculative, "pipeinfer": PipeInfer}


class Scenario(msgspec.Struct, frozen=True):
    """One generation, whole: the cluster, the request, the models and what happens when."""

    strategy: str
    options: dict[str, Any]
    stages: int
    spare_cells: int
    partitions: int
    context: int
    prompt: int
    prompt_chunk: int
    max_tokens: int
    stop_ids: int
    stop_after: int
    draft_cells: int
    agreement: int
    salt: int
    schedule: bytes

    def make_strategy(self) -> Strategy:
        made: Strategy = STRATEGIES[self.strategy](**self.options)
        return made

    @property
    def pipeline(self) -> Pipeline:
        return Pipeline(
            self.stages,
            cells=self.prompt + self.spare_cells,
            sequences=1 + self.partitions * self.make_strategy().width,
            context=max(self.context, self.prompt + 1),
            prompt_chunk=self.prompt_chunk,
        )

    def run(self, **watch: Any) -> ToyCluster:
        """Generate, and compare with the plain loop."""
        language = ToyLanguage(self.salt, self.stages, agreement=self.agreement)
        prompt = tuple([(3 * i + self.salt) % 24 for i in range(self.prompt)])
        cluster = ToyCluster(
            language,
            self.pipeline,
            self.make_strategy(),
            self.schedule,
            draft_cells=self.draft_cells,
            stop_after=self.stop_after,
            **watch,
        )
        stop_ids = tuple(range(self.stop_ids))
        tokens = cluster.generate(Request(prompt, self.max_tokens, stop_ids))
        expected, reason = language.plain(prompt, self.max_tokens, stop_ids, self.pipeline.limit)
        if cluster.head.reason == "stop":
            expected, reason = expected[: self.stop_after], "stop"
        assert (tokens, cluster.head.reason) == (expected, reason)
        return cluster


probability = st.sampled_from([0.0, 0.0, 0.1, 0.3, 0.6])

speculative = st.fixed_dictionaries(
    {"k": st.integers(1, 8), "cutoff": probability, "branches": st.integers(1, 4), "split": probability}
)
pipeinfer = st.fixed_dictionaries(
    {
        "draft": st.integers(1, 5),
        "cutoff": probability,
        "branches": st.integers(1, 4),
        "split": probability,
        "recovery": st.sampled_from([0.0, 0.05, 0.4]),
        "decay": st.sampled_from([0.0, 0.01, 0.3]),
        "in_flight": st.sampled_from([0, 2, 3, 9]),
        "continuous": st.booleans(),
        "cancellation": st.booleans(),
        "redundant_runs": st.booleans(),
    }
)


@st.composite
def scenarios(draw: Any) -> Scenario:
    strategy = draw(st.sampled_from([*["pipeinfer"] * 5, *["speculative"] * 4, "iterative"]))
    options = draw({"iterative": st.just({}), "speculative": speculative, "pipeinfer": pipeinfer}[strategy])
    return Scenario(
        strategy,
        options,
        stages=draw(st.integers(1, 4)),
        spare_cells=draw(st.integers(1, 12) | st.integers(8, 60)),
        partitions=draw(st.sampled_from([1, 2, 3, 12])),
        context=draw(st.sampled_from([1 << 30, 1 << 30, 8, 20])),
        prompt=draw(st.integers(1, 12)),
        prompt_chunk=draw(st.sampled_from([64, 1, 2, 5])),
        max_tokens=draw(st.integers(1, 10) | st.integers(10, 50)),
        stop_ids=draw(st.sampled_from([0, 0, 0, 1])),
        stop_after=draw(st.sampled_from([0, 0, 0, 3, 8])),
        draft_cells=draw(st.sampled_from([0, 0, 100, 5, 14])),
        agreement=draw(st.sampled_from([60, 80, 90, 95, 100, 30, 0])),
        salt=draw(st.integers(0, 2**32)),
        schedule=draw(st.binary(min_size=400, max_size=400)).rstrip(b"\0"),
    )


@settings(
    max_examples=int(os.environ.get("SCHEDULES", "5000")),
    derandomize="SCHEDULES" not in os.environ,
    database=None,
    deadline=None,
    suppress_health_check=list(HealthCheck),
)
@given(scenarios())
def test_every_schedule_gives_the_tokens_of_the_plain_loop(scenario: Scenario) -> None:
    cluster = scenario.run()
    event(f"{scenario.strategy}: {cluster.head.reason}")
