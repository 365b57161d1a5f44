"""Early cancellation in real time: a run that nobody wants stops in the middle of a stage, and that saves time."""

import threading
import time
from collections.abc import Iterator
from statistics import median

import msgspec
import pytest

from pipeinfer.cluster.launch import Cluster
from pipeinfer.cluster.plan import Plan
from pipeinfer.core.messages import CancelRun, Decode, Logits, RunKind
from pipeinfer.plugins import open_strategy
from pipeinfer.results import metrics
from pipeinfer.results.trial import Trial
from pipeinfer.runtime import control
from pipeinfer.runtime.control import AskReport, Begin, Ready, Setup, Shutdown
from pipeinfer.runtime.live import run_rank
from pipeinfer.runtime.spans import Span
from pipeinfer.runtime.transports import HEAD, Transport, open_transport

STAGES, STAGE_S = 8, 0.02
TOKENS = 24

SLOW_S = 120.0
"""What a run would take that is cancelled: no machine is so loaded that it takes half of that to notice."""


# One stage, with the test as its head -------------------------------------------------------------------------------


class LoneStage:
    """A rank in a thread of its own that computes for `stage_s` per run, and the head's end of its links."""

    def __init__(self, stage_s: float) -> None:
        self.transport: Transport = open_transport("inproc://", HEAD)
        endpoint = open_transport("inproc://", 0)
        self._thread = threading.Thread(target=self._serve, args=(endpoint,))
        self._thread.start()
        self.transport.connect(0, endpoint.address)
        options = msgspec.json.encode({"layers": 1, "layer_s": stage_s})
        self.send(Setup(
            rank=0, role="target", backend="emulated", options=options, model="target", layers=(0, 1), stage=0,
            stages=1, sequences=8, cells=64, next_rank=HEAD, next_address=self.transport.address,
            head_address=self.transport.address, trace=True,
        ))  # fmt: skip
        assert isinstance(self.receive(), Ready)
        self.send(Begin({}))

    def _serve(self, endpoint: Transport) -> None:
        run_rank(endpoint, SLOW_S)
        endpoint.close()

    def send(self, message: object, *, urgent: bool = False) -> None:
        self.transport.send(0, control.encode(message), urgent=urgent)

    def receive(self) -> object:
        envelope = self.transport.receive(SLOW_S / 2)
        assert envelope is not None
        return control.decode(envelope.header)

    def decode(self, run: int, position: int) -> None:
        self.send(Decode(run, RunKind.SPECULATIVE, (7,), (position,), ((0,),), 1))

    def cancel(self, *runs: int) -> None:
        self.send(CancelRun(runs), urgent=True)

    def spans(self) -> list[str]:
        """What it says it was busy with."""
        self.send(AskReport())
        report = self.receive()
        assert isinstance(report, control.Report)
        return [Span(*span).name for span in report.spans]

    def close(self) -> None:
        if self._thread.is_alive():
            self.send(Shutdown())
        self._thread.join(SLOW_S / 2)
        self.transport.close()


@pytest.fixture
def slow_stage() -> Iterator[LoneStage]:
    stage = LoneStage(stage_s=SLOW_S)
    yield stage
    stage.close()


@pytest.fixture
def quick_stage() -> Iterator[LoneStage]:
    stage = LoneStage(stage_s=0.005)
    yield stage
    stage.close()


def test_a_run_stops_in_the_middle(slow_stage: LoneStage) -> None:
    slow_stage.decode(0, position=0)
    time.sleep(0.05)  # it computes
    cancelled = time.monotonic()
    slow_stage.cancel(0)
    marker = slow_stage.receive()
    assert time.monotonic() - cancelled < SLOW_S / 2
    assert isinstance(marker, Logits)
    assert (marker.run, marker.ids, marker.cancelled_at) == (0, (), 0)
    assert 0.0 < marker.compute_s[0] < SLOW_S / 2


