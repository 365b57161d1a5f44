"""Simulated generations side by side, and the command that prints them."""

import json
from pathlib import Path

import msgspec
import pytest
import typer
from typer.testing import CliRunner

from pipeinfer.commands.simulate import simulate as command
from pipeinfer.core.strategies.iterative import Iterative
from pipeinfer.core.strategies.options import COUNTS
from pipeinfer.core.strategies.pipeinfer import PipeInfer
from pipeinfer.core.strategies.speculative import Speculative
from pipeinfer.modelling.platform import ModelledPlatform
from pipeinfer.modelling.simulate import Setting, layout, limits, side_by_side, simulate_one
from pipeinfer.plugins import names
from pipeinfer.results import metrics
from pipeinfer.runtime.oracle import independent
from pipeinfer.workload import WorkloadError, cluster, pair

CLUSTER, PAIR = cluster("haswell-gigabit"), pair("dolphin-tinyllama")
SIMULATED = ModelledPlatform(CLUSTER, PAIR).simulate
STRATEGIES = ("iterative", "speculative", "pipeinfer")


def equal(_rank: int) -> float:
    return 1.0


def test_every_strategy_commits_the_same_tokens() -> None:
    found = side_by_side(SIMULATED, STRATEGIES, Setting("", nodes=4, tokens=48), sweep=True)
    assert len({one.trial.token_ids for one in found}) == 1
    assert [one.tried for one in found] == [1, 6, 6]


def test_the_best_of_a_sweep_is_the_fastest_trial() -> None:
    setting = Setting("speculative", nodes=4, acceptance=0.79, tokens=48, width_cost=0.0)
    (best,) = side_by_side(SIMULATED, ["speculative"], setting, sweep=True)
    speeds = {}
    for k in COUNTS:
        trial = simulate_one(CLUSTER, PAIR, msgspec.structs.replace(setting, options={"k": k}))
        speeds[k] = metrics.tokens_per_second(trial) or 0.0
    assert best.options["k"] == max(speeds, key=lambda k: speeds[k])
    assert best.options["k"] > 2, "where width is free a long draft pays"


def test_a_sweep_goes_on_until_the_best_is_inside_it() -> None:
    setting = Setting("", nodes=4, acceptance=0.95, tokens=256, width_cost=0.0)
    (found,) = side_by_side(SIMULATED, ["speculative"], setting, sweep=True)
    assert 8 < found.options["k"] < COUNTS[found.tried - 1]
    assert not found.at_edge


def test_a_sweep_that_ends_at_its_edge_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Speculative, "sweeps", {"k": (1, 2, 4)})
    setting = Setting("", nodes=4, acceptance=0.95, tokens=64, width_cost=0.0)
    (found,) = side_by_side(SIMULATED, ["speculative"], setting, sweep=True)
    assert (found.options, found.at_edge) == ({"k": 4}, ("k",))


def test_iterative_speed_is_one_traversal_and_its_hops() -> None:
    (found,) = side_by_side(SIMULATED, ["iterative"], Setting("", nodes=8, tokens=64), sweep=True)
    hop = 50e-6 + (32 * 1024 + 44) * 8 / 1e9
    expected = 1 / (1 / limits(CLUSTER, PAIR, Setting("", nodes=8, tokens=64)).iterative + 7 * hop + 2 * 50e-6)
    assert found.tokens_per_second == pytest.approx(expected, rel=2e-3)


def test_same_ranks_gives_the_draft_one_of_them() -> None:
    iterative, speculative, pipeinfer = (
        layout(strategy, Setting(name, nodes=8), 80, equal)
        for strategy, name in ((Iterative(), "iterative"), (Speculative(), "speculative"), (PipeInfer(), "pipeinfer"))
    )
    assert (len(iterative.layers), iterative.draft_rank) == (8, None)
    assert (len(speculative.layers), speculative.draft_rank) == (7, 7)
    assert pipeinfer == speculative


def test_as_published_follows_the_scripts() -> None:
    pipeinfer = layout(PipeInfer(), Setting("pipeinfer", nodes=8, accounting="as-published"), 80, equal)
    assert [stop - start for start, stop in pipeinfer.layers] == [8, 12, 12, 12, 12, 12, 12]
    four = layout(PipeInfer(), Setting("pipeinfer", nodes=4, accounting="as-published"), 80, equal)
    assert [stop - start for start, stop in four.layers] == [8, 32, 40]
    speculative = layout(Speculative(), Setting("speculative", nodes=8, accounting="as-published"), 80, equal)
    assert (len(speculative.layers), speculative.draft_rank) == (8, 0)


