"""Whatever the network and the machines do, the tokens are those of the plain loop and every promise of the core holds.

Thousands of schedules over the toy cluster: random clusters, strategies, arrivals and cancellations, up to six
requests, tiny caches. A failing example is printed whole, and shrinks towards few stages, few tokens and links that
take turns.
"""

import os
from typing import Any

import msgspec
from hypothesis import HealthCheck, event, given, settings
from hypothesis import strategies as st
from toy_cluster import ToyCluster
from toy_model import ToyLanguage

from pipeinfer.core.draft import DraftPolicy
from pipeinfer.core.effects import Request, Start
from pipeinfer.core.generation import PipelineShape, Strategy
from pipeinfer.core.text_drafter import TextPolicy
from pipeinfer.plugins import open_drafting, open_strategy


class Asked(msgspec.Struct, frozen=True):
    """One request: how it is decoded, and how long prompt and answer are."""

    strategy: str
    options: dict[str, Any]
    prompt: int
    max_tokens: int

    def start(self, number: int, salt: int, stop_ids: tuple[int, ...], *, alike: bool) -> Start:
        prompt = tuple([(3 * i + salt + 5 * number * (not alike)) % 24 for i in range(self.prompt)])
        return Start(Request(prompt, self.max_tokens, stop_ids), number, self.strategy, self.options)


class Scenario(msgspec.Struct, frozen=True):
    """Some generations, whole: the cluster, the requests, the models and what happens when. `alike`: prompts begin
    alike; the rest of what is said of requests is as in ToyCluster."""

    asked: tuple[Asked, ...]
    drafting: str
    drafting_options: dict[str, Any]
    stages: int
    spare_cells: int
    sequences: int
    context: int
    prompt_chunk: int
    stop_ids: int
    stop_after: int
    draft_cells: int
    draft_sequences: int
    agreement: int
    salt: int
    schedule: bytes
    alike: bool = False
    keeps_texts: bool = False
    cancels: dict[int, int] = {}
    pauses: tuple[int, ...] = ()
    forgets: bool = False
    row_s: float = 0.01
    draft_row: float = 0.0
    ranks_per_core: float = 1.0
    rationed: bool = False

    @property
    def pipeline(self) -> PipelineShape:
        prompt = max(one.prompt for one in self.asked)
        cells = prompt + self.spare_cells
        if len(self.asked) > 1:
            cells = sum(one.prompt + one.max_tokens for one in self.asked) + self.spare_cells
        return PipelineShape(
            self.stages,
            cells=cells,
            sequences=len(self.asked) + self.sequences,
            context=max(self.context, prompt + 1),
            prompt_chunk=self.prompt_chunk,
            keeps_texts=self.keeps_texts,
            ranks_per_core=self.ranks_per_core,
            rationed=self.rationed,
        )

    def open_policy(self, _: int) -> DraftPolicy | TextPolicy:
        made: DraftPolicy | TextPolicy = open_drafting(self.drafting, self.drafting_options)
        return made

    @property
    def language(self) -> ToyLanguage:
        # With few tokens a text repeats itself, as drafting from the text wants it.
        return ToyLanguage(self.salt, self.stages, 3 if self.drafting == "ngram" else 24, self.agreement)

    def starts(self) -> list[Start]:
        stop_ids = tuple(range(self.stop_ids))
        return [one.start(number, self.salt, stop_ids, alike=self.alike) for number, one in enumerate(self.asked)]

    def cluster(self, **more: Any) -> ToyCluster:
        return ToyCluster(
            self.language,
            self.pipeline,
            lambda start: strategy(start.strategy, start.options),
            self.open_policy,
            self.schedule,
            draft_cells=self.draft_cells,
            draft_sequences=self.draft_sequences,
            stop_after=self.stop_after,
            cancels={number: turns for number, turns in self.cancels.items() if number < len(self.asked)},
            pauses=self.pauses,
            forgets=self.forgets,
            row_s=self.row_s,
            draft_row=self.draft_row,
            **more,
        )

    def run(self, **watch: Any) -> ToyCluster:
        """Generate, and compare with the plain loop."""
        cluster, starts = self.cluster(**watch), self.starts()
        language = cluster.language
        for start, tokens in zip(starts, cluster.generate(*starts), strict=True):
            request, reason = start.request, cluster.finishes[start.number]
            expected, why = language.plain(request.prompt, request.max_tokens, request.stop_ids, self.pipeline.limit)
            if reason == "stop":
                expected, why = expected[: self.stop_after], "stop"
            elif reason == "cancelled":
                expected, why = expected[: len(tokens)], "cancelled"
            assert (tokens, reason) == (expected, why)
        return cluster