def test_a_run_that_was_cancelled_before_it_came_is_skipped(slow_stage: LoneStage) -> None:
    slow_stage.cancel(0, 1)
    slow_stage.decode(0, position=0)
    slow_stage.decode(1, position=1)
    assert [slow_stage.receive() for _ in range(2)] == [
        Logits(run, (), cancelled_at=0, compute_s=(0.0,), computed=(0,)) for run in (0, 1)
    ]  # fmt: skip
    assert slow_stage.spans() == []


def test_a_run_that_waits_is_skipped_and_the_one_at_work_goes_on(quick_stage: LoneStage) -> None:
    for run in range(3):
        quick_stage.decode(run, position=run)
    quick_stage.cancel(1)
    came = [quick_stage.receive() for _ in range(3)]
    assert [(result.run, result.cancelled_at) for result in came if isinstance(result, Logits)] == [
        (0, -1), (1, 0), (2, -1),
    ]  # fmt: skip
    assert quick_stage.spans() == ["speculative 0", "speculative 2"]


def test_an_abandoned_run_gives_its_cells_back(slow_stage: LoneStage) -> None:
    """64 cells, and twice as many runs that are begun and abandoned."""
    for run in range(128):
        slow_stage.decode(run, position=0)
        slow_stage.cancel(run)
        assert isinstance(slow_stage.receive(), Logits)


def test_a_cancellation_that_comes_late_harms_nobody(quick_stage: LoneStage) -> None:
    quick_stage.decode(0, position=0)
    assert isinstance(quick_stage.receive(), Logits)
    quick_stage.cancel(0)
    quick_stage.decode(1, position=1)
    result = quick_stage.receive()
    assert isinstance(result, Logits)
    assert (result.run, result.cancelled_at) == (1, -1)


def test_leaving_does_not_wait_for_the_run(slow_stage: LoneStage) -> None:
    slow_stage.decode(0, position=0)
    time.sleep(0.05)
    leaves = time.monotonic()
    slow_stage.close()
    assert time.monotonic() - leaves < SLOW_S / 2


# Eight stages of 20 ms, acceptance 0.5 -------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def cluster() -> Iterator[Cluster]:
    options = {"layers": STAGES, "layer_s": STAGE_S, "acceptance": 0.5}
    with Cluster(Plan(backend="emulated", backend_options=options, stages=STAGES, trace=True)) as cluster:
        yield cluster


def generate(cluster: Cluster, **options: bool) -> Trial:
    cluster.spans.clear()
    return cluster.generate([1, 2], open_strategy("pipeinfer", options), max_tokens=TOKENS)


def stop_latencies(spans: list[Span]) -> list[float]:
    """Seconds from each cancellation at the head until the stage that was at work had stopped."""
    sent = {run: span.start for span in spans if span.name.startswith("cancel") for run in span.name.split()[1:]}
    stopped = [span for span in spans if span.aborted and not span.name.startswith("draft")]
    return [span.end - sent[span.name.split()[1]] for span in stopped]


def test_runs_are_abandoned_at_every_stage_and_save_compute(cluster: Cluster) -> None:
    trial = generate(cluster)
    counts = metrics.run_counts(trial)
    stopped = [span for span in cluster.spans if span.aborted and span.rank < STAGES]
    assert counts["cancelled"] > counts["verified"] > 0
    assert len({span.rank for span in stopped}) > STAGES / 2
    # What is not abandoned takes its time; what is does not, unless the machine forgets to wake it.
    assert median([span.end - span.start for span in stopped]) < STAGE_S
    assert metrics.compute_saved_s(trial) > 0
    # A forward that knew nothing of the cancellation would go on for 10 ms in the middle, and a hop takes its time too.
    assert median(stop_latencies(cluster.spans)) < 0.008


def test_switching_cancellation_off_costs_speed(cluster: Cluster) -> None:
    with_it = generate(cluster)
    without = generate(cluster, cancellation=False)
    assert without.token_ids == with_it.token_ids
    assert metrics.run_counts(without)["cancelled"] == 0
    assert metrics.compute_saved_s(without) == 0
    speed, slow = metrics.tokens_per_second(with_it), metrics.tokens_per_second(without)
    assert speed is not None
    assert slow is not None
    assert speed > 1.15 * slow
