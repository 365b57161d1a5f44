"""Fit trials put back what was taken out of a profile; the recipe that checks the simulator runs and resumes."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
from experiments import analyse
from msgspec.structs import replace

from pipeinfer.cluster.models import Models
from pipeinfer.cluster.plan import Plan
from pipeinfer.modelling.calibrate import calibrate
from pipeinfer.modelling.calibration_fit import fitted
from pipeinfer.modelling.fit_trials import SLOW, STAGES, STRATEGIES, FitTrials, nodes
from pipeinfer.modelling.profile import Curve, LinkProfile, ModelProfile, Profile, RankProfile
from pipeinfer.modelling.profiled_cluster import simulate_one
from pipeinfer.modelling.simulate import Setting
from pipeinfer.report.prediction import error_summary, predictions
from pipeinfer.report.write import conclude
from pipeinfer.results import metrics
from pipeinfer.results.records import FILE, Store
from pipeinfer.runtime.oracle import independent
from pipeinfer.study.identity import config_hash
from pipeinfer.study.points import LiveCell, PredictorCell, cells
from pipeinfer.study.predictor import run_predictor
from pipeinfer.study.recipes import Checked, Contender, Figure, Recipe, Shape
from pipeinfer.study.run import run
from pipeinfer.study.selection import Wish, select


def flat(seconds: float) -> Curve:
    return Curve((1, 16), (1,), ((seconds, 2 * seconds),))


def rank(layer_s: float) -> RankProfile:
    return RankProfile("here", 10**9, flat(1e-4), flat(layer_s), flat(3e-4))


MEASURED = Profile(
    name="desk",
    backend="numpy",
    target=ModelProfile("target", 8, 256, 2048, 10**6, 10**6),
    draft_model=ModelProfile("draft", 2, 160, 2048, 10**5, 10**5),
    ranks=(rank(3e-4),) * 3,
    draft=flat(3e-4),
    links=(LinkProfile(0, 1, 1e-4, 1e10),),
    contention=(1.0, 1.0, 1.5),
    message_s=5e-6,
    head_s=5e-6,
    environment={"cores": {"here": 2}},
)
TRUE = replace(
    MEASURED, ranks=(replace(rank(4.5e-4), run=flat(1.5e-4), head=flat(4.5e-4)),) * 3, draft=flat(4e-4),
    links=(LinkProfile(0, 1, 1.8e-4, 1e10),), contention=(1.0, 1.25, 2.0), message_s=4e-5, head_s=4e-5, cold=8.0,
)  # fmt: skip
"""What the machine is like in a generation."""

TRACE = independent(0.75, length=256)


def fit_trials(profile: Profile) -> FitTrials:
    """As if it had been run on a machine that is just like the simulation of `profile`."""
    settings = {name: Setting(name, nodes=nodes(name, STAGES), tokens=48, prompt=32) for name in STRATEGIES}
    settings[SLOW] = replace(settings["iterative"], latency_us=2000.0)
    trials = {name: [simulate_one(profile, one, oracle=TRACE)] for name, one in settings.items()}
    return FitTrials(trials, settings, TRACE)


@pytest.fixture(scope="module")
def found() -> Profile:
    return fitted(MEASURED, fit_trials(TRUE))


def test_what_was_not_measured_by_itself_is_found(found: Profile) -> None:
    assert found.cold == pytest.approx(TRUE.cold, rel=0.15)
    assert found.message_s == pytest.approx(TRUE.message_s, rel=0.1)
    assert found.ranks[0].layer.at(1, 1) == pytest.approx(4.5e-4, rel=0.02)
    assert found.links[0].latency_s == pytest.approx(1.8e-4, rel=0.15)


@pytest.mark.parametrize("strategy", STRATEGIES)
@pytest.mark.parametrize("stages", [2, 4])
@pytest.mark.parametrize("latency_us", [100.0, 1000.0])
def test_other_depths_and_links_are_then_predicted(
    found: Profile, strategy: str, stages: int, latency_us: float
) -> None:
    setting = Setting(strategy, nodes=nodes(strategy, stages), tokens=48, prompt=32, latency_us=latency_us)

    def speed(profile: Profile) -> float:
        return metrics.tokens_per_second(simulate_one(profile, setting, oracle=TRACE)) or 0.0

    assert speed(found) == pytest.approx(speed(TRUE), rel=0.05)
    assert speed(MEASURED) > 1.1 * speed(TRUE), "without fit trials it would be too fast"


def test_what_further_rows_take_is_found_apart_from_the_first() -> None:
    """Three times the price per row in a generation, and one row as it was measured."""
    dear = [replace(one, layer=Curve((1, 16), (1,), ((3e-4, 12e-4),))) for one in MEASURED.ranks]
    found = fitted(MEASURED, fit_trials(replace(MEASURED, ranks=tuple(dear))))

    def stage_s(ranks: Sequence[RankProfile], rows: int) -> float:
        one = ranks[0]
        return one.run.at(rows, 1) + 4 * one.layer.at(rows, 1) + one.head.at(rows, 1)

    for rows in (1, 2, 5):
        assert stage_s(found.ranks, rows) == pytest.approx(stage_s(dear, rows), rel=0.03)


def test_nothing_is_found_where_nothing_is_missing() -> None:
    found = fitted(MEASURED, fit_trials(MEASURED))
    assert found.cold < 0.1
    assert found.ranks[0].layer.at(1, 1) == pytest.approx(3e-4, rel=5e-3)
    assert np.allclose(found.contention, MEASURED.contention, rtol=0.04)


def test_a_chance_difference_is_no_coldness() -> None:
    held = fit_trials(MEASURED)
    (slow,) = held.by_strategy[SLOW]
    runs = tuple(replace(run, compute_s=tuple(1.01 * seconds for seconds in run.compute_s)) for run in slow.runs)
    held.by_strategy[SLOW] = [replace(slow, runs=runs)]
    assert fitted(MEASURED, held).cold == 0.0


# The recipe

EMULATED = {"layers": 4, "layer_s": 0.5e-3, "draft_s": 0.5e-3, "acceptance": 0.8}
CHECKED = Recipe(
    title="Checked", about="A small check.", claims=[], expected="-", minutes=0.1, hardware="any", name="checked",
    strategies={"iterative": Contender(), "pipeinfer": Contender(options={"draft": [2]})},
    figures=(Figure("scatter"),),
    checked=Checked(
        backends={"emulated": EMULATED}, target="builtin:target", draft="builtin:draft", transport="inproc",
        stages=[3], links=[Shape(1.0, 100.0), Shape(0.1, 300.0)], prompt="merge-sorted", seed=1, tokens=12, repeats=1,
    ),
)  # fmt: skip


def silent(_recipe: Recipe, _done: int, _total: int, _left: float | None) -> None:
    """No progress display."""


def test_a_predictor_is_made_once_before_its_cells() -> None:
    kinds = [type(cell) for cell in cells(CHECKED)]
    assert kinds == [PredictorCell, *[LiveCell] * 4]
    assert len({config_hash(cell) for cell in cells(CHECKED)}) == 5


def test_another_backend_can_be_asked_for() -> None:
    (recipe,) = select(["calibration"], Wish(live={"backend": "torch", "backend_options": {"threads": 1}})).recipes
    assert recipe.checked is not None
    assert recipe.checked.backends == {"torch": {"threads": 1}}
    assert "calibration-engines" not in [one.name for one in select([], Wish()).recipes]
    assert [one.name for one in select(["calibration-engines"], Wish()).recipes] == ["calibration-engines"]


@pytest.fixture
def brief(monkeypatch: pytest.MonkeyPatch) -> None:
    """Measurements too short to be exact."""
    monkeypatch.setattr("pipeinfer.study.predictor.PART_S", 0.01)
    monkeypatch.setattr("pipeinfer.study.predictor.BEYOND", 8)
    monkeypatch.setattr("pipeinfer.modelling.calibrate.CONTENTION_S", 0.01)
    monkeypatch.setattr("pipeinfer.modelling.fit_trials.TOKENS", 16)
    monkeypatch.setattr("pipeinfer.modelling.fit_trials.ROUNDS", 1)
    monkeypatch.setattr("pipeinfer.modelling.calibration_fit.HALVINGS", 4)


@pytest.mark.usefixtures("brief")
def test_recipes_on_the_same_ranks_share_what_was_measured_of_them(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pipeinfer.study.predictor._measured", {})
    measured: list[Plan] = []

    def counted(models: Models, *arguments: Any, **options: Any) -> Profile:
        measured.append(models.plan)
        return calibrate(models, *arguments, **options)

    monkeypatch.setattr("pipeinfer.modelling.calibrate.calibrate", counted)
    (cell,) = [cell for cell in cells(CHECKED) if isinstance(cell, PredictorCell)]
    longer = replace(cell, live=replace(cell.live, tokens=cell.live.tokens + 4))
    elsewhere = replace(longer, live=replace(longer.live, prompts=["line-reader"]))
    first, again, other = (next(run_predictor(one)).predictor for one in (cell, longer, elsewhere))
    assert len(measured) == 2
    assert first["profile"] == again["profile"] != other["profile"]
    assert first["traces"] != again["traces"]


@pytest.mark.usefixtures("brief")
def test_the_check_runs_resumes_and_draws(tmp_path: Path) -> None:
    counted: list[tuple[int, int]] = []

    def count(_recipe: Recipe, done: int, total: int, _left: float | None) -> None:
        counted.append((done, total))

    run(CHECKED, Store(tmp_path), 1, count)
    assert counted[-1] == (5, 5)
    store = Store(tmp_path)
    found = predictions(analyse(CHECKED, store.records))
    assert len(found) == 4
    # How good they are is not for a loaded machine to say.
    assert (found.predicted > 0).all()
    before = (tmp_path / FILE).read_bytes()
    run(CHECKED, store, 1, silent)
    assert (tmp_path / FILE).read_bytes() == before, "nothing is run again"
    conclude([CHECKED], store, tmp_path)
    assert (tmp_path / "figures" / "checked-simulated-over-measured.svg").exists()
    report = (tmp_path / "report.md").read_text()
    assert "emulated, 3 stages, 0.1 Gbit/s, 0.3 ms" in report
    assert error_summary(found).rows[0][:4] == ["emulated", "emulated", "all", "4"]
    first = json.loads(before.splitlines()[0])
    assert msgspec.convert(first["predictor"]["profile"], Profile).backend == "emulated"


def test_an_engine_that_is_not_there_is_an_error_in_the_report(tmp_path: Path) -> None:
    assert CHECKED.checked is not None
    absent = replace(CHECKED, checked=replace(CHECKED.checked, backends={"nothing": {}}))
    store = Store(tmp_path)
    run(absent, store, 1, silent)
    conclude([absent], store, tmp_path)
    assert "Nothing to show" in (tmp_path / "report.md").read_text()
