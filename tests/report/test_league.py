"""Many strategies over many places: who is how near to the best where, in a table, a picture and a sentence."""

from pathlib import Path

import msgspec
import numpy as np
import pytest
from experiments import analyse

from pipeinfer.report.drawn import Drawings
from pipeinfer.report.experiment import Experiment
from pipeinfer.report.figures import draw, figure_name
from pipeinfer.report.league import about, behind, league_table, shares
from pipeinfer.report.page import Table
from pipeinfer.report.tables import notes
from pipeinfer.results.records import Store
from pipeinfer.study.recipes import read_recipe
from pipeinfer.study.run import run

NAMES = ("iterative", "speculative", "pipeinfer", "specpipe", "dsi")


@pytest.fixture(scope="module")
def experiment(tmp_path_factory: pytest.TempPathFactory) -> Experiment:
    whole = read_recipe("strategies")
    assert whole.simulated is not None
    smaller = {"nodes": [3, 5], "acceptance": ["good"], "tokens": 24, "width_cost": [0.0, 1.0]}
    sweep = msgspec.structs.replace(whole.simulated, **smaller)
    strategies = {name: one for name, one in whole.strategies.items() if name in NAMES}
    recipe = msgspec.structs.replace(whole, simulated=sweep, strategies=strategies)
    store = Store(tmp_path_factory.mktemp("league"))
    run(recipe, store, 1, lambda *_: None)
    return analyse(recipe, store.records)


def test_shares_are_of_the_fastest_that_a_cluster_can_run(experiment: Experiment) -> None:
    found = shares(experiment)
    assert set(found.index) == set(NAMES)
    assert found.shape[1] == len(experiment.places) == 4
    assert (found.drop("dsi").max() == 1).all()
    means = np.log(found).mean(axis=1)
    assert list(means) == sorted(means, reverse=True)
    for place in experiment.places:
        rows = experiment.valid[experiment.valid.place == place]
        best = rows.groupby("contender").tokens_per_s.max()  # one draw, so the best variant's is the highest
        assert found.loc["pipeinfer", place] == best["pipeinfer"] / best.drop("dsi").max()


def test_the_table_and_the_sentence_say_the_same_as_the_shares(experiment: Experiment) -> None:
    found, table = shares(experiment), league_table(experiment)
    assert [row[0] for row in table.rows] == [f"{name}*" if name == "dsi" else name for name in found.index]
    own = next(row for row in table.rows if row[0] == "pipeinfer")
    assert own[1:3] == [f"{np.exp(np.log(found.loc['pipeinfer']).mean()):.2f}", f"{found.loc['pipeinfer'].min():.2f}"]
    assert own[5] == "1.00x"
    lost = found.loc["pipeinfer"] <= 0.995
    assert 0 < lost.sum() < 4
    assert f"at {lost.sum()} of 4 points, down to {found.loc['pipeinfer'].min():.2f}" in behind(experiment)
    assert "dsi" not in behind(experiment), "what no cluster can run beats nobody"
    assert "dsi: a copy of the target for each run" in about(experiment)
    (places,) = (block for block in notes(experiment) if isinstance(block, Table))
    assert len(places.rows) == 4 * len(NAMES)


def test_the_picture_has_every_share_and_is_the_same_each_time(experiment: Experiment, tmp_path: Path) -> None:
    (figure,) = experiment.recipe.figures
    drawn = []
    for folder in (tmp_path / "once", tmp_path / "again"):
        with Drawings() as drawings:
            draw(drawings, experiment, figure, folder)
        drawn.append((folder / f"{figure_name(experiment.recipe, figure)}.svg").read_bytes())
    assert drawn[0] == drawn[1]
    text = drawn[0].decode()
    for share in shares(experiment).to_numpy().ravel():
        assert f"<!-- {share:.2f} -->" in text
    assert "<!-- 3 nodes -->" in text
