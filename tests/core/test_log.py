"""A log replays to the effects that its run had, from nothing but its lines."""

from typing import Any

import msgspec
import pytest
from hypothesis import HealthCheck, given, settings
from test_schedules import STRATEGIES, Scenario, scenarios

from pipeinfer.core.effects import Emit, Finish, HeadEffect, Request, Start
from pipeinfer.core.head import Head, Pipeline, Strategy
from pipeinfer.core.log import Diverged, EventLog, Header, Options, replay
from pipeinfer.core.messages import Logits
from pipeinfer.core.strategies.iterative import Iterative
from pipeinfer.core.strategies.pipeinfer import PipeInfer
from pipeinfer.runtime.oracle import independent
from pipeinfer.runtime.sim import Simulation


def make_strategy(name: str, options: Options) -> Strategy:
    made: Strategy = STRATEGIES[name](**options)
    return made


class Recorder:
    """A log in memory, and what the head gave when it was written."""

    def __init__(self, header: Header) -> None:
        self.lines: list[bytes] = []
        self.effects: list[list[HeadEffect]] = []
        self.log = EventLog(header, self.lines.append)

    def __call__(self, now: float, event: Any, effects: list[HeadEffect]) -> None:
        self.log.record(now, event, effects)
        self.effects.append(effects)


def recorded_steps() -> Recorder:
    """The prompt and two tokens on one stage."""
    pipeline = Pipeline(1)
    recorder = Recorder(Header(pipeline, "iterative"))
    head = Head(pipeline, Iterative())
    for now, event in enumerate((Start(Request((5, 6), 2)), Logits(0, (7,)), Logits(1, (8,)))):
        recorder(float(now), event, head.handle(float(now), event))
    return recorder


class Free:
    """A cluster where draft steps cost a tenth of a stage's."""

    def stage_s(self, stage: int, rows: int, context: int) -> float:
        return 0.01 + 0.001 * rows

    def draft_s(self, rows: int, context: int) -> float:
        return 0.001

    def row_bytes(self, stage: int) -> int:
        return 100


def test_a_simulated_run_replays() -> None:
    options: Options = {"draft": 2, "branches": 3, "split": 0.1, "recovery": 0.05, "decay": 0.01}
    pipeline = Pipeline(5)
    recorder = Recorder(Header(pipeline, "pipeinfer", options))
    simulation = Simulation(pipeline, PipeInfer(**options), Free(), independent(0.6))  # type: ignore[arg-type]
    handle = simulation.head.handle

    def recording(now: float, event: Any) -> list[HeadEffect]:
        effects = handle(now, event)
        recorder(now, event, effects)
        return effects

    simulation.head.handle = recording  # type: ignore[method-assign]
    trial = simulation.run(Request((1, 2, 3), 64))
    replayed = replay(recorder.lines, make_strategy)
    assert replayed == recorder.effects
    emitted = [token for effects in replayed for e in effects if isinstance(e, Emit) for token in e.tokens]
    assert tuple(emitted) == trial.token_ids


@settings(max_examples=100, derandomize=True, database=None, deadline=None, suppress_health_check=list(HealthCheck))
@given(scenarios())
def test_any_run_replays(scenario: Scenario) -> None:
    recorders: list[Recorder] = []

    def watch(now: float, event: Any, effects: list[HeadEffect]) -> None:
        if not recorders:
            recorders.append(Recorder(Header(scenario.pipeline, scenario.strategy, scenario.options)))
        recorders[0](now, event, effects)

    scenario.run(watch=watch)
    assert replay(recorders[0].lines, make_strategy) == recorders[0].effects


def test_half_a_line_at_the_end_is_left_out() -> None:
    recorder = recorded_steps()
    whole = b"".join(recorder.lines)
    last = len(recorder.lines[-1])
    for cut in range(1, last):
        assert replay(whole[:-cut].splitlines(), make_strategy) == recorder.effects[: 2 + (cut == 1)]
    assert replay(whole[:-last].splitlines(), make_strategy) == recorder.effects[:2]


def test_half_a_line_elsewhere_is_an_error() -> None:
    lines = recorded_steps().lines
    lines[1] = lines[1][:10]
    with pytest.raises(msgspec.DecodeError):
        replay(lines, make_strategy)


def test_other_effects_than_logged_are_named() -> None:
    lines = recorded_steps().lines
    lines[2] = lines[2].replace(b"[7]", b"[9]")
    with pytest.raises(Diverged, match="line 3 of the log: its Logits had other effects"):
        replay(lines, make_strategy)


def test_a_later_generation_goes_on_from_its_first_run() -> None:
    pipeline = Pipeline(1)
    recorder = Recorder(Header(pipeline, "iterative", first_run=40))
    head = Head(pipeline, Iterative(), first_run=40)
    for event in (Start(Request((5, 6), 1)), Logits(40, (7,))):
        recorder(0.0, event, head.handle(0.0, event))
    assert replay(recorder.lines, make_strategy)[-1][-1] == Finish("length")
