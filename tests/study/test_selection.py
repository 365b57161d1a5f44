"""What `reproduce` runs: at which fidelity, on which cluster, over which ranks; and what it refuses."""

from pathlib import Path

import pytest

from pipeinfer import workload
from pipeinfer.assets import asset
from pipeinfer.results.frame import collected
from pipeinfer.study.identity import config_hash, record_of
from pipeinfer.study.places import Place
from pipeinfer.study.points import SimCell, cells, points
from pipeinfer.study.recipes import Emulation, Recipe, recipe_names
from pipeinfer.study.run import check
from pipeinfer.study.selection import Wish, select
from pipeinfer.workload import WorkloadError

MINE = """
[node.box]
title = "A box"
memory_bandwidth_gbs = 40
peak_gflops = 500
memory_gb = 10
bandwidth_efficiency = 0.8
arithmetic_efficiency = 0.4
overhead_us = 20
source = "made up"

[cluster.mine]
nodes = ["box", "core-i7-7700"]
link = "10-gigabit-ethernet"
"""


@pytest.fixture
def mine(tmp_path: Path) -> Path:
    """A user's cluster, with nodes of little memory."""
    path = tmp_path / "mine.toml"
    path.write_text(MINE)
    return path


def only(name: str, wish: Wish) -> Recipe:
    (recipe,) = select([name], wish).recipes
    return recipe


def test_without_a_wish_every_recipe_is_simulated_or_live() -> None:
    recipes, notes = select([], Wish())
    assert {recipe.name for recipe in recipes} == set(recipe_names())
    assert {recipe.fidelity for recipe in recipes} == {"sim", "real"}
    assert notes == []


def test_emulated_are_the_recipes_that_say_which_part() -> None:
    recipes, _ = select([], Wish("emulated"))
    assert {recipe.fidelity for recipe in recipes} == {"emulated"}
    assert {"speed", "bandwidth", "ablation", "microbatch"} <= {recipe.name for recipe in recipes}
    assert "live" not in {recipe.name for recipe in recipes}
    with pytest.raises(WorkloadError, match="none of live has fidelity emulated"):
        select(["live"], Wish("emulated"))


@pytest.mark.parametrize("fidelity", ["sim", "emulated"])
def test_another_cluster_takes_the_place_of_the_recipe_s(fidelity: str, mine: Path) -> None:
    recipe = only("speed", Wish(fidelity, str(mine)))
    found = [cell for cell in cells(recipe) if isinstance(cell, SimCell)]
    assert {workload.cluster(cell.cluster).name for cell in found} == {"mine"}
    failed = record_of(found[0], None, 0.0, error="not run")
    (row,) = collected([(failed, [("speed", "iterative")])]).trials.itertuples()
    assert ", mine, " in Place.of(row).text
    check([recipe])


def test_a_place_says_what_is_usual_where_others_differ_in_it() -> None:
    usual = Place("haswell-gigabit", "dolphin-tinyllama", 4, 0.52, "", "same-ranks", 1.0, 1.0, None, 50.0, None, 64, 1)
    dear = usual._replace(width_cost=2.0)
    assert [place.differing([usual, dear]) for place in (usual, dear)] == ["row cost 1", "row cost 2"]
    assert usual.text == "dolphin-tinyllama, haswell-gigabit, 4 nodes, acceptance 0.52, 0.05 ms"


def test_a_cell_is_the_same_wherever_the_cluster_s_file_lies(mine: Path, tmp_path: Path) -> None:
    (tmp_path / "other").mkdir()
    moved = tmp_path / "other" / "moved.toml"
    moved.write_text(MINE)
    faster = tmp_path / "faster.toml"
    faster.write_text(MINE.replace("= 40", "= 41"))
    (here, there, changed) = ([config_hash(cell) for cell in cells(only("speed", Wish(cluster=str(path))))]
                              for path in (mine, moved, faster))  # fmt: skip
    assert here == there
    assert not set(here) & set(changed)


def test_one_of_several_clusters_of_a_file(tmp_path: Path) -> None:
    path = tmp_path / "both.toml"
    path.write_text(MINE + MINE[MINE.index("[cluster.mine]") :].replace("mine", "yours"))
    assert workload.cluster(f"{path}:yours").name == "yours"
    with pytest.raises(WorkloadError, match=r"which of them as .*NAME; there are: mine, yours"):
        workload.cluster(str(path))


def test_points_without_room_are_left_out_with_a_note(mine: Path) -> None:
    recipes, notes = select(["speed", "timeline"], Wish(cluster=str(mine)))
    nodes = {recipe.name: {cell.setting.nodes for cell in map_simulated(recipe)} for recipe in recipes}
    assert nodes == {"speed": {8, 16, 32}, "timeline": {5}}
    assert notes[1].startswith(
        "speed: left out dolphin-tinyllama on 4 nodes: mine: rank 0 has 10 GB of memory and needs"
    )


def map_simulated(recipe: Recipe) -> list[SimCell]:
    return [point.cell for point in points(recipe) if isinstance(point.cell, SimCell)]


