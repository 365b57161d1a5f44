"""A calibrated cluster in the simulator: curves as costs, links with a floor, and the command."""

from pathlib import Path

import msgspec
import pytest
from typer.testing import CliRunner

from pipeinfer.cli import app
from pipeinfer.modelling.profile import (
    Curve,
    DraftShare,
    LinkProfile,
    ModelProfile,
    Profile,
    RankProfile,
    write_profile,
)
from pipeinfer.modelling.profiled_cluster import ProfiledCosts, draft_split, hosts, limits, links, memory, simulate_one
from pipeinfer.modelling.simulate import Setting
from pipeinfer.results import metrics
from pipeinfer.workload import WorkloadError

HOP_S = 1e-4


def flat(seconds: float, per_row: float = 0.0, per_position: float = 0.0) -> Curve:
    rows, contexts = (1, 4), (1, 101)
    return Curve(rows, contexts, tuple(
        tuple(seconds + per_row * (r - 1) + per_position * (c - 1) for r in rows) for c in contexts))  # fmt: skip


def rank(host: str, layer_s: float) -> RankProfile:
    return RankProfile(host, 10**9, flat(1e-3), flat(layer_s, per_row=1e-4, per_position=1e-6), flat(2e-3))


PROFILE = Profile(
    name="desk",
    backend="numpy",
    target=ModelProfile("target", 8, 256, 2048, 10**6, 10**6),
    draft_model=ModelProfile("draft", 2, 160, 2048, 10**5, 10**5),
    ranks=(rank("a", 1e-3), rank("a", 1e-3), rank("b", 3e-3)),
    draft=flat(5e-4),
    links=(LinkProfile(-1, 0, HOP_S, 1e9), LinkProfile(0, 1, HOP_S, 1e9), LinkProfile(1, -1, 2 * HOP_S, 1e9)),
    contention=(1.0, 1.1),
    message_s=5e-5,
    head_s=3e-5,
)
LAYERS = [(0, 4), (4, 8)]


def setting(strategy: str, **changes: object) -> Setting:
    return msgspec.structs.replace(Setting(strategy, nodes=2, tokens=32, prompt=8), **changes)


def test_a_stage_takes_its_run_its_layers_and_at_the_end_the_head() -> None:
    costs = ProfiledCosts(PROFILE, LAYERS, setting("pipeinfer"), 2)
    assert costs.stage_s(0, 1, 1) == pytest.approx(1e-3 + 4 * 1e-3)
    assert costs.stage_s(0, 3, 51) == pytest.approx(1e-3 + 4 * (1e-3 + 2e-4 + 5e-5))
    assert costs.stage_s(1, 1, 1) == pytest.approx(1e-3 + 4 * 1e-3 + 2e-3)
    assert costs.draft_s(1, 1) == pytest.approx(5e-4 + 5e-5)
    assert [costs.row_bytes(stage) for stage in (0, 1)] == [1024, 4]


def test_a_slower_rank_takes_longer_and_more_stages_repeat_the_ranks() -> None:
    costs = ProfiledCosts(PROFILE, [(0, 2), (2, 4), (4, 6), (6, 8)], setting("pipeinfer"), 4)
    assert costs.stage_s(2, 1, 1) - costs.stage_s(0, 1, 1) == pytest.approx(2 * 2e-3)
    assert costs.stage_s(3, 1, 1) - costs.stage_s(0, 1, 1) == pytest.approx(2e-3)


def test_hosts_of_the_ranks_the_draft_and_the_head() -> None:
    found = hosts(PROFILE, LAYERS, 2)
    assert list(found.names) == ["a", "a", "b", "a"]
    assert list(found.steps) == [4, 4, 2]


def test_links_are_as_measured_or_shaped_but_never_faster_than_they_are() -> None:
    measured = links(PROFILE, 2, 2, setting("pipeinfer"))
    assert measured(0, 1).arrival(0.0, 125) == pytest.approx(1e-6 + HOP_S)
    assert measured(2, -1).arrival(0.0, 0) == pytest.approx(2 * HOP_S), "what was not measured is like its kind"
    shaped = links(PROFILE, 2, 2, setting("pipeinfer", latency_us=10.0, bandwidth_gbps=0.001))
    assert shaped(0, 1).arrival(0.0, 1) == pytest.approx(HOP_S)
    assert shaped(0, 1).arrival(0.0, 1250) == pytest.approx(0.01 + 10e-6)