def strategy(name: str, options: dict[str, Any]) -> Strategy:
    made: Strategy = open_strategy(name, options)
    return made


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
    }
)


OPTIONS: dict[str, Any] = {
    "iterative": st.just({}),
    "speculative": speculative,
    "pipeinfer": pipeinfer,
    "redundant": pipeinfer,
    "async-chain": st.fixed_dictionaries({"ahead": st.integers(1, 12)}),
    "adaptive": st.fixed_dictionaries({"every": st.integers(1, 4)}),
    "dsi": st.just({}),
    "sync-tail": st.fixed_dictionaries({"k": st.integers(1, 8)}),
    "ssd": st.fixed_dictionaries({"k": st.integers(1, 8)}),
    "pearl": st.fixed_dictionaries({"gamma": st.integers(0, 6)}),
    "swiftspec": st.fixed_dictionaries(
        {
            "batch": st.integers(2, 12),
            "width": st.integers(1, 8),
            "depth": st.integers(1, 6),
            "nodes": st.integers(1, 40),
        }
    ),
    "flowspec": st.fixed_dictionaries(
        {
            "segment": st.integers(1, 8),
            "width": st.integers(1, 10),
            "depth": st.integers(1, 6),
            "nodes": st.integers(8, 40),
            "in_flight": st.sampled_from([0, 0, 2, 3, 9]),
        }
    ),
    "specpipe": st.fixed_dictionaries({"width": st.integers(1, 8), "in_flight": st.sampled_from([0, 0, 2, 3, 9])}),
}

# Those that draft go together where they take the same draft policy: it is one per draft rank.
TOGETHER = {
    "tree": ["pipeinfer", "speculative", "redundant", "iterative", "adaptive"],
    "chain": ["dsi", "sync-tail", "async-chain", "pearl", "iterative", "adaptive"],
    "beam": ["specpipe", "iterative"],
    "ngram": ["pipeinfer", "speculative", "redundant", "async-chain", "pearl", "ssd", "adaptive"],
    "outcomes": ["ssd", "pipeinfer", "async-chain"],
    "frontier": ["swiftspec", "flowspec", "iterative", "adaptive", "adaptive"],
}
"""By the draft policy."""

DRAFTING: dict[str, Any] = {
    "ngram": st.fixed_dictionaries({"longest": st.integers(2, 4), "shortest": st.integers(1, 2)}),
    "outcomes": st.fixed_dictionaries(
        {"alternatives": st.integers(1, 7), "length": st.integers(1, 7), "rounds": st.booleans()}
    ),
}
"""Options of draft policies."""


PROMPT_LENGTHS, TEXT_LENGTHS = st.integers(1, 12), st.integers(1, 10) | st.integers(10, 50)


@st.composite
def requests(draw: Any, names: Any) -> Asked:
    name = draw(names)
    return Asked(name, draw(OPTIONS[name]), prompt=draw(PROMPT_LENGTHS), max_tokens=draw(TEXT_LENGTHS))


# Strategies are made once: anew for each example they take a seventh of its time.
REQUESTS = {drafting: requests(st.sampled_from(group)) for drafting, group in TOGETHER.items()}
ASKED = {
    (drafting, fewest, most): st.lists(one, min_size=fewest, max_size=most)
    for drafting, one in REQUESTS.items()
    for fewest, most in ((3, 6), (1, 1), (1, 3), (1, 6))
}
"""By the draft policy, and the fewest and the most requests."""

CHOICES: dict[str, Any] = {
    "drafting": st.sampled_from(list(TOGETHER)),
    "most": st.sampled_from([1, 1, 3, 6]),
    "stages": st.integers(1, 4),
    "few stages": st.integers(1, 2),
    "spare_cells": st.integers(1, 12) | st.integers(8, 60),
    "sequences": st.sampled_from([1, 2, 3, 12]),
    "context": st.sampled_from([1 << 30, 1 << 30, 8, 20]),
    "prompt_chunk": st.sampled_from([64, 1, 2, 5]),
    "stop_ids": st.sampled_from([0, 0, 0, 1]),
    "stop_after": st.sampled_from([0, 0, 0, 3, 8]),
    "draft_cells": st.sampled_from([0, 0, 100, 5, 14]),
    "draft_sequences": st.sampled_from([10, 10, 40]),
    "agreement": st.sampled_from([60, 80, 90, 95, 100, 30, 0]),
    "salt": st.integers(0, 2**32),
    "schedule": st.binary(min_size=400, max_size=400),
    "cancels": st.dictionaries(st.integers(0, 5), st.integers(0, 80), max_size=3),
    "pauses": st.lists(st.integers(0, 80), max_size=5),
    "row_s": st.sampled_from([0.01, 10.0]),
    "draft_row": st.sampled_from([0.0, 0.3, 1.0]),
    "ranks_per_core": st.sampled_from([1.0, 1.5, 3.0]),
}
YES_OR_NO, NOTHING = st.booleans(), st.just({})


