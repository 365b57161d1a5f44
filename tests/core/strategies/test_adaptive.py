"""It finds the way that suits the pipeline, changes its mind with the text, and says why."""

from collections.abc import Callable
from functools import partial
from math import prod
from random import Random

import msgspec
import pytest

from pipeinfer.assets import asset
from pipeinfer.core.effects import Note, Request, Start
from pipeinfer.core.generation import PipelineShape, Strategy
from pipeinfer.core.strategies.adaptive import Adaptive
from pipeinfer.core.strategies.async_chain import AsyncChain
from pipeinfer.core.strategies.iterative import Iterative
from pipeinfer.core.strategies.pipeinfer import PipeInfer
from pipeinfer.core.strategies.speculative import Speculative
from pipeinfer.core.strategies.ways import Way
from pipeinfer.modelling.platform import platform_of
from pipeinfer.modelling.simulate import Setting
from pipeinfer.results.metrics import tokens_per_second
from pipeinfer.runtime import sim
from pipeinfer.runtime.load_sim import Arriving, LoadSimulation
from pipeinfer.runtime.oracle import Trace, independent, read_trace
from pipeinfer.runtime.sim import Hosts, Simulation

REQUEST = Request(tuple(range(16)), 192)


class Costs:
    """A traversal of a second over `stages`, each further row at `width` of the first; a draft of 20 ms."""

    def __init__(self, stages: int, width: float) -> None:
        self._stages, self._width = stages, width

    def stage_s(self, stage: int, rows: int, context: int) -> float:
        return (1 + self._width * (rows - 1)) / self._stages

    def draft_s(self, rows: int, context: int) -> float:
        return 0.02

    def row_bytes(self, stage: int) -> int:
        return 0


def decode(strategy: object, stages: int, width: float, oracle: Trace) -> tuple[float, list[str]]:
    """Seconds for the text, and what was decided on the way."""
    simulation = Simulation(
        PipelineShape(stages, cells=2048, sequences=256), strategy, Costs(stages, width), oracle  # type: ignore[arg-type]
    )
    notes: list[str] = []
    simulation.note = lambda _machine, effect: notes.append(effect.text)  # type: ignore[method-assign, assignment]
    return simulation.generate(REQUEST).emit_s[-1], notes


def test_where_rows_are_dear_it_sends_them_one_by_one() -> None:
    seconds, notes = decode(adaptive := Adaptive(), 8, 1.0, independent(0.8))
    assert adaptive.way == Way("runs", 1)
    assert seconds < 0.75 * decode(PipeInfer(), 8, 1.0, independent(0.8))[0]
    assert "a further row costs 1.00 of one" in notes[-1]


def test_on_one_stage_with_free_rows_it_decodes_synchronously() -> None:
    seconds, _ = decode(adaptive := Adaptive(), 1, 0.0, independent(0.8))
    assert adaptive.way.kind == "rounds"
    assert seconds < 1.1 * decode(Speculative(k=10), 1, 0.0, independent(0.8))[0]


def test_a_hopeless_draft_is_given_up_where_it_costs_something() -> None:
    seconds, _ = decode(Adaptive(), 1, 1.0, independent(0.05))
    assert seconds < 1.1 * REQUEST.max_tokens


def test_it_changes_its_mind_with_the_text() -> None:
    good, bad = independent(0.95), independent(0.1)
    half = len(good.ranks) // 2
    mixed = msgspec.structs.replace(good, ranks=[*([0] * 100), *bad.ranks[half : half + 108]],
                                    confidences=good.confidences[:208])  # fmt: skip
    adaptive = Adaptive()
    _, notes = decode(adaptive, 2, 0.3, mixed)
    assert len({note.split(":")[0] for note in notes}) >= 2, notes


@pytest.mark.parametrize("acceptance", [0.1, 0.5, 0.75, 0.9])
def test_where_ranks_share_cores_it_pipelines_what_the_cores_have_room_for(acceptance: float) -> None:
    """Four ranks on two cores: what several compute at once takes longer, by the work that there is."""

    def seconds(strategy: Strategy) -> float:
        hosts = Hosts(["a"] * 5, (1.0, 1.0, 1.5, 2.0), message_s=0.0, head_s=0.0, steps=(2, 2, 2, 2))
        shape = PipelineShape(3, cells=2048, sequences=256, ranks_per_core=2.0)
        simulation = Simulation(shape, strategy, Costs(3, 0.3), independent(acceptance), hosts=hosts)
        return simulation.generate(REQUEST).emit_s[-1]

    others = [Iterative(), *(Speculative(k=k) for k in (1, 2, 3)), *(PipeInfer(draft=k, decay=0) for k in (1, 2))]
    assert seconds(Adaptive()) < min(map(seconds, others))