def test_ranks_carry_their_layers_and_memory() -> None:
    trial = simulate_one(CLUSTER, PAIR, Setting("pipeinfer", nodes=4, tokens=16))
    assert [(rank.role, rank.layers) for rank in trial.ranks] == [
        ("target", (0, 27)), ("target", (27, 54)), ("target", (54, 80)), ("draft", (0, 22)),
    ]  # fmt: skip
    assert 33.2e9 < sum(rank.peak_memory for rank in trial.ranks[:3]) < 33.4e9


def test_free_width_makes_the_simulator_approach_the_limits() -> None:
    setting = Setting("", nodes=8, acceptance=0.79, tokens=512, width_cost=0.0)
    where = ModelledPlatform(cluster("haswell-fdr"), PAIR)
    found = {one.strategy: one for one in side_by_side(where.simulate, STRATEGIES, setting, sweep=True)}
    bound = where.limits(setting)
    # What chance made of the acceptance length in this trace is taken out.
    length = metrics.acceptance_length(found["speculative"].trial)
    assert length is not None
    expected = bound.iterative * length / (1 + found["speculative"].options["k"] * bound.draft_share)
    assert found["speculative"].tokens_per_second == pytest.approx(expected, rel=0.01)
    assert 0.85 * (bound.of(PipeInfer(draft=4)) or 0.0) < found["pipeinfer"].tokens_per_second < bound.ceiling


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"nodes": 1}, "1 nodes for pipeinfer"),
        ({"nodes": 200}, "200 nodes for pipeinfer"),
        ({"options": {"drafts": 2}}, 'strategy "pipeinfer"'),
        ({"options": {"draft": 0}}, "draft = 0: expected 1 to 64"),
        ({"strategy": "pipinfer"}, 'did you mean "pipeinfer"?'),
    ],
)
def test_an_impossible_setting_is_one_line(changes: dict[str, object], message: str) -> None:
    setting = msgspec.structs.replace(Setting("pipeinfer"), **changes)
    with pytest.raises(WorkloadError) as caught:
        simulate_one(CLUSTER, PAIR, setting)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_model_too_large_for_the_nodes_is_refused() -> None:
    with pytest.raises(WorkloadError, match="rank 0 has 32 GB of memory and needs"):
        simulate_one(cluster("desktop-gigabit"), pair("falcon-7b"), Setting("iterative", nodes=2))


def app() -> typer.Typer:
    app = typer.Typer()
    app.command()(command)
    return app


def test_the_command_prints_the_strategies_side_by_side() -> None:
    shown = CliRunner().invoke(app(), ["--nodes", "4", "--tokens", "32"], env={"COLUMNS": "140"})
    assert shown.exit_code == 0, shown.output
    for word in (*STRATEGIES, "tokens/s", "limit", "Gigabit Ethernet", "assumed"):
        assert word in shown.output


def test_the_command_gives_json() -> None:
    shown = CliRunner().invoke(app(), ["--nodes", "4", "--tokens", "32", "--acceptance", "0.6", "--json"])
    found = json.loads(shown.stdout)
    assert [one["strategy"] for one in found["strategies"]] == list(STRATEGIES)
    assert found["setting"]["acceptance"] == 0.6
    assert found["strategies"][0]["itl_s"]["mean"] > 0


def test_a_recorded_trace_decides_what_is_accepted(tmp_path: Path) -> None:
    path = tmp_path / "trace.json"
    path.write_bytes(msgspec.json.encode(independent(1.0, length=16)))
    setting = Setting("speculative", {"k": 3}, acceptance=0.0, tokens=33, trace=str(path))
    trial = simulate_one(cluster("haswell-gigabit"), pair("dolphin-tinyllama"), setting)
    assert {run.accepted for run in trial.runs[1:-1] if run.drafted} == {3}


@pytest.mark.parametrize("name", names("pipeinfer.strategies"))
def test_a_trial_is_of_the_strategy_by_the_name_it_was_asked_for(name: str) -> None:
    setting = Setting(name, nodes=4, tokens=4)
    assert simulate_one(CLUSTER, PAIR, setting).strategy == name
