"""Cores that ranks share, held against cases worked out by hand and against closed forms."""

import heapq
from collections.abc import Callable, Sequence
from typing import Any

import pytest

from pipeinfer.core.effects import Request
from pipeinfer.core.generation import PipelineShape
from pipeinfer.core.strategies.iterative import Iterative
from pipeinfer.core.strategies.pipeinfer import PipeInfer
from pipeinfer.results.trial import Trial
from pipeinfer.runtime.oracle import independent
from pipeinfer.runtime.shared_cores import Cores
from pipeinfer.runtime.sim import LONGEST_PAUSE_S, Hosts, Simulation

Action = Callable[..., None]


class Clock:
    """Virtual time: a heap of what is to be done."""

    def __init__(self) -> None:
        self.now = 0.0
        self._heap: list[tuple[float, int, Action, tuple[Any, ...]]] = []
        self._serial = 0

    def at(self, when: float, action: Action, *arguments: Any) -> None:
        self._serial += 1
        heapq.heappush(self._heap, (when, self._serial, action, arguments))

    def run(self) -> None:
        while self._heap:
            self.now, _, action, arguments = heapq.heappop(self._heap)
            action(*arguments)


def ends(slowdown: Sequence[float], work: Sequence[tuple[float, float]]) -> list[float]:
    """When each of the (start, seconds) ends."""
    clock = Clock()
    cores = Cores(slowdown, clock.at)
    found = [0.0] * len(work)

    def done(index: int) -> None:
        found[index] = clock.now

    for index, (start, seconds) in enumerate(work):
        clock.at(start, lambda i=index, s=seconds: cores.start(clock.now, s, done, i))
    clock.run()
    return found


def test_alone_a_computation_takes_what_it_takes() -> None:
    assert ends([1.0, 2.0], [(1.0, 3.0), (10.0, 0.5)]) == [4.0, 10.5]


def test_two_on_one_core_by_hand() -> None:
    # The first has done 2 of its 4 s when the second comes; both then run at half speed, the second's 1 s takes 2 s,
    # and the last second of the first is alone again.
    assert ends([1.0, 2.0], [(0.0, 4.0), (2.0, 1.0)]) == [5.0, 4.0]


def test_three_on_two_cores_by_hand() -> None:
    # From 0 to 3 all three run at 2/3: the first two have done 2 s and end. The third has 1 s left and runs it alone.
    assert ends([1.0, 1.0, 1.5], [(0.0, 2.0), (0.0, 2.0), (0.0, 3.0)]) == pytest.approx([3.0, 3.0, 4.0])


@pytest.mark.parametrize("count", [1, 2, 3, 7])
def test_equal_work_on_one_core_ends_together(count: int) -> None:
    assert ends([1.0, 2.0], [(0.0, 0.25)] * count) == pytest.approx([0.25 * count] * count)


def test_work_is_conserved_on_one_core() -> None:
    work = [(0.0, 1.0), (0.1, 0.3), (0.35, 2.0), (0.5, 0.01)]
    assert max(ends([1.0, 2.0, 3.0, 4.0], work)) == pytest.approx(sum(seconds for _, seconds in work))


def test_beyond_what_was_measured_it_goes_on_as_it_went() -> None:
    assert ends([1.0, 1.5], [(0.0, 1.0)] * 4) == pytest.approx([2.5] * 4)
    assert ends([1.0], [(0.0, 1.0)] * 4) == [1.0] * 4


def test_what_is_given_up_leaves_its_share_to_the_others() -> None:
    clock = Clock()
    cores = Cores([1.0, 2.0], clock.at)
    found: dict[str, float] = {}
    cores.start(0.0, 3.0, lambda: found.update(end=clock.now))
    ticket = cores.start(0.0, 5.0, lambda: found.update(never=clock.now))
    clock.at(2.0, lambda: found.update(left=cores.stop(2.0, ticket)))
    clock.run()
    assert found == {"left": 4.0, "end": 4.0}


# In the simulator


class Flat:
    """A stage and a draft of fixed times."""

    def __init__(self, stage_s: float, draft_s: float = 0.1) -> None:
        self._stage_s, self._draft_s = stage_s, draft_s

    def stage_s(self, stage: int, rows: int, context: int) -> float:
        return self._stage_s

    def draft_s(self, rows: int, context: int) -> float:
        return self._draft_s

    def row_bytes(self, stage: int) -> int:
        return 4


def shared(
    stages: int, slowdown: Sequence[float], message_s: float = 0.0, head_s: float = 0.0, steps: int = 1
) -> Hosts:
    return Hosts(["here"] * (stages + 2), slowdown, message_s, head_s, [steps] * (stages + 1))


def simulate(strategy: Any, stages: int, hosts: Hosts | None, stage_s: float = 1.0, acceptance: float = 0.8) -> Trial:
    simulation = Simulation(PipelineShape(stages), strategy, Flat(stage_s), independent(acceptance), hosts=hosts)
    return simulation.generate(Request((1, 2, 3), 24))


def test_hosts_without_contention_change_nothing() -> None:
    alone = simulate(PipeInfer(), 3, None)
    apart = simulate(PipeInfer(), 3, Hosts(list("abcde"), [1.0, 2.0], 0.0, 0.0, [10**9] * 4))
    assert apart.emit_s == pytest.approx(alone.emit_s)
    assert apart.token_ids == alone.token_ids
    assert len(apart.runs) == len(alone.runs)


def test_one_core_gives_a_pipeline_no_more_than_its_work_allows() -> None:
    trial = simulate(PipeInfer(), 4, shared(4, [1.0, 2.0]))
    # Busy seconds are counted by the clock on the wall; on one core k of them are worth 1/k.
    work = sum(4.0 for run in trial.runs if run.finished_s is not None and run.cancelled_at < 0)
    assert trial.emit_s[-1] >= work * (1 - 1e-9)


def test_plain_decoding_has_a_core_to_itself() -> None:
    trial = simulate(Iterative(), 4, shared(4, [1.0, 2.0]))
    assert trial.emit_s[-1] == pytest.approx(24 * 4.0)


def test_handling_takes_its_time_at_every_rank_and_the_head() -> None:
    trial = simulate(Iterative(), 4, shared(4, [1.0, 2.0], message_s=0.01, head_s=0.03))
    assert trial.emit_s[-1] == pytest.approx(24 * (4 * 1.01 + 0.03))


def test_an_abort_acts_between_layers() -> None:
    def wasted(steps: int) -> float:
        trial = simulate(PipeInfer(draft=1, cutoff=0.0), 2, shared(2, [1.0], head_s=0.37, steps=steps), acceptance=0.5)
        return sum(sum(run.compute_s) for run in trial.runs if run.cancelled_at >= 0)

    assert wasted(1) > wasted(4) > wasted(1000)


def test_sharing_is_deterministic() -> None:
    hosts = shared(3, [1.0, 1.1, 1.7], 0.01, 0.01, 4)
    assert simulate(PipeInfer(), 3, hosts) == simulate(PipeInfer(), 3, hosts)


def test_after_a_pause_a_computation_takes_longer() -> None:
    cold = shared(2, [1.0, 1.0])._replace(cold=0.5)
    # Each stage waits for the other: a pause of 1 s before every one of its computations but the first.
    first, second = simulate(Iterative(), 2, cold).emit_s[:2]
    assert first == pytest.approx(1.0 + 1.0 + 0.5 * LONGEST_PAUSE_S**0.5)
    assert second - first == pytest.approx(2 * (1.0 + 0.5 * LONGEST_PAUSE_S**0.5))
