"""Emulated recipes: the tokens of the simulation, in about its time, from ranks that are really there."""

import itertools
import json
from pathlib import Path
from typing import Any

import msgspec
import pytest
from experiments import analyse

from pipeinfer import workload
from pipeinfer.modelling.profile import Curve
from pipeinfer.modelling.simulate import Setting, prepare
from pipeinfer.report.experiment import Experiment
from pipeinfer.report.tables import emulated_and_simulated
from pipeinfer.report.write import conclude
from pipeinfer.results.records import Store
from pipeinfer.study.emulated import plan, waits
from pipeinfer.study.identity import config_hash
from pipeinfer.study.points import EmulatedCell, cells, points
from pipeinfer.study.recipes import Contender, Emulation, Figure, Recipe, Simulated, emulated, read_recipe, recipe_names
from pipeinfer.study.run import run
from pipeinfer.workload import WorkloadError

CLUSTER = """
[node.quick]
title = "A quick node"
memory_bandwidth_gbs = 100000
peak_gflops = 1000000
memory_gb = 1000
bandwidth_efficiency = 1.0
arithmetic_efficiency = 1.0
overhead_us = 100
source = "made up"

[cluster.quick]
nodes = ["quick"]
link = "gigabit-ethernet"
"""
"""80 layers of 0.1 ms beside hardly anything else: a generation takes a fraction of a second."""


