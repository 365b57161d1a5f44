"""What scheduling costs: the head's time per event, and the simulator's per token. Shown by --benchmark-only -s."""

from statistics import median
from time import perf_counter, process_time
from typing import Any

import msgspec
import pytest

from pipeinfer.core.effects import Request
from pipeinfer.core.generation import PipelineShape
from pipeinfer.core.messages import Logits, Proposal
from pipeinfer.core.scheduler import Scheduler
from pipeinfer.core.strategies.pipeinfer import PipeInfer
from pipeinfer.runtime.oracle import independent
from pipeinfer.runtime.sim import Simulation

PIPELINE = PipelineShape(stages=32, cells=4096, sequences=260)
REQUEST = Request(tuple(range(1, 65)), 512)
IN_FLIGHT = 64
REPLAYS = 10

MOST_PER_EVENT = 8
MOST_PER_SIMULATED_EVENT = 8
"""In times of `floor`."""

Events = list[tuple[float, Any]]


class Fixed(msgspec.Struct, frozen=True):
    """10 ms per stage, `draft` seconds per forward of the draft."""

    draft: float

    def stage_s(self, stage: int, rows: int, context: int) -> float:
        return 0.010

    def draft_s(self, rows: int, context: int) -> float:
        return self.draft

    def row_bytes(self, stage: int) -> int:
        return 32768


def floor() -> float:
    """Seconds that this interpreter takes here and now to make a dictionary of the runs in flight: least of many."""
    least = float("inf")
    for _ in range(200):
        start = perf_counter()
        {run: (run, run + 1) for run in range(IN_FLIGHT)}
        least = min(least, perf_counter() - start)
    return least


def busy(branches: int) -> PipeInfer:
    return PipeInfer(draft=2, branches=branches, split=0.08, in_flight=IN_FLIGHT)


def record(branches: int) -> Events:
    """What the head is told in a generation whose draft is fast enough to keep the pipeline full."""
    simulation = Simulation(PIPELINE, busy(branches), Fixed(0.002), independent(0.9))
    handle = simulation.scheduler.handle
    events: Events = []

    def recording(now: float, event: Any) -> Any:
        events.append((now, event))
        return handle(now, event)

    simulation.scheduler.handle = recording  # type: ignore[method-assign]
    simulation.generate(REQUEST)
    return events


def replay(events: Events, branches: int) -> dict[type, float]:
    """Tell a fresh head the same again: median seconds per kind of event, of those that found the pipeline full."""
    scheduler = Scheduler(PIPELINE, lambda _: busy(branches))
    seconds: dict[type, list[float]] = {Logits: [], Proposal: []}
    for now, event in events:
        full = len(scheduler.in_flight) >= IN_FLIGHT - 1
        start = perf_counter()
        scheduler.handle(now, event)
        spent = perf_counter() - start
        if full:
            seconds[type(event)].append(spent)
    assert min(len(spent) for spent in seconds.values()) > 200, "the pipeline was hardly ever full"
    return {kind: median(spent) for kind, spent in seconds.items()}


@pytest.mark.parametrize("branches", [1, 3], ids=["chain", "tree"])
def test_what_the_head_takes_per_event(benchmark: Any, branches: int) -> None:
    events = record(branches)
    rounds: list[dict[type, float]] = []
    benchmark.pedantic(lambda: rounds.append(replay(events, branches)), rounds=REPLAYS)
    # The best replay is the one that other processes disturbed least.
    logits, proposal = (1e6 * min(medians[kind] for medians in rounds) for kind in (Logits, Proposal))
    benchmark.extra_info.update(logits_us=logits, proposal_us=proposal)
    dictionaries = max(logits, proposal) / (1e6 * floor())
    print(f"\n{IN_FLIGHT} runs in flight on {PIPELINE.stages} stages, median per event: "
          f"logits {logits:.1f} us, proposal {proposal:.1f} us, {dictionaries:.1f} dictionaries")  # fmt: skip
    assert dictionaries < MOST_PER_EVENT


@pytest.mark.benchmark(timer=process_time)
def test_what_the_simulator_takes_per_event(benchmark: Any) -> None:
    def generate() -> int:
        simulation = Simulation(
            msgspec.structs.replace(PIPELINE, stages=31), PipeInfer(draft=3), Fixed(0.005), independent(0.79)
        )
        assert len(simulation.generate(REQUEST).token_ids) == REQUEST.max_tokens
        return simulation.handled

    events = benchmark.pedantic(generate, rounds=5)
    seconds = benchmark.stats.stats.min
    benchmark.extra_info["events_per_second"] = events / seconds
    dictionaries = seconds / events / floor()
    print(f"\n512 tokens on 31 stages and a draft rank: {seconds:.2f} s, {events / seconds:,.0f} events/s, "
          f"{dictionaries:.1f} dictionaries an event")  # fmt: skip
    assert dictionaries < MOST_PER_SIMULATED_EVENT
