"""A log replays to the effects that its run had, from nothing but its lines."""

from typing import Any

import msgspec
import pytest
from hypothesis import HealthCheck, given, settings
from test_schedules import Scenario, scenarios

from pipeinfer.core.effects import Emit, Finish, Request, Start
from pipeinfer.core.generation import PipelineShape
from pipeinfer.core.machine import Machine
from pipeinfer.core.messages import Logits
from pipeinfer.core.scheduler import Scheduler
from pipeinfer.core.stage import Stage
from pipeinfer.core.strategies.iterative import Iterative
from pipeinfer.core.strategies.pipeinfer import PipeInfer
from pipeinfer.plugins import open_drafting, open_strategy
from pipeinfer.runtime.event_log import (
    DrafterHeader,
    EventLog,
    Header,
    ReplayDiffers,
    SchedulerHeader,
    StageHeader,
    digest,
)
from pipeinfer.runtime.event_log import replay as replay_with
from pipeinfer.runtime.oracle import independent
from pipeinfer.runtime.sim import Simulation


def replay(lines: list[bytes]) -> list[list[Any]]:
    return replay_with(lines, open_strategy, open_drafting)


class Recorder:
    """A log in memory, and what the head gave when it was written."""

    def __init__(self, header: Header) -> None:
        self.lines: list[bytes] = []
        self.effects: list[list[Any]] = []
        self.log = EventLog(header, self.lines.append)

    def __call__(self, now: float, event: Any, effects: list[Any]) -> None:
        self.log.record(now, event, effects)
        self.effects.append(effects)


def recorded_steps() -> Recorder:
    """The prompt and two tokens on one stage."""
    pipeline = PipelineShape(1)
    recorder = Recorder(SchedulerHeader(pipeline))
    head = Scheduler(pipeline, lambda _: Iterative())
    for now, event in enumerate((Start(Request((5, 6), 2), 0, "iterative"), Logits(0, (7,)), Logits(1, (8,)))):
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
    options = {"draft": 2, "branches": 3, "split": 0.1, "recovery": 0.05, "decay": 0.01}
    pipeline = PipelineShape(5)
    recorder = Recorder(SchedulerHeader(pipeline))
    simulation = Simulation(pipeline, PipeInfer(**options), Free(), independent(0.6))  # type: ignore[arg-type]
    handle = simulation.scheduler.handle

    def recording(now: float, event: Any) -> list[Any]:
        if isinstance(event, Start):  # as whoever is asked for a strategy by name would say it
            event = msgspec.structs.replace(event, strategy="pipeinfer", options=options)
        effects = handle(now, event)
        recorder(now, event, effects)
        return effects

    simulation.scheduler.handle = recording  # type: ignore[method-assign]
    trial = simulation.generate(Request((1, 2, 3), 64))
    replayed = replay(recorder.lines)
    assert replayed == recorder.effects
    emitted = [token for effects in replayed for e in effects if isinstance(e, Emit) for token in e.tokens]
    assert tuple(emitted) == trial.token_ids


@settings(max_examples=100, derandomize=True, database=None, deadline=None, suppress_health_check=list(HealthCheck))
@given(scenarios())
def test_any_run_replays_on_every_machine(scenario: Scenario) -> None:
    recorders: dict[Machine, Recorder] = {}

    def header(machine: Machine) -> Header:
        if isinstance(machine, Scheduler):
            return SchedulerHeader(scenario.pipeline)
        if isinstance(machine, Stage):
            return StageHeader(machine.index, scenario.stages)
        cells = scenario.draft_cells or scenario.pipeline.cells
        return DrafterHeader(cells, scenario.draft_sequences, scenario.pipeline.context, scenario.drafting,
                             scenario.drafting_options, scenario.pipeline.keeps_texts)  # fmt: skip

    def watch(machine: Machine, now: float, event: Any, effects: list[Any]) -> None:
        if machine not in recorders:
            recorders[machine] = Recorder(header(machine))
        recorders[machine](now, event, effects)

    scenario.run(watch=watch)
    assert len(recorders) >= scenario.stages + 1
    for recorder in recorders.values():
        replayed = replay(recorder.lines)
        assert [digest(effects) for effects in replayed] == [digest(effects) for effects in recorder.effects]


def test_half_a_line_at_the_end_is_left_out() -> None:
    recorder = recorded_steps()
    whole = b"".join(recorder.lines)
    last = len(recorder.lines[-1])
    for cut in range(1, last):
        assert replay(whole[:-cut].splitlines()) == recorder.effects[: 2 + (cut == 1)]
    assert replay(whole[:-last].splitlines()) == recorder.effects[:2]


def test_half_a_line_elsewhere_is_an_error() -> None:
    lines = recorded_steps().lines
    lines[1] = lines[1][:10]
    with pytest.raises(msgspec.DecodeError):
        replay(lines)


def test_other_effects_than_logged_are_named() -> None:
    lines = recorded_steps().lines
    lines[2] = lines[2].replace(b"[7]", b"[9]")
    with pytest.raises(ReplayDiffers, match="line 3 of the log: its Logits had other effects"):
        replay(lines)


def test_a_later_generation_goes_on_from_its_first_run() -> None:
    pipeline = PipelineShape(1)
    recorder = Recorder(SchedulerHeader(pipeline, first_run=40))
    head = Scheduler(pipeline, lambda _: Iterative(), first_run=40)
    for event in (Start(Request((5, 6), 1), 0, "iterative"), Logits(40, (7,))):
        recorder(0.0, event, head.handle(0.0, event))
    assert replay(recorder.lines)[-1][-1] == Finish("length")
