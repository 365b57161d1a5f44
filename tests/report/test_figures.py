"""Every kind of figure is drawn, says what it shows, and is the same each time."""

from pathlib import Path

import msgspec
import pandas as pd
import pytest
from drawn_texts import looked_at
from experiments import analyse, at
from pools import pool

from pipeinfer.report.axes import X, Y
from pipeinfer.report.captions import swept, title
from pipeinfer.report.drawn import Drawings, fingerprint
from pipeinfer.report.experiment import Experiment
from pipeinfer.report.figures import draw, draw_card, figure_name
from pipeinfer.report.page import rounded
from pipeinfer.report.tables import results
from pipeinfer.results.frame import Tables
from pipeinfer.results.records import Store
from pipeinfer.study.points import SimCell, points
from pipeinfer.study.recipes import Contender, Figure, Recipe, Simulated, read_recipe, recipe_names
from pipeinfer.study.run import run

RECIPE = Recipe(
    title="Small", about="A small sweep.", claims=["C1"], expected="a figure", minutes=0.1, hardware="any",
    name="small",
    strategies={
        "iterative": Contender(),
        "speculative": Contender(options={"k": [1, 2], "cutoff": [0.0, 0.4]}),
        "pipeinfer": Contender(options={"draft": [1], "cutoff": [0.0, 0.4]}),
    },
    simulated=Simulated(
        pairs=["dolphin-tinyllama"], clusters=["haswell-gigabit"], nodes=[4],
        acceptance=["0.6", "varied 0.6", "builtin-sampled"], seeds=[0, 1, 2], tokens=16, prompt=4,
    ),
)  # fmt: skip