@st.composite
def scenarios(draw: Any, *, crowded: bool = False) -> Scenario:
    """`crowded`: more requests than the pipe has slots."""

    def one(name: str) -> Any:
        return draw(CHOICES[name])

    drafting = one("drafting")
    fewest, most = (3, 6) if crowded else (1, one("most"))
    asked = draw(ASKED[drafting, fewest, most])
    return Scenario(
        tuple(asked),
        drafting,
        draw(DRAFTING.get(drafting, NOTHING)),
        stages=one("few stages" if crowded else "stages"),
        spare_cells=one("spare_cells"),
        sequences=one("sequences"),
        context=one("context"),
        prompt_chunk=one("prompt_chunk"),
        stop_ids=one("stop_ids"),
        stop_after=one("stop_after"),
        draft_cells=one("draft_cells") if len(asked) == 1 else 0,
        draft_sequences=one("draft_sequences"),
        agreement=one("agreement"),
        salt=one("salt"),
        schedule=one("schedule").rstrip(b"\0"),
        alike=draw(YES_OR_NO),
        keeps_texts=draw(YES_OR_NO),
        cancels=one("cancels") if len(asked) > 1 else {},
        pauses=tuple(one("pauses")),
        forgets=draw(YES_OR_NO),
        row_s=10.0 if crowded else one("row_s"),
        draft_row=one("draft_row"),
        ranks_per_core=one("ranks_per_core"),
        rationed=draw(YES_OR_NO),
    )


@settings(
    max_examples=int(os.environ.get("SCHEDULES", "3000")),
    derandomize="SCHEDULES" not in os.environ,
    database=None,
    deadline=None,
    suppress_health_check=list(HealthCheck),
)
@given(scenarios())
def test_every_schedule_gives_the_tokens_of_the_plain_loop(scenario: Scenario) -> None:
    cluster = scenario.run()
    for number, one in enumerate(scenario.asked):
        event(f"{one.strategy}: {cluster.finishes[number]}")


@settings(max_examples=500, derandomize=True, database=None, deadline=None, suppress_health_check=list(HealthCheck))
@given(scenarios(crowded=True))
def test_requests_whose_rows_travel_together_do_not_see_one_another(scenario: Scenario) -> None:
    cluster = scenario.run()
    runs = [run for one in cluster.generations.values() for run in one.runs]
    pruned = any(run.pruned and run.width > run.rows for run in runs)
    event(f"together: {sum(run.width > run.rows for run in runs) > 0}, some of them pruned: {pruned}")
    event(f"drafted for several at once: {cluster.shared_forwards > 0}")


@settings(max_examples=300, derandomize=True, database=None, deadline=None, suppress_health_check=list(HealthCheck))
@given(scenarios() | scenarios(crowded=True), st.integers(1, 400))
def test_whatever_was_under_way_when_a_rank_was_lost_goes_on_from_its_text(scenario: Scenario, turns: int) -> None:
    scenario = msgspec.structs.replace(scenario, cancels={}, stop_after=0)
    before = scenario.cluster(lost_after=turns)
    starts = scenario.starts()
    texts = dict(enumerate(before.generate(*starts)))
    left = [
        msgspec.structs.replace(
            start,
            request=msgspec.structs.replace(
                start.request,
                prompt=start.request.prompt + tuple(texts[start.number]),
                max_tokens=start.request.max_tokens - len(texts[start.number]),
            ),
        )
        for start in starts
        if start.number not in before.finishes
    ]
    if left:
        for start, tokens in zip(left, scenario.cluster().generate(*left), strict=True):
            texts[start.number] = texts[start.number] + tokens
    for start in starts:
        request = start.request
        plain = before.language.plain(request.prompt, request.max_tokens, request.stop_ids, scenario.pipeline.limit)
        assert texts[start.number] == plain[0]
