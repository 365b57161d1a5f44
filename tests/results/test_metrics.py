"""Metrics: by hand on a small trial, and against the trace that a simulation was fed."""

from typing import Any

import msgspec
import numpy as np
import pytest

from pipeinfer.modelling.simulate import Setting, simulate_one
from pipeinfer.results import metrics
from pipeinfer.results.analysis import interval
from pipeinfer.results.trial import RankRecord, RunRecord, Trial
from pipeinfer.workload import cluster, pair


def run(kind: str, rows: int, compute: tuple[float, ...], **fields: Any) -> RunRecord:
    values = {"drafted": 0, "accepted": 0, "submitted_s": 0.0, "finished_s": 1.0, "cancelled_at": -1,
              "cancel_sent_s": None, **fields}  # fmt: skip
    return RunRecord(kind=kind, rows=rows, compute_s=compute, **values)


RUNS = (
    run("prompt", 4, (0.4, 0.4)),
    run("single", 1, (0.1, 0.1)),
    run("speculative", 3, (0.2, 0.3), drafted=3, accepted=3, judged=3),
    run("speculative", 3, (0.2, 0.3), drafted=3, accepted=1, judged=2),
    # Its first token was rejected by the verdict before it; stage 0 was done, stage 1 was cut short.
    run("speculative", 3, (0.2, 0.05), drafted=3, cancelled_at=1, cancel_sent_s=0.9, judged=1),
    run("speculative", 3, (0.0, 0.0), drafted=3, cancelled_at=0, cancel_sent_s=0.9),
    # Nobody completed a run of two rows.
    run("speculative", 2, (0.0, 0.0), drafted=2, cancelled_at=0, cancel_sent_s=0.9),
    run("speculative", 3, (), drafted=3, finished_s=None),
)
TRIAL = Trial(
    strategy="pipeinfer",
    fidelity="sim",
    prompt_tokens=4,
    token_ids=(1, 2, 3, 4, 5, 6),
    emit_s=(1.0, 2.0, 2.0, 2.0, 3.0, 4.0),
    reason="length",
    runs=RUNS,
    ranks=(
        RankRecord(0, "target", (0, 1), 2.0, 100, bytes_sent={1: 600}),
        RankRecord(1, "target", (1, 2), 1.0, 50, bytes_sent={-1: 60}),
    ),
)


def test_speed_leaves_the_prompt_out_and_is_also_given_with_it() -> None:
    assert metrics.tokens_per_second(TRIAL) == pytest.approx(5 / 3)
    assert metrics.tokens_per_second_with_prompt(TRIAL) == pytest.approx(6 / 4)


def test_first_token_is_told_with_the_prompt_and_as_the_artifact_does() -> None:
    assert (metrics.ttft_s(TRIAL), metrics.ttft_decode_s(TRIAL)) == (1.0, 1.0)


def test_gaps_of_zero_count() -> None:
    assert metrics.itl_s(TRIAL) == pytest.approx({"mean": 0.6, "p50": 1.0, "p95": 1.0, "p99": 1.0})


def test_one_token_has_no_speed_and_no_gaps() -> None:
    one = Trial("iterative", "sim", 4, (1,), (1.0,), "length", (), ())
    assert metrics.tokens_per_second(one) is None
    assert metrics.ttft_decode_s(one) is None
    assert set(metrics.itl_s(one).values()) == {None}
    assert metrics.summary(one)["acceptance_rate"] is None


def test_a_further_row_costs_the_slope_of_runs_that_had_the_pipe_to_themselves() -> None:
    runs = [
        run("prompt", 8, (9.0, 9.0), submitted_s=0.0, finished_s=1.0),
        run("single", 1, (0.1, 0.1), submitted_s=1.0, finished_s=2.0),
        run("speculative", 5, (0.14, 0.14), submitted_s=2.0, finished_s=3.0),
        # Beside one another, which may have slowed them down; and one that was cut short.
        run("speculative", 3, (0.9, 0.9), submitted_s=3.0, finished_s=5.0),
        run("speculative", 3, (0.9, 0.9), submitted_s=4.0, finished_s=6.0),
        run("speculative", 7, (0.0, 0.0), submitted_s=6.0, finished_s=7.0, cancelled_at=0),
    ]
    trial = msgspec.structs.replace(TRIAL, runs=tuple(runs))
    assert metrics.row_cost([trial]) == pytest.approx(0.1)
    halves = [msgspec.structs.replace(TRIAL, runs=(one,)) for one in runs[1:3]]
    assert metrics.row_cost(halves) == pytest.approx(0.1)
    assert metrics.row_cost(halves[:1]) is None


