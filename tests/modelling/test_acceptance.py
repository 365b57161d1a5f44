"""What decides which drafts are right in simulations: by name, by position difficulty, and as recorded."""

from pathlib import Path

import msgspec
import numpy as np
import pytest

from pipeinfer.assets import asset
from pipeinfer.core.strategies.iterative import Iterative
from pipeinfer.core.strategies.pipeinfer import PipeInfer
from pipeinfer.core.strategies.speculative import Speculative
from pipeinfer.modelling.acceptance import Acceptance, acceptance, recorded
from pipeinfer.modelling.platform import ModelledPlatform
from pipeinfer.modelling.simulate import Setting, side_by_side
from pipeinfer.modelling.sweeps import first_options
from pipeinfer.runtime.oracle import RANKS, Difficulty, Trace, independent, read_trace, varied
from pipeinfer.workload import WorkloadError, cluster, names, pair


def first(trace: Trace) -> tuple[np.ndarray, np.ndarray]:
    """Whether the first candidate is right, and how confident the draft is of it."""
    return np.asarray(trace.ranks) == 0, np.asarray(trace.confidences)[:, 0]


def test_levels_and_rates_are_independent_and_marked_as_assumed() -> None:
    assert acceptance("poor") == Acceptance(0.52)
    assert acceptance("good") == Acceptance(0.79)
    assert acceptance("0.3") == Acceptance(0.3)
    assumed = [*names("acceptance", "level"), *names("acceptance", "phases")]
    assert asset("workloads/acceptance.toml").read_text().count('source = "assumed') == len(assumed)


def test_a_difficulty_goes_with_any_rate() -> None:
    assert acceptance("varied good").rate == 0.79
    assert acceptance("varied good").difficulty is not None
    assert acceptance("varied 0.3").difficulty == acceptance("varied good").difficulty


def test_a_recorded_trace_brings_its_own_rate() -> None:
    assert acceptance("builtin-greedy").rate == recorded("builtin-greedy").acceptance


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("god", 'no acceptance "god"; did you mean "good"? there are: alternating, builtin-greedy, builtin-sampled, '),
        ("builtin-gredy", 'no acceptance "builtin-gredy"; did you mean "builtin-greedy"?'),
        ("vried good", 'no difficulty "vried"; did you mean "varied"? there are: varied'),
        ("varied god", 'no acceptance "god"; did you mean "good"? there are: diverse, good, poor, repetitive'),
        ("varied builtin-greedy", 'no acceptance "builtin-greedy"'),
        ("1.0", "acceptance 1.0: expected 0 to below 1"),
        ("varied -0.1", "acceptance -0.1: expected 0 to below 1"),
    ],
)
def test_an_unknown_name_gets_the_nearest_known_one(text: str, message: str) -> None:
    with pytest.raises(WorkloadError) as caught:
        acceptance(text)
    assert str(caught.value).startswith(message)


# Position difficulty


@pytest.mark.parametrize("rate", [0.2, 0.52, 0.79])
@pytest.mark.parametrize("spread", [0.2, 0.54, 0.8])
def test_difficulty_keeps_the_rate_and_its_independence(rate: float, spread: float) -> None:
    right, _ = first(varied(rate, Difficulty(spread, 0.1), length=20_000))
    assert right.mean() == pytest.approx(rate, abs=0.012)
    assert np.corrcoef(right[1:], right[:-1])[0, 1] == pytest.approx(0, abs=0.025)


@pytest.mark.parametrize("spread", [0.3, 0.54, 0.8])
def test_without_noise_confidence_is_calibrated_and_tells_as_much_as_the_spread_says(spread: float) -> None:
    right, confidence = first(varied(0.6, Difficulty(spread, 0.0), length=40_000))
    for low in np.arange(0, 1, 0.2):
        inside = (confidence >= low) & (confidence < low + 0.2)
        if inside.sum() > 500:
            assert right[inside].mean() == pytest.approx(confidence[inside].mean(), abs=0.03)
    assert np.corrcoef(right, confidence)[0, 1] == pytest.approx(spread, abs=0.02)


def test_candidates_are_right_as_often_as_their_confidence_says() -> None:
    trace = varied(0.5, Difficulty(0.5, 0.0), length=40_000)
    for k in range(RANKS):
        claimed = np.mean([confidences[k] for confidences in trace.confidences])
        assert np.mean(np.asarray(trace.ranks) == k) == pytest.approx(claimed, abs=0.01)


def test_draws_differ_and_repeat() -> None:
    difficulty = Difficulty(0.5, 0.1)
    assert varied(0.5, difficulty, seed=1, length=64) == varied(0.5, difficulty, seed=1, length=64)
    assert varied(0.5, difficulty, seed=1, length=64) != varied(0.5, difficulty, seed=2, length=64)


# Against what was recorded