def test_iterative_speed_by_hand() -> None:
    trial = simulate_one(PROFILE, setting("iterative", options={}))
    traversals = [1e-3 * 2 + 8 * (1e-3 + 1e-6 * position) + 2e-3 for position in range(8, 39)]
    wire = (32 + 12) * 8 / 1e9 + (32 + 1024 + 12) * 8 / 1e9 + (32 + 4 + 12) * 8 / 1e9
    rest = 4 * HOP_S + wire + 2 * 5e-5 + 3e-5
    assert metrics.tokens_per_second(trial) == pytest.approx(31 / (sum(traversals) + 31 * rest), rel=1e-6)


def test_limits_and_layers_and_memory_are_those_of_the_profile() -> None:
    assert limits(PROFILE, setting("")).iterative == pytest.approx(1 / (2e-3 + 8 * (1e-3 + 23e-6) + 2e-3), rel=1e-3)
    trial = simulate_one(PROFILE, setting("pipeinfer", nodes=3))
    assert [one.layers for one in trial.ranks] == [(0, 4), (4, 8), (0, 2)]
    assert memory(PROFILE, LAYERS, [(0, 2)], 2) == [4 * 10**6, 5 * 10**6, 3 * 10**5]
    by_speed = simulate_one(PROFILE, setting("iterative", nodes=3, split="speed"))
    assert [stop - start for start, stop in (one.layers for one in by_speed.ranks)] == [4, 3, 1]


# A draft on several ranks

HIDDEN_ROW = (12 + 160 * 4) * 8 / 1e9
"""Seconds on the wire of a row of the draft's hidden states."""

TWO = msgspec.structs.replace(
    PROFILE,
    ranks=(*PROFILE.ranks, rank("b", 1e-3)),
    draft=(DraftShare((0, 1), flat(3e-4, per_row=1e-5)), DraftShare((1, 2), flat(4e-4))),
    links=(*PROFILE.links, LinkProfile(2, 3, 2 * HOP_S, 1e9), LinkProfile(3, 2, 3 * HOP_S, 1e9)),
)


def test_drafting_takes_the_sum_over_its_ranks_and_the_hops() -> None:
    costs = ProfiledCosts(TWO, LAYERS, setting("pipeinfer", draft_ranks=2), 2)
    wire = 32 * 8 / 1e9 + 3 * HIDDEN_ROW + (32 + 3 * 12) * 8 / 1e9
    handling = 2 * 5e-5
    assert costs.draft_s(3, 1) == pytest.approx(3e-4 + 2e-5 + 4e-4 + 5 * HOP_S + wire + handling, rel=1e-9)
    slow = ProfiledCosts(TWO, LAYERS, setting("pipeinfer", draft_ranks=2, latency_us=1e3, bandwidth_gbps=0.1), 2)
    assert slow.draft_s(3, 1) == pytest.approx(7.2e-4 + 2e-3 + 10 * wire + handling, rel=1e-9)


def test_a_draft_is_divided_as_measured_or_else_evenly() -> None:
    uneven = (DraftShare((0, 3), flat(6e-4)), DraftShare((3, 4), flat(5e-4)))
    four = msgspec.structs.replace(TWO, draft_model=msgspec.structs.replace(TWO.draft_model, layers=4), draft=uneven)
    assert draft_split(four, setting("pipeinfer", draft_ranks=2)) == [(0, 3), (3, 4)]
    assert draft_split(four, setting("pipeinfer", draft_ranks=1)) == [(0, 4)]
    assert draft_split(four, setting("pipeinfer", draft_ranks=4)) == [(0, 1), (1, 2), (2, 3), (3, 4)]
    assert four.draft_s((0, 4), 1, 1) == pytest.approx(11e-4)
    assert four.draft_s((2, 4), 1, 1) == pytest.approx(2e-4 + 5e-4)