def test_a_recipe_without_any_room_is_left_out_and_the_last_one_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "tiny.toml"
    path.write_text(MINE.replace("memory_gb = 10", "memory_gb = 5"))
    recipes, notes = select(["speed", "timeline"], Wish(cluster=str(path)))
    assert [recipe.name for recipe in recipes] == ["speed"]
    assert notes[-1].startswith("left out: recipe timeline: mine: rank 0 has 5 GB of memory and needs")
    with pytest.raises(WorkloadError, match="recipe timeline: mine: rank 0 has 5 GB"):
        select(["timeline"], Wish(cluster=str(path)))


@pytest.mark.parametrize(
    ("names", "wish", "message"),
    [
        (["speed"], Wish(cluster="haswell-gigabt"), 'no cluster "haswell-gigabt"; did you mean "haswell-gigabit"'),
        (["speed"], Wish(cluster="no/such.toml"), "no/such.toml: cannot be read: No such file"),
        (["live"], Wish(cluster="haswell-gigabit"), "--cluster haswell-gigabit: live would really be run"),
        (["speed"], Wish("emulated", ranks=3), "recipe speed: 4 ranks are needed, and there are 3"),
    ],
)
def test_what_cannot_be_is_one_line(names: list[str], wish: Wish, message: str) -> None:
    with pytest.raises(WorkloadError) as caught:
        select(names, wish)
    assert str(caught.value).startswith(message)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (("overhead_us", "overhead"), 'node.box: unknown key "overhead"; did you mean "overhead_us"'),
        (("[cluster.mine]", "[clusters.mine]"), 'unknown key "clusters"; did you mean "cluster"'),
        (('"box"', '"bx"'), 'cluster.mine.nodes: node "bx"; did you mean "box"'),
        (("memory_gb = 10", 'memory_gb = "12"'), "node.box.memory_gb: expected `float`, got `str`"),
    ],
)
def test_what_is_wrong_in_a_cluster_s_file_is_named_with_its_path(
    mine: Path, change: tuple[str, str], message: str
) -> None:
    mine.write_text(MINE.replace(*change))
    workload._read.cache_clear()
    with pytest.raises(WorkloadError) as caught:
        select(["speed"], Wish(cluster=str(mine)))
    assert str(mine) in str(caught.value)
    assert message in str(caught.value)


def test_other_weights_are_another_cell(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("{}")
    recipe = only("live", Wish(live={"target": str(tmp_path)}))
    before = config_hash(cells(recipe)[0])
    assert config_hash(cells(recipe)[0]) == before
    (tmp_path / "config.json").write_text("{} ")
    assert config_hash(cells(recipe)[0]) != before


def test_ranks_of_somewhere_else_are_part_of_a_cell() -> None:
    there = {"transport": "tcp", "workers": ("tcp://10.0.0.1:5", "tcp://10.0.0.2:5"), "stages": 1}
    live = only("live", Wish(live=there, ranks=2))
    assert live.live is not None
    assert (live.live.workers, live.live.stages) == (there["workers"], 1)
    assert not {config_hash(cell) for cell in cells(live)} & {
        config_hash(cell) for cell in cells(only("live", Wish()))
    }  # fmt: skip
    emulated = only("timeline", Wish("emulated", live={**there, "target": "x"}, ranks=9))
    assert emulated.emulation == Emulation("tcp", ("tcp://10.0.0.1:5", "tcp://10.0.0.2:5"))


@pytest.mark.parametrize(
    ("changed", "instead", "said"),
    [
        ('tuned_on = ["merge-sorted"', 'tuned_on = ["lru-table"', 'tuned_on: "lru-table" is among the prompts too'),
        ('tuned_on = ["merge-sorted", "line-reader"]\n', "", "tuned_tokens: expected `tuned_on` beside it"),
        ("[live]", "requests = [1, 2]\n\n[live]", "one request at a time: leave it out beside"),
        ("iterative = {}", 'iterative = { program = "iterative" }', "expected strategies of ours"),
        ('prompts = ["async-connect"', 'prompts = ["async-conect"', 'no prompt "async-conect"'),
    ],
)
def test_options_are_chosen_with_prompts_of_their_own_or_not_at_all(
    tmp_path: Path, changed: str, instead: str, said: str
) -> None:
    text = asset("reproduce/live.toml").read_text()
    assert changed in text
    (tmp_path / "tuned.toml").write_text(text.replace(changed, instead, 1))
    with pytest.raises(WorkloadError, match=said):
        check(select([str(tmp_path / "tuned.toml")], Wish()).recipes)


def test_options_may_be_chosen_with_a_whole_set(tmp_path: Path) -> None:
    text = asset("reproduce/live.toml").read_text()
    (tmp_path / "tuned.toml").write_text(text.replace('tuned_on = ["merge-sorted"', 'tuned_on = ["humaneval"', 1))
    recipe = only(str(tmp_path / "tuned.toml"), Wish())
    assert recipe.live is not None
    assert len(recipe.live.tuned_on) > 2
    check([recipe])