def test_the_shipped_traces_are_twenty_texts_each_and_say_how_they_were_made() -> None:
    for name in names("acceptance", "trace"):
        trace = recorded(name)
        assert list(trace.lengths) == [128] * 20
        assert "builtin:target + builtin:draft" in trace.source
    assert recorded("builtin-greedy").acceptance == pytest.approx(0.788, abs=0.001)
    assert recorded("builtin-sampled").acceptance == pytest.approx(0.617, abs=0.001)


def test_the_difficulty_that_is_shipped_resembles_what_was_recorded() -> None:
    fitted = acceptance(f"varied {recorded('builtin-sampled').acceptance}")
    assert fitted.difficulty is not None
    modelled = first(varied(fitted.rate, fitted.difficulty, length=20_000))
    seen = first(recorded("builtin-sampled"))
    assert np.corrcoef(*modelled)[0, 1] == pytest.approx(np.corrcoef(*seen)[0, 1], abs=0.03)
    assert modelled[1].std() == pytest.approx(seen[1].std(), abs=0.03)
    for low in np.arange(0.1, 1, 0.2):
        rates = [right[(c >= low) & (c < low + 0.2)].mean() for right, c in (modelled, seen)]
        assert rates[0] == pytest.approx(rates[1], abs=0.08)


def test_a_greedy_target_agrees_more_often_than_the_draft_believes() -> None:
    right, confidence = first(recorded("builtin-greedy"))
    for low in np.arange(0, 1, 0.2):
        inside = (confidence >= low) & (confidence < low + 0.2)
        assert right[inside].mean() > confidence[inside].mean()


# Texts of a trace


def test_a_text_of_a_trace_begins_where_the_prompt_ends() -> None:
    confidences = [[float(i)] + [0.0] * (RANKS - 1) for i in range(5)]
    trace = Trace([0, 1, 2, 3, 4], confidences, lengths=[2, 3])
    second = trace.text(1, 10)
    assert [second.candidates(position, 1)[0][1] for position in range(10, 16)] == [2.0, 3.0, 4.0, 2.0, 3.0, 4.0]
    assert trace.text(3, 10) == second
    assert (trace.text(0, 7).ranks, trace.text(0, 7).lengths) == ([1, 0], ())


def test_texts_that_do_not_make_up_the_trace_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "trace.json"
    path.write_bytes(msgspec.json.encode(msgspec.structs.replace(independent(0.5, length=4), lengths=[2, 3])))
    with pytest.raises(ValueError, match="expected texts of 4 tokens together, came 5"):
        read_trace(path)


def test_a_text_changes_its_kind_after_so_many_tokens() -> None:
    drafts = acceptance("alternating")
    assert drafts.phases is not None
    assert drafts.phases.rates == (acceptance("repetitive").rate, acceptance("diverse").rate)
    assert drafts.rate == pytest.approx(sum(drafts.phases.rates) / 2)
    length = drafts.phases.tokens
    assert [drafts.chance(10 + at, 10) for at in (0, length - 1, length, 2 * length)] == [0.92, 0.92, 0.35, 0.92]
    oracle = drafts.oracle(seed=3, start=10, length=10 + 40 * length)
    assert isinstance(oracle, Trace)
    right, _ = first(oracle)
    even = np.asarray([(at - 10) // length % 2 == 0 for at in range(len(right))])
    assert right[even].mean() == pytest.approx(0.92, abs=0.02)
    assert right[~even].mean() == pytest.approx(0.35, abs=0.03)
    with pytest.raises(WorkloadError, match='did you mean "alternating"'):
        acceptance("alternatng")


# Cutoffs


def test_cutoffs_are_tried_where_confidence_means_something() -> None:
    assert first_options(Speculative(), confident=False) == [{"k": k} for k in (1, 2, 3, 4, 6, 8)]
    tried = first_options(Speculative(), confident=True)
    assert len(tried) == 6 * 4
    assert {"k": 4, "cutoff": 0.4} in tried
    assert all(options["decay"] == 0 for options in first_options(PipeInfer(), confident=True))
    assert first_options(Iterative(), confident=True) == [{}]
    where = ModelledPlatform(cluster("haswell-gigabit"), pair("dolphin-tinyllama"))
    plain = Setting("", tokens=16)
    for setting, least in ((plain, 6), (msgspec.structs.replace(plain, trace="builtin-greedy"), 24)):
        (found,) = side_by_side(where.simulate, ["speculative"], setting, sweep=True)
        assert found.tried >= least
        assert ("cutoff" in found.options) == (least == 24)


def test_a_cutoff_pays_where_drafting_and_width_cost_and_confidence_is_right() -> None:
    drafts = acceptance("varied 0.5")
    setting = Setting("", nodes=8, acceptance=0.5, difficulty=drafts.difficulty, tokens=96)
    where = ModelledPlatform(cluster("haswell-gigabit"), pair("dolphin-orca2"))
    (best,) = side_by_side(where.simulate, ["speculative"], setting, sweep=True)
    assert best.options["cutoff"] > 0