def test_every_draft_rank_has_its_layers_memory_and_time() -> None:
    one = simulate_one(TWO, setting("speculative", nodes=3))
    two = simulate_one(TWO, setting("speculative", nodes=4, draft_ranks=2))
    assert two.token_ids == one.token_ids
    assert [(rank.role, rank.layers) for rank in two.ranks[2:]] == [("draft", (0, 1)), ("draft", (1, 2))]
    assert [rank.peak_memory for rank in two.ranks[2:]] == [10**5, 2 * 10**5]
    assert two.ranks[2].busy_s / two.ranks[3].busy_s == pytest.approx(3 / 4)
    assert two.emit_s[-1] > one.emit_s[-1], "a hop more per drafted token"
    small = msgspec.structs.replace(TWO.ranks[3], memory_bytes=150_000)
    with pytest.raises(WorkloadError, match=r"rank 3 has 0.00015 GB of memory free and needs 0.0002 GB"):
        simulate_one(
            msgspec.structs.replace(TWO, ranks=(*TWO.ranks[:3], small)), setting("speculative", nodes=4, draft_ranks=2)
        )
    assert limits(TWO, setting("", nodes=4, draft_ranks=2)).iterative > 0


def test_what_does_not_fit_is_refused() -> None:
    small = msgspec.structs.replace(PROFILE, ranks=(msgspec.structs.replace(PROFILE.ranks[0], memory_bytes=10**6),))
    with pytest.raises(WorkloadError, match=r"desk: rank 0 has 0.001 GB of memory free and needs 0.004 GB"):
        simulate_one(small, setting("iterative"))
    with pytest.raises(WorkloadError, match="leave width_cost at 1"):
        simulate_one(PROFILE, setting("iterative", width_cost=0.0))


def test_layers_that_take_no_time_are_split_evenly_and_never_by_speed() -> None:
    """A fit may leave nothing for the layers: all of a run is then its overhead."""
    free = msgspec.structs.replace(PROFILE.ranks[1], layer=flat(0.0))
    profile = msgspec.structs.replace(PROFILE, ranks=(PROFILE.ranks[0], free, PROFILE.ranks[2]))
    trial = simulate_one(profile, setting("iterative", nodes=3))
    assert [one.layers for one in trial.ranks] == [(0, 3), (3, 6), (6, 8)]
    with pytest.raises(WorkloadError, match="desk: its layers take no time on rank 1"):
        simulate_one(profile, setting("iterative", nodes=3, split="speed"))


# The command


def command(*arguments: str) -> tuple[int, str]:
    shown = CliRunner().invoke(app, ["simulate", "--tokens", "16", *arguments], env={"COLUMNS": "140"})
    return shown.exit_code, shown.output


def test_the_command_takes_a_file(tmp_path: Path) -> None:
    write_profile(PROFILE, tmp_path / "desk.json")
    code, shown = command("--cluster", str(tmp_path / "desk.json"), "--no-sweep")
    assert code == 0, shown
    assert "target + draft, numpy" in shown
    assert "3 ranks of desk, calibrated" in shown


def test_the_command_has_as_many_draft_ranks_as_were_measured(tmp_path: Path) -> None:
    write_profile(TWO, tmp_path / "desk.json")
    for more, expected in ([], 2), (["--draft-ranks", "1"], 1):
        _, shown = command("--cluster", str(tmp_path / "desk.json"), "--no-sweep", "--json", *more)
        ranks = msgspec.json.decode(shown)["strategies"][2]["ranks"]
        assert [rank["role"] for rank in ranks].count("draft") == expected
        assert len(ranks) == 4


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--cluster", "nowhere.json"], "cannot read the profile nowhere.json: No such file"),
        (["--cluster", "desk.json", "--pair", "goliath-7b"], "calibrated with its own pair"),
        (["--cluster", "broken.json"], "broken.json is not a profile"),
        (["--cluster", "desk.json", "--nodes", "40"], "40 nodes for iterative"),
    ],
)
def test_a_wrong_file_is_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, arguments: list[str], message: str
) -> None:
    monkeypatch.chdir(tmp_path)
    write_profile(PROFILE, tmp_path / "desk.json")
    (tmp_path / "broken.json").write_text('{"name": "desk"}')
    shown = CliRunner().invoke(app, ["simulate", *arguments])
    assert isinstance(shown.exception, ValueError | SystemExit)
    assert message in f"{shown.output}{shown.exception}"