@pytest.fixture(scope="module")
def records(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("small")
    run(RECIPE, Store(folder), 1, lambda *_: None)
    return folder


@pytest.fixture(scope="module")
def experiment(records: Path) -> Experiment:
    return analyse(RECIPE, Store(records).records)


FIGURES = [
    (Figure("lines", x="nodes", panels=("drafts",)), "Thin: closed form"),
    (Figure("lines", x="nodes", y="gain", panels=("acceptance",)), "published: up to 2.15x"),
    (Figure("lines", x="cutoff", y="gap", panels=("acceptance",)), "K swept, the best shown"),
    (Figure("lines", x="size", y="memory", panels=("acceptance",)), "Cutoff swept, the best shown"),
    (Figure("lines", x="nodes", y="per_memory", panels=("acceptance",)), "tokens/s per GB of all ranks"),
    (Figure("lines", x="nodes", y="utilisation", panels=("acceptance",)), "utilisation (share of the time)"),
    (Figure("dots", panels=("rate",)), "Each dot is one of 3 draws or texts"),
    (Figure("percentiles", y="gaps", panels=("acceptance",)), "Gaps of zero"),
    (Figure("calibration"), "confidence of the draft"),
    (Figure("stretches"), "share of stretches all right"),
]


@pytest.fixture(scope="module")
def drawn(experiment: Experiment, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[str]]:
    """A folder with all of them and their cards, and which of their words lie on others."""
    folder = tmp_path_factory.mktemp("drawn")
    with pytest.MonkeyPatch.context() as patch, looked_at(patch) as sheet, Drawings() as drawings:
        for figure, _ in FIGURES:
            draw(drawings, experiment, figure, folder)
            if figure.kind in ("lines", "dots"):
                draw_card(drawings, experiment, figure, folder / "cards" / figure_name(RECIPE, figure), "C1")
    return folder, sheet.problems


@pytest.mark.parametrize(("figure", "words"), FIGURES, ids=lambda one: getattr(one, "kind", ""))
def test_a_figure_says_what_it_shows(drawn: tuple[Path, list[str]], figure: Figure, words: str) -> None:
    path = drawn[0] / f"{figure_name(RECIPE, figure)}.svg"
    assert path.with_suffix(".png").stat().st_size > 10_000
    text = " ".join(path.read_text().split())
    assert words in text
    assert f"<title>{title(RECIPE, figure)}</title>" in text
    assert title(RECIPE, figure).startswith("Small: ")
    assert figure.kind in ("calibration", "stretches") or "Fidelity: sim. Dolphin 70B" in text


def test_no_word_of_a_figure_lies_on_another_or_leaves_the_sheet(drawn: tuple[Path, list[str]]) -> None:
    _, problems = drawn
    assert not problems, "\n".join(problems)


def test_of_some_contenders_a_figure_has_no_others(experiment: Experiment, tmp_path: Path) -> None:
    """As on the card of a claim about one mechanism; and what only a caption explains is not on a card."""
    with Drawings() as drawings:
        for name, one in {"all": experiment, "some": experiment.among(["pipeinfer"])}.items():
            draw_card(drawings, one, Figure("lines", panels=("acceptance",)), tmp_path / name, "C4")
    words = {name: (tmp_path / f"{name}.svg").read_text() for name in ("all", "some")}
    assert "<!-- speculative -->" in words["all"]
    assert "<!-- speculative -->" not in words["some"]
    assert "<!-- pipeinfer -->" in words["some"]
    assert "<title>C4: generation speed (tokens/s)</title>" in words["some"]
    assert "Experiment small (sim): dolphin-tinyllama, haswell-gigabit, 4 nodes, prompt of 4." in words["some"]


def test_a_figure_is_the_same_each_time_whoever_draws_it(
    experiment: Experiment, drawn: tuple[Path, list[str]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One of each kind: the first is drawn by this process again, the rest by another; what goes wrong there is told
    here."""
    monkeypatch.setattr("pipeinfer.report.drawn.FEW", 1)
    with pool(1) as other:
        with Drawings(lambda: other) as drawings:
            kinds = {figure.kind: figure for figure, _ in FIGURES}.values()
            paths = {draw(drawings, experiment, figure, tmp_path / "there") for figure in kinds}
        assert set(drawings.seconds) == paths
        assert len(paths) == len(kinds) == 5
        (tmp_path / "file").touch()
        monkeypatch.setattr("pipeinfer.report.drawn.FEW", 0)
        with pytest.raises(OSError, match="file"), Drawings(lambda: other) as drawings:
            draw(drawings, experiment, FIGURES[0][0], tmp_path / "file")
    again = [path for path in (tmp_path / "there").iterdir() if path.is_file()]
    assert len(again) == 2 * len(kinds)
    for one in again:
        assert (drawn[0] / one.name).read_bytes() == one.read_bytes()


def test_a_table_and_a_figure_write_a_speed_alike(experiment: Experiment, drawn: tuple[Path, list[str]]) -> None:
    dots = (drawn[0] / f"{figure_name(RECIPE, Figure('dots', panels=('rate',)))}.svg").read_text()
    shown = results(experiment)
    for row in shown.rows:
        assert f"<!-- {row[2]}" in dots, row
    for value, words in {3.3: "3.30", 16.0: "16.0", 258.7: "259", 1708.2: "1708", 0.136: "0.136", 0.0: "0"}.items():
        assert rounded(value) == words
    assert rounded(float("nan")) == "-"


def test_rows_are_in_the_recipe_s_order_whichever_contender_was_run_first(experiment: Experiment) -> None:
    others = experiment.trials.sort_values("contender", ascending=False, kind="stable")
    assert list(others.contender) != list(experiment.trials.contender)
    tables = Tables(others, experiment.gaps, experiment.ranks, experiment.spans)
    assert results(Experiment(RECIPE, tables)).rows == results(experiment).rows
    assert [row[1].partition(" ")[0] for row in results(experiment).rows] == [*RECIPE.strategies] * 3


def test_cutoffs_are_run_only_where_confidence_tells() -> None:
    found: dict[str, set[str]] = {}
    for _, cell in points(RECIPE):
        assert isinstance(cell, SimCell)
        kind = cell.setting.trace or ("varied" if cell.setting.difficulty else "independent")
        found.setdefault(kind, set()).update(cell.setting.options)
    assert found == {
        "independent": {"k", "draft"}, "varied": {"k", "draft", "cutoff"}, "builtin-sampled": {"k", "draft", "cutoff"},
    }  # fmt: skip


def test_a_gain_is_over_the_best_baseline_draw_by_draw(experiment: Experiment) -> None:
    for place in experiment.places:
        rows = experiment.valid[(experiment.valid.place == place) & (experiment.valid.contender == "speculative")]
        speeds = rows.groupby("variant").tokens_per_s.median()
        assert at(experiment, place)["speculative"].tokens_per_s == speeds.max()
        best = rows[rows.variant == speeds.idxmax()].set_index("draw").tokens_per_s
        own = experiment.best[(experiment.best.place == place) & (experiment.best.contender == "pipeinfer")]
        own = own.set_index("draw")
        assert len(own) == 3
        assert (own.over_speculative == own.tokens_per_s / best[own.index]).all()


def test_a_table_says_where_only_what_differs_and_has_the_percentiles(experiment: Experiment) -> None:
    shown = results(experiment)
    assert {row[0] for row in shown.rows} == {
        "acceptance 0.6", "varied acceptance 0.6", "builtin-sampled acceptance 0.62",
    }  # fmt: skip
    assert {"p50 (ms)", "p95 (ms)", "p99 (ms)", "largest rank (GB)", "limit (tokens/s)"} <= set(shown.head)
    assert all(len(row) == len(shown.head) for row in shown.rows)
    assert "further row" not in shown.head, "nothing was measured of it"
    at_limit = list(shown.head).index("limit (tokens/s)")
    limits = {row[0]: row[at_limit] for row in shown.rows if row[1].startswith("pipeinfer")}
    assert limits["acceptance 0.6"] != "-"
    assert limits["builtin-sampled acceptance 0.62"] == "-", "closed forms are for i.i.d. acceptance"


@pytest.mark.parametrize("name", recipe_names())
def test_every_recipe_s_figures_can_be_named_and_labelled(name: str) -> None:
    recipe = read_recipe(name)
    names = [figure_name(recipe, figure) for figure in recipe.figures]
    assert len(set(names)) == len(names)
    for figure in recipe.figures:
        assert figure.x in X
        assert figure.y in Y
        assert "swept" in swept(recipe, figure) or not swept(recipe, figure)
    assert recipe.minutes > 0
    assert recipe.hardware
    assert recipe.expected


def test_the_baseline_s_k_is_swept_wherever_it_runs_and_its_cutoff_where_that_does_something() -> None:
    for name in recipe_names():
        recipe = read_recipe(name)
        baseline = recipe.strategies.get("speculative")
        if baseline is None or recipe.simulated is None or recipe.requests:
            continue  # beside several requests it is held against itself, not against the best of others
        assert len(baseline.options["k"]) > 1, name
        tells = any("varied" in word or "builtin" in word for word in recipe.simulated.acceptance)
        assert not tells or len(baseline.options["cutoff"]) > 1, name


def test_an_unknown_panel_or_quantity_is_refused() -> None:
    for field, value in {"y": "sped", "x": "node", "kind": "line"}.items():
        with pytest.raises(msgspec.ValidationError):
            msgspec.convert({"kind": "lines", field: value}, Figure)


def test_trials_that_failed_have_a_fingerprint_too() -> None:
    some = [fingerprint("x", pd.DataFrame({"accepted": [[1, 2], missing]})) for missing in (float("nan"), None, [3])]
    assert some[0] == some[1] != some[2]