def test_acceptance_four_ways() -> None:
    assert metrics.acceptance_length(TRIAL) == 1 + (3 + 1) / 2
    assert metrics.acceptance_rate(TRIAL) == 4 / 17
    assert metrics.conditional_acceptance(TRIAL) == [pytest.approx(2 / 3), 0.5, 1.0]
    assert metrics.accepted_histogram(TRIAL) == {0: 1, 1: 1, 3: 1}


def test_runs_add_up() -> None:
    counts = metrics.run_counts(TRIAL)
    assert counts == {"submitted": 8, "verified": 4, "cancelled": 3, "unfinished": 1,
                      "prompt": 1, "single": 1, "speculative": 6}  # fmt: skip
    assert metrics.wasted_rows(TRIAL) == 17 - 4


def test_saved_compute_is_what_completed_runs_of_that_width_took_there() -> None:
    # 0.3 - 0.05 where a run was cut short; 0.2 + 0.3 where one was skipped on both stages; two rows: no peer.
    assert metrics.compute_saved_s(TRIAL) == pytest.approx(0.25 + 0.5)


def test_ranks_and_links() -> None:
    assert metrics.utilisation(TRIAL) == {0: 0.5, 1: 0.25}
    assert metrics.bytes_per_token(TRIAL) == {"0>1": 100.0, "1>head": 10.0}


def test_the_summary_has_the_promised_keys() -> None:
    summary = metrics.summary(TRIAL)
    assert summary["token_ids"] == [1, 2, 3, 4, 5, 6]
    assert {"strategy", "tokens_per_second", "ttft_s", "acceptance_length", "acceptance_rate"} <= set(summary)
    assert set(summary["itl_s"]) == {"mean", "p50", "p95", "p99"}
    assert {"submitted", "verified", "cancelled"} <= set(summary["runs"])
    assert {"rank", "role", "layers", "peak_memory"} <= set(summary["ranks"][0])


@pytest.mark.parametrize(
    ("strategy", "options"),
    [
        ("speculative", {"k": 3}),
        ("pipeinfer", {"draft": 3}),
        ("pipeinfer", {"draft": 1}),
        ("pipeinfer", {"draft": 2, "cancellation": False}),
        ("redundant", {"draft": 2}),
        ("pipeinfer", {"draft": 2, "continuous": False}),
    ],
)
def test_conditional_acceptance_finds_the_rate_of_the_trace(strategy: str, options: dict[str, Any]) -> None:
    setting = Setting(strategy, options, nodes=4, acceptance=0.7, tokens=1500)
    trial = simulate_one(cluster("haswell-fdr"), pair("dolphin-tinyllama"), setting)
    for rate in metrics.conditional_acceptance(trial):
        assert rate == pytest.approx(0.7, abs=0.06)


def test_a_median_has_a_band_unless_there_is_nothing_to_resample() -> None:
    low, high = interval([1.0, 2.0, 3.0, 4.0, 10.0])
    assert low < 3.0 < high
    assert interval([2.0, 2.0, 2.0]) == (2.0, 2.0)
    assert interval([5.0]) == (5.0, 5.0)
    assert interval([1.0, 2.0, 3.0]) == interval([1.0, 2.0, 3.0])


def test_values_that_belong_together_are_drawn_together() -> None:
    """A base and a head in which the same repetitions are slow: the ratio is certain though neither of them is."""
    base = [1.0, 5.0, 2.0, 9.0, 3.0, 7.0]
    low, high = interval(base, [2 * value for value in base], statistic=_ratio_of_sums)
    assert (low, high) == (pytest.approx(2.0), pytest.approx(2.0))
    low, high = interval(base, [2 * value for value in reversed(base)], statistic=_ratio_of_sums)
    assert low < 1.9 < 2.1 < high


def _ratio_of_sums(base: Any, head: Any, axis: int = -1) -> Any:
    return np.sum(head, axis) / np.sum(base, axis)