def speed_over_texts(
    trace: str, costs: sim.Costs, hosts: Hosts, shape: PipelineShape, open_strategy: Callable[[], Strategy],
    *, texts: int, prompt: int, tokens: int,
) -> float:  # fmt: skip
    """Decoding, in texts per second: the geometric mean over texts whose drafts were recorded of the built-in pair."""
    recorded = read_trace(asset(f"workloads/traces/builtin-{trace}.json"))
    seconds = []
    for text in range(texts):
        simulation = Simulation(shape, open_strategy(), costs, recorded.text(text, prompt), hosts=hosts)
        emit_s = simulation.generate(Request(tuple(range(prompt)), tokens)).emit_s
        seconds.append(emit_s[-1] - emit_s[0])
    return prod(seconds) ** (-1 / len(seconds))


class SecondRowDear:
    """Three stages of `builtin:target-100m` in f16 and the built-in draft, each on a core of its own: a product of two
    rows takes another kernel than one."""

    def stage_s(self, stage: int, rows: int, context: int) -> float:
        return 1e-3 * (14.0 if rows == 1 else 25.4 + 3.6 * min(rows, 6) + 4.6 * max(0, rows - 6)) / 3

    def draft_s(self, rows: int, context: int) -> float:
        return 1e-3 * (0.2 + 0.4 * rows)

    def row_bytes(self, stage: int) -> int:
        return 0


@pytest.mark.parametrize("trace", ["greedy", "sampled"])
def test_where_a_second_row_is_dear_single_tokens_follow_one_another_on_shared_cores_too(trace: str) -> None:
    hosts = Hosts(["a"] * 5, (1.0, 1.08, 1.6, 2.1), message_s=7e-5, head_s=1.5e-4, steps=(8, 8, 8, 2))
    shape = PipelineShape(3, cells=2048, sequences=64, ranks_per_core=2.0)
    speed = partial(speed_over_texts, trace, SecondRowDear(), hosts, shape, texts=8, prompt=76, tokens=64)
    others = [Iterative, partial(Speculative, k=2), *(partial(PipeInfer, draft=k, decay=0) for k in (1, 2, 4))]
    assert speed(Adaptive) > 0.97 * max(map(speed, others))


class SmallPair:
    """The built-in pair, three stages and the draft on two cores: milliseconds by rows."""

    def stage_s(self, stage: int, rows: int, context: int) -> float:
        return 1e-3 * (1.4 + 0.35 * min(rows, 8) + 0.2 * max(0, rows - 8)) / 3

    def draft_s(self, rows: int, context: int) -> float:
        return 1e-3 * (0.35 + 0.05 * rows)

    def row_bytes(self, stage: int) -> int:
        return 0


@pytest.mark.parametrize("trace", ["greedy", "sampled"])
def test_where_messages_cost_as_much_as_rows_on_shared_cores_it_is_near_the_best(trace: str) -> None:
    hosts = Hosts(["a"] * 5, (1.0, 1.1, 1.65, 2.2), message_s=5e-5, head_s=5e-5, steps=(3, 3, 2, 2))
    shape = PipelineShape(3, cells=2048, sequences=64, ranks_per_core=2.0)
    speed = partial(speed_over_texts, trace, SmallPair(), hosts, shape, texts=8, prompt=48, tokens=128)
    others = [Iterative, *(partial(Speculative, k=k) for k in (2, 3)), *(partial(PipeInfer, draft=k) for k in (1, 3)),
              *(partial(AsyncChain, ahead=ahead) for ahead in (4, 8))]  # fmt: skip
    assert speed(Adaptive) > 0.96 * max(map(speed, others))


class Unsteady(Costs):
    """As on a machine of ours: one row is far cheaper than several, each computation takes a bit more or less than the
    last, and now and then something else comes between."""

    def __init__(self, stages: int) -> None:
        super().__init__(stages, 0.08)
        self._random = Random(1)

    def _noise(self) -> float:
        return self._random.lognormvariate(0, 0.12) * (3 if self._random.random() < 0.03 else 1)

    def stage_s(self, stage: int, rows: int, context: int) -> float:
        return (0.67 if rows == 1 else 1.0) * super().stage_s(stage, rows, context) * self._noise()

    def draft_s(self, rows: int, context: int) -> float:
        return 0.13 * self._noise()