@pytest.fixture(scope="module")
def quick(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A cluster on which a 70B model is quick."""
    path = tmp_path_factory.mktemp("cluster") / "quick.toml"
    path.write_text(CLUSTER)
    return str(path)


def recipe(cluster: str) -> Recipe:
    return Recipe(
        title="Small", about="A small sweep.", claims=["C1"], expected="a figure", minutes=0.1, hardware="any",
        name="small", figures=(Figure("lines", y="gap"), Figure("timeline")),
        strategies={
            "iterative": Contender(),
            "speculative": Contender(options={"k": [2]}),
            "pipeinfer": Contender(options={"draft": [1, 2]}),
        },
        simulated=Simulated(
            pairs=["dolphin-tinyllama"], clusters=[cluster], nodes=[3, 32], acceptance=["good"], seeds=[0, 1, 2],
            tokens=128, prompt=64,
        ),
        emulated={"nodes": [3], "seeds": [0], "tokens": 16, "prompt": 4},
    )  # fmt: skip


@pytest.fixture(scope="module")
def done(quick: str, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Experiment, list[Any]]:
    """The folder, the analysis and the progress of the small recipe, emulated over threads."""
    folder = tmp_path_factory.mktemp("emulated")
    store = Store(folder)
    chosen = emulated(recipe(quick), Emulation("inproc"))
    progress: list[Any] = []
    run(chosen, store, 1, lambda *told: progress.append(told[1:]))
    conclude([chosen], store, folder)
    return folder, analyse(chosen, store.records), progress


def test_tokens_are_the_simulation_s_and_no_wait_is_left_out(done: Any) -> None:
    _, analysis, _ = done
    assert (analysis.count("passed"), len(analysis.trials), analysis.missing) == (4, 4, 0)
    assert set(analysis.trials.fidelity) == {"emulated"}
    assert set(analysis.simulated.fidelity) == {"sim"}
    both = emulated_and_simulated(analysis)
    assert len(both) == 4
    assert both.same.all()
    assert both.speed.notna().all()
    # One run after the other: never faster. How much slower is this machine's matter.
    assert (both[both.contender != "pipeinfer"].speed <= 0.01).all()


def test_the_report_holds_both_side_by_side(done: Any) -> None:
    folder, _, _ = done
    text = (folder / "report.md").read_text()
    for words in (
        "Small, emulated",
        "Beside the simulation",
        "simulated (tokens/s)",
        "All token ids are the simulation's",
    ):
        assert words in text
    gap = "small-emulated-inter-token-latency-by-nodes"
    for name in (gap, "small-emulated-timeline"):
        assert "Fidelity: emulated" in (folder / "figures" / f"{name}.svg").read_text()
    assert "Thin: the same cells" in (folder / "figures" / f"{gap}.svg").read_text()


def test_alone_it_is_judged_like_a_simulation_and_called_what_it_is(done: Any) -> None:
    folder, _, _ = done
    claims = {claim["id"]: claim for claim in json.loads((folder / "claims.json").read_text())}
    assert claims["C1"]["verdict"] != "not testable here"
    assert "emulated" in claims["C1"]["reproduced"]
    assert "simulated" not in claims["C1"]["reproduced"] + str(claims["C1"]["evidence"])


def test_timelines_are_those_of_the_ranks(done: Any) -> None:
    _folder, analysis, _ = done
    (best,) = analysis.best[analysis.best.contender == "pipeinfer"].itertuples()
    spans = analysis.spans[analysis.spans.config_hash == best.config_hash]
    assert set(spans["rank"]) == {0, 1, 2}
    assert (spans.start_s >= 0).all()
    assert (spans.start_s <= spans.end_s).all()
    assert (spans.end_s < best.duration_s + 1).all()


def test_progress_says_how_long_it_will_take(done: Any) -> None:
    _, _analysis, progress = done
    assert [count for count, _, _ in progress] == list(range(len(progress)))
    totals = [total for _, total, _ in progress]
    assert totals[:9] == [8] * 9
    assert totals == sorted(totals)  # where the best was the largest that was tried the sweep went on
    assert totals[-1] == len(progress) - 1
    left = [seconds for _, _, seconds in progress[4:9]]
    assert all(later < earlier for earlier, later in itertools.pairwise(left))
    assert left[-1] == 0
    assert progress[-1][2] == 0


def test_what_is_waited_for_is_what_the_simulator_charges(quick: str) -> None:
    pair = workload.pair("dolphin-tinyllama")
    for cluster in ("haswell-gigabit", quick):
        ready = prepare(workload.cluster(cluster), pair, Setting("pipeinfer", nodes=5, tokens=32, prompt=64))
        tables = msgspec.convert(waits(ready, 96), dict[str, Any])
        assert list(tables) == ["target 0-20", "target 20-40", "target 40-60", "target 60-80", "draft 0-22"]
        for stage in range(4):
            curve = msgspec.convert(tables[f"target {20 * stage}-{20 * stage + 20}"], Curve)
            for rows, context in [(1, 1), (3, 70), (5, 96), (9, 40), (64, 64), (40, 50)]:
                assert curve.at(rows, context) == pytest.approx(ready.costs.stage_s(stage, rows, context), rel=0.01)


def test_the_ranks_are_laid_out_as_in_the_simulation() -> None:
    cell = EmulatedCell("mixed-gigabit", "dolphin-tinyllama", Setting("pipeinfer", nodes=4, split="speed"))
    ready = prepare(workload.cluster(cell.cluster), workload.pair(cell.pair), cell.setting)
    made = plan(cell, ready)
    assert made.layers == ",".join(str(stop - start) for start, stop in ready.layout.layers)
    assert (made.latency_s, made.bandwidth_bps) == pytest.approx((50e-6, 1e9))
    assert made.backend_options["hidden_size"] == 8192


def test_fidelities_are_different_cells() -> None:
    chosen = emulated(read_recipe("speed"), Emulation())
    hashes = {config_hash(cell) for cell in cells(chosen)}
    assert len(hashes) == 2 * len(points(chosen))
    over_mpi = emulated(read_recipe("speed"), Emulation("mpi"))
    assert not {config_hash(point.cell) for point in points(over_mpi)} & hashes


@pytest.mark.parametrize("name", [name for name in recipe_names() if read_recipe(name).emulated is not None])
def test_an_emulated_part_is_small_enough_for_one_machine(name: str) -> None:
    chosen = emulated(read_recipe(name), Emulation())
    assert max(point.cell.setting.nodes for point in points(chosen)) <= 8  # type: ignore[union-attr]
    assert "iterative" in chosen.strategies


def test_an_unknown_list_is_named() -> None:
    wrong = msgspec.structs.replace(recipe("haswell-gigabit"), emulated={"node": [2]})
    with pytest.raises(WorkloadError, match='emulated: unknown key "node"; did you mean "nodes"'):
        emulated(wrong, Emulation())
