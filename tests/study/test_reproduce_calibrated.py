"""Recipes on a calibrated cluster: its costs, its links and its own pair, as far as it has ranks."""

from pathlib import Path

import msgspec
import pytest
from experiments import analyse

from pipeinfer.modelling import profiled_cluster
from pipeinfer.modelling.profile import Curve, LinkProfile, ModelProfile, Profile, RankProfile, write_profile
from pipeinfer.report.write import conclude
from pipeinfer.results import metrics
from pipeinfer.results.records import Store
from pipeinfer.study.growth import grown
from pipeinfer.study.identity import config_hash
from pipeinfer.study.points import SimCell, points
from pipeinfer.study.recipes import Recipe
from pipeinfer.study.run import check, run
from pipeinfer.study.selection import Wish, select
from pipeinfer.workload import WorkloadError


def flat(seconds: float) -> Curve:
    return Curve((1, 4), (1,), ((seconds, 1.5 * seconds),))


RANK = RankProfile("a", 10**9, flat(1e-3), flat(1e-3), flat(2e-3))
PROFILE = Profile(
    name="desk",
    backend="numpy",
    target=ModelProfile("target", 8, 256, 2048, 10**6, 10**6),
    draft_model=ModelProfile("draft", 2, 160, 2048, 10**5, 10**5),
    ranks=(RANK,) * 5,
    draft=flat(5e-4),
    links=(LinkProfile(-1, 0, 1e-4, 1e9), LinkProfile(0, 1, 1e-4, 1e9), LinkProfile(1, -1, 2e-4, 1e9)),
    contention=(1.0, 1.1),
)


@pytest.fixture
def desk(tmp_path: Path) -> str:
    write_profile(PROFILE, tmp_path / "desk.json")
    return str(tmp_path / "desk.json")


def only(name: str, cluster: str) -> Recipe:
    (recipe,) = select([name], Wish("sim", cluster)).recipes
    return recipe


def simulated(recipe: Recipe) -> list[SimCell]:
    return [point.cell for point in points(recipe) if isinstance(point.cell, SimCell)]


def short(recipe: Recipe) -> Recipe:
    """The same cells, of short texts."""
    assert recipe.simulated is not None
    return msgspec.structs.replace(recipe, simulated=msgspec.structs.replace(recipe.simulated, tokens=32, prompt=8))


def test_a_recipe_runs_there_says_where_and_resumes(desk: str, tmp_path: Path) -> None:
    recipe = short(only("speed", desk))
    check([recipe])
    folder, counts = tmp_path / "out", []
    store = Store(folder)
    run(recipe, store, 1, lambda *told: counts.append(told[1:3]))
    planned = len(simulated(recipe))
    recipe = grown(recipe, store.records)
    total = len(simulated(recipe))
    assert (counts[0], counts[-1]) == ((0, planned), (total, total))
    analysis = analyse(recipe, store.records)
    assert (analysis.count("passed"), len(analysis.trials), analysis.missing) == (total, total, 0)
    conclude([recipe], store, folder)
    drawn = (folder / "figures" / "speed-by-nodes.svg").read_text()
    for words in ("Fidelity: sim. target + draft, numpy", "ranks of desk, calibrated", "links as measured"):
        assert words in drawn

    again: list[tuple[int, int]] = []
    run(short(only("speed", desk)), Store(folder), 1, lambda *told: again.append(told[1:3]))
    assert again == [(total, total)]


def test_what_comes_out_is_the_profile_s_simulation(desk: str, tmp_path: Path) -> None:
    recipe, store = only("timeline", desk), Store(tmp_path / "out")
    run(recipe, store, 1, lambda *_: None)
    cell = simulated(recipe)[0]
    trial, expected = store.records[config_hash(cell)].trial, profiled_cluster.simulate_one(PROFILE, cell.setting)
    assert trial is not None
    assert trial.token_ids == expected.token_ids
    assert metrics.tokens_per_second(trial) == pytest.approx(metrics.tokens_per_second(expected), rel=1e-6)
    found = analyse(recipe, store.records)
    (best,) = found.best[found.best.contender == "iterative"].itertuples()
    assert best.limit_tokens_per_s == pytest.approx(1 / (5e-3 + 8e-3 + 2e-3))
    assert found.places[best.place].text.startswith("target + draft, desk, 5 nodes")


def test_a_cell_is_of_the_profile_s_content_wherever_it_lies(desk: str, tmp_path: Path) -> None:
    (tmp_path / "other").mkdir()
    moved, changed = tmp_path / "other" / "moved.json", tmp_path / "changed.json"
    write_profile(PROFILE, moved)
    write_profile(msgspec.structs.replace(PROFILE, message_s=1e-6), changed)
    here, there, other = ({config_hash(cell) for cell in simulated(only("speed", str(path)))}
                          for path in (desk, moved, changed))  # fmt: skip
    assert here == there
    assert not here & other


def test_points_beyond_the_ranks_are_left_out_with_a_note(desk: str) -> None:
    (recipe,), notes = select(["speed"], Wish("sim", desk))
    assert {cell.setting.nodes for cell in simulated(recipe)} == {2, 4}
    assert {cell.setting.acceptance for cell in simulated(recipe)} == {0.52, 0.79}
    assert notes == [
        f"speed: left out target + draft on {nodes} nodes: {nodes} ranks are needed, and 5 were measured"
        for nodes in (8, 16, 32)
    ]


def test_recipes_that_make_no_sense_there_are_noted_beside_others(desk: str) -> None:
    recipes, notes = select(["pairs", "speed", "itl"], Wish("sim", desk))
    assert [recipe.name for recipe in recipes] == ["speed"]
    assert any(note.startswith("left out: recipe pairs: it compares clusters or pairs") for note in notes)
    assert "left out: recipe itl: 8 ranks are needed, and 5 were measured" in notes


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("itl", "recipe itl: 8 ranks are needed, and 5 were measured"),
        ("pairs", "recipe pairs: it compares clusters or pairs, and .*desk.json is one cluster with its own pair"),
        ("hardware", "recipe hardware: it compares clusters or pairs"),
        ("load", "recipe load: several requests at once are simulated on modelled clusters"),
        ("width", "recipe width: what width costs was measured"),
        ("live", "live would really be run"),
    ],
)
def test_when_nothing_is_left_it_is_one_line(desk: str, name: str, message: str) -> None:
    with pytest.raises(WorkloadError, match=message):
        select([name], Wish(None, desk))


def test_what_the_draft_costs_is_as_measured(tmp_path: Path) -> None:
    path = tmp_path / "large.json"
    write_profile(msgspec.structs.replace(PROFILE, ranks=(RANK,) * 8), path)
    with pytest.raises(WorkloadError, match="recipe draft-cost: what the draft costs was measured"):
        select(["draft-cost"], Wish("sim", str(path)))


def test_files_that_are_no_profiles_are_refused(tmp_path: Path) -> None:
    (tmp_path / "broken.json").write_text("{}")
    for name, message in (("no.json", "cannot read the profile"), ("broken.json", "is not a profile")):
        with pytest.raises(ValueError, match=message):
            select(["speed"], Wish("sim", str(tmp_path / name)))