@pytest.mark.parametrize(("acceptance", "other"), [
    (0.9, Speculative(k=6)),
    (0.75, Speculative(k=3)),
    (0.5, Iterative()),
])  # fmt: skip
def test_what_comes_between_on_shared_cores_does_not_lead_it_astray(acceptance: float, other: Strategy) -> None:
    def seconds(strategy: Strategy) -> float:
        hosts = Hosts(["a"] * 5, (1.0, 1.1, 1.65, 2.2), message_s=0.02, head_s=0.03, steps=(2, 2, 2, 2))
        shape = PipelineShape(3, cells=2048, sequences=256, ranks_per_core=2.0)
        simulation = Simulation(shape, strategy, Unsteady(3), independent(acceptance), hosts=hosts)
        return simulation.generate(REQUEST).emit_s[-1]

    assert seconds(Adaptive()) < 1.1 * seconds(other)


class OneRankBesideItsDraft:
    """The built-in pair on two cores: milliseconds by rows."""

    def stage_s(self, stage: int, rows: int, context: int) -> float:
        return 1e-3 * (1.8 + 0.25 * min(rows, 8) + 0.16 * max(0, rows - 8))

    def draft_s(self, rows: int, context: int) -> float:
        return 1e-3 * (0.3 + 0.06 * rows)

    def row_bytes(self, stage: int) -> int:
        return 0


@pytest.mark.parametrize("trace", ["greedy", "sampled"])
def test_on_one_rank_beside_its_draft_it_is_near_the_best_of_the_others(trace: str) -> None:
    """Texts of the built-in pair, whose draft says what it is sure of: rows that are not worth their time stay away."""
    hosts = Hosts(["a"] * 3, (1.0, 1.08, 1.6), message_s=5e-5, head_s=1.2e-4, steps=(8, 2))
    shape = PipelineShape(1, cells=2048, sequences=64)
    speed = partial(speed_over_texts, trace, OneRankBesideItsDraft(), hosts, shape, texts=12, prompt=48, tokens=96)
    others = [*(partial(Speculative, k=k) for k in (1, 2, 4)), *(partial(PipeInfer, draft=k) for k in (2, 4, 6))]
    assert speed(Adaptive) > 0.94 * max(map(speed, others))


def test_what_the_prompt_takes_says_nothing_about_a_way() -> None:
    """The second request knows what the first has measured when it begins, and has all of its prompt before it."""
    requests = [
        Arriving(1000.0 * number, Start(Request(tuple(range(512)), 96), number), Adaptive(), independent(0.8))
        for number in range(2)
    ]
    load = LoadSimulation(PipelineShape(4, cells=8192, sequences=256), Costs(4, 0.2), requests)
    load.serve()
    first, second = (times[-1] - times[0] for times in load.emit_s.values())
    assert second < 1.1 * first
    assert requests[1].strategy.way == requests[0].strategy.way  # type: ignore[attr-defined]


def test_the_same_events_have_the_same_effects() -> None:
    assert decode(Adaptive(), 4, 0.2, independent(0.7)) == decode(Adaptive(), 4, 0.2, independent(0.7))


PLACES = [
    (3, 0.52, 0.0, "swiftspec", {"batch": 32}),
    (3, 0.52, 0.25, "ssd", {"k": 4}),
    (3, 0.79, 0.0, "flowspec", {"segment": 64}),
    (3, 0.79, 1.0, "pipeinfer", {"draft": 1}),
    (3, 0.92, 0.25, "pipeinfer", {"draft": 4}),
    (9, 0.52, 1.0, "flowspec", {"segment": 1}),
    (9, 0.79, 0.25, "specpipe", {"width": 4}),
    (17, 0.79, 0.0, "specpipe", {"width": 32}),
    (17, 0.79, 1.0, "flowspec", {"segment": 1}),
]
"""Nodes, acceptance, cost of a further row, and which other strategy with which options is the fastest there, as the
recipe `strategies` has them (the fifth: `phases`)."""


def test_at_its_defaults_it_is_near_the_best_of_the_others_at_their_best_everywhere() -> None:
    shares = []
    for nodes, acceptance, width_cost, best, options in PLACES:
        platform = platform_of("haswell-gigabit", "dolphin-tinyllama")
        setting = Setting(best, options, nodes=nodes, acceptance=acceptance, width_cost=width_cost)
        mine = msgspec.structs.replace(setting, strategy="adaptive", options={})
        speeds = [tokens_per_second(platform.simulate(one)) or 0.0 for one in (mine, setting)]
        shares.append(speeds[0] / speeds[1])
    assert min(shares) > 0.95, shares
    assert prod(shares) ** (1 / len(shares)) > 1.0, shares


def test_options_out_of_range() -> None:
    with pytest.raises(ValueError, match="every = -1: expected"):
        Adaptive(every=-1)


def test_notes_are_effects_that_a_log_keeps() -> None:
    assert msgspec.json.decode(msgspec.json.encode(Note("runs of 2")))[1] == "runs of 2"
