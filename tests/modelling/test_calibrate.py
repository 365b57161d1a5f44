"""What `calibrate` measures of ranks is what they take; what is in its way is one line."""

import os
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import msgspec
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeinfer.cli import main
from pipeinfer.cluster.models import Models
from pipeinfer.cluster.placement import LayerRange
from pipeinfer.cluster.plan import Plan
from pipeinfer.engine.sampling import Sampling
from pipeinfer.errors import LaunchError
from pipeinfer.modelling.calibrate import calibrate
from pipeinfer.modelling.profile import BadProfile, Curve, Profile, read_profile, write_profile
from pipeinfer.modelling.rank_survey import parts_of, separate
from pipeinfer.report.layer_times import layer_times
from pipeinfer.runtime.transports import open_member
from pipeinfer.runtime.transports.keys import write_keys

LAYER_S, ROW_S, DRAFT_S, DRAFT_ROW_S = 4e-3, 5e-4, 3e-3, 1e-3
EMULATED = {"layers": 4, "layer_s": LAYER_S, "row_s": ROW_S, "draft_s": DRAFT_S, "draft_row_s": DRAFT_ROW_S}
LATENCY_S, BANDWIDTH_BPS = 3e-3, 1e8
SLACK = 0.4
"""What is mixed up is wrong by more."""

CORES = os.cpu_count() or 1
BUSY = os.getloadavg()[0] > CORES or int(os.environ.get("PYTEST_XDIST_WORKER_COUNT", "1")) > CORES
"""With other work, or as many workers of these tests, all ends late."""

idle = pytest.mark.skipif(BUSY, reason="the machine is busy: all ends late")


@pytest.fixture(scope="module", autouse=True)
def hastily() -> Iterator[None]:
    """Tests want to know whether it is measured, not how precisely."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("pipeinfer.modelling.calibrate.PART_S", 0.05)
        patch.setattr("pipeinfer.modelling.calibrate.CONTENTION_S", 0.05)
        patch.setattr("pipeinfer.modelling.calibrate.ROWS", (1, 4, 16))
        patch.setattr("pipeinfer.modelling.calibrate.CONTEXTS", (32, 128))
        yield


def silent(what: str) -> None:
    """Nobody wants to know."""


@pytest.fixture(scope="module")
def emulated() -> Profile:
    """Of ranks that take exactly what they were told, over links that are limited."""
    plan = Plan(
        backend="emulated", backend_options=EMULATED, stages=2, transport="inproc",
        latency_s=LATENCY_S, bandwidth_bps=BANDWIDTH_BPS,
    )  # fmt: skip
    return calibrate(Models(plan), Sampling(), silent)


@idle
def test_an_emulated_pair_takes_what_it_was_told_to(emulated: Profile) -> None:
    for rank in emulated.ranks:
        for rows in (1, 4, 16):
            wait = LAYER_S + ROW_S * (rows - 1)
            assert rank.layer.at(rows, 100) == pytest.approx(wait, rel=SLACK)
        # Choosing among the oracle's tokens, and what is not waiting.
        assert rank.head.at(1, 100) < LAYER_S / 2
        assert rank.run.at(1, 100) < LAYER_S / 2
    for rows in (1, 4):
        assert emulated.draft.at(rows, 100) == pytest.approx(DRAFT_S + (rows - 1) * DRAFT_ROW_S, rel=SLACK)
    assert max(emulated.contention) < 2


@idle
def test_links_are_as_slow_as_they_were_made(emulated: Profile) -> None:
    for link in emulated.links:
        assert link.latency_s == pytest.approx(LATENCY_S, rel=SLACK)
        assert link.bandwidth_bps == pytest.approx(BANDWIDTH_BPS, rel=SLACK)


def test_nothing_is_faster_than_it_was_made(emulated: Profile) -> None:
    for rank in emulated.ranks:
        whole = rank.run.at(4, 128) + 4 * rank.layer.at(4, 128) + rank.head.at(4, 128)
        assert whole > LAYER_S + 3 * ROW_S
    assert emulated.draft.at(4, 128) >= DRAFT_S + 3 * DRAFT_ROW_S
    assert all(link.latency_s >= LATENCY_S for link in emulated.links)


def test_every_rank_and_link_is_measured(emulated: Profile) -> None:
    assert len(emulated.ranks) == len(emulated.contention) == 3
    assert emulated.contention[0] == 1.0
    ends = {(link.source, link.target) for link in emulated.links}
    assert ends == {(-1, 0), (-1, 1), (-1, 2), (0, 1), (1, 2), (1, -1), (2, -1)}
    assert 1e-6 < emulated.message_s < 0.1
    assert 1e-6 < emulated.head_s < 0.1
    assert [share.layers for share in emulated.draft_shares] == [(0, 1)]


def test_of_ranks_that_are_alike_one_is_measured_in_the_contexts_that_matter() -> None:
    plan = Plan(backend="emulated", backend_options=EMULATED, stages=2, transport="inproc")
    said: list[str] = []
    found = calibrate(Models(plan), Sampling(), said.append, 0.01, contexts=(32, 64), alike=True)
    assert found.ranks == (found.ranks[0],) * 3
    assert found.ranks[0].layer.contexts == found.draft.contexts == (32, 64)
    assert {line.partition(" on ")[2] for line in said if line.startswith("layers ")} == {"rank 0"}


def test_a_profile_is_read_as_it_was_written(emulated: Profile, tmp_path: Path) -> None:
    path = tmp_path / "profile.json"
    write_profile(emulated, path)
    assert read_profile(path) == emulated


def test_every_rank_of_a_split_draft_is_measured(tmp_path: Path) -> None:
    """A share takes its part of the wait, and no more: the other's is not in it."""
    options = {**EMULATED, "draft_layers": 4, "draft_s": 0.04, "draft_row_s": 0.0}
    plan = Plan(
        backend="emulated", backend_options=options, stages=1, layers="4", draft_layers="3,1", transport="inproc"
    )
    found = calibrate(Models(plan), Sampling(), silent)
    assert [share.layers for share in found.draft_shares] == [(0, 3), (3, 4)]
    assert len(found.ranks) == 3
    first, second = (share.forward.at(1, 100) for share in found.draft_shares)
    assert first >= 0.03
    assert 0.01 <= second < first
    ends = {(link.source, link.target) for link in found.links}
    assert ends == {(-1, 0), (-1, 1), (-1, 2), (0, 1), (1, 2), (0, -1), (1, -1), (2, -1), (2, 1)}
    path = tmp_path / "profile.json"
    write_profile(found, path)
    assert read_profile(path) == found
    layer_times(found, tmp_path / "times")
    assert "layers 0-2 of builtin:draft" in (tmp_path / "times.svg").read_text()


@pytest.mark.parametrize("shares", [[(0, 1)], [(0, 1), (2, 4)], [(1, 4), (0, 1)], [(0, 4), (4, 4)], []])
def test_shares_of_a_draft_are_all_of_it_in_order(emulated: Profile, shares: list[LayerRange], tmp_path: Path) -> None:
    found = msgspec.to_builtins(emulated)
    found["draft_model"]["layers"] = 4
    found["draft"] = [{"layers": layers, "forward": found["draft"]} for layers in shares]
    path = tmp_path / "profile.json"
    path.write_bytes(msgspec.json.encode(found))
    with pytest.raises(BadProfile, match="expected shares of the draft's 4 layers in order"):
        read_profile(path)


TIME = st.floats(1e-5, 1)


@given(st.integers(2, 200), st.integers(0, 1 << 32), TIME, TIME, TIME)
def test_layers_are_told_apart_from_the_rest(layers: int, size: int, run: float, layer: float, head: float) -> None:
    parts = parts_of(layers, size)
    assert all(0 <= start < stop <= layers for start, stop in parts)
    found = separate({part: np.full((2, 3), one(part, layers, run, layer, head)) for part in parts}, layers)
    for came, expected in zip(found, (run, layer, head), strict=True):
        assert came == pytest.approx(np.full((2, 3), expected), rel=1e-6, abs=1e-8)


def one(part: LayerRange, layers: int, run: float, layer: float, head: float) -> float:
    return run + layer * (part[1] - part[0]) + head * (part[1] == layers)


def test_what_twice_the_layers_take_beyond_twice_the_time_is_spread() -> None:
    parts = parts_of(8, 1)
    assert parts == [(1, 4), (1, 7), (5, 8)]
    times = {part: np.full((1, 1), seconds) for part, seconds in zip(parts, (3.0, 6.6, 4.0), strict=True)}
    run, layer, head = (part[0][0] for part in separate(times, 8))
    assert run == 0
    assert 1.0 < layer < 1.1
    assert 0.7 < head < 1.0


@pytest.mark.parametrize(
    ("times", "layers", "expected"),
    [
        ({(0, 1): 3.0}, 1, (0, 3, 0)),
        ({(1, 2): 3.0}, 8, (0, 3, 0)),
        ({(1, 2): 3.0, (7, 8): 5.0}, 8, (0, 3, 2)),
        ({(1, 2): 3.0, (1, 3): 5.0}, 8, (1, 2, 0)),
    ],
)
def test_a_rank_that_holds_less_is_known_less_well(
    times: dict[LayerRange, float], layers: int, expected: tuple[float, ...]
) -> None:
    found = separate({part: np.full((1, 1), seconds) for part, seconds in times.items()}, layers)
    assert [part[0][0] for part in found] == pytest.approx(expected)


def test_a_big_layer_is_measured_once_and_twice() -> None:
    assert parts_of(80, 1 << 30) == [(1, 2), (1, 3), (79, 80)]
    assert parts_of(1, 1) == [(0, 1)]


def test_the_times_are_drawn(emulated: Profile, tmp_path: Path) -> None:
    layer_times(emulated, tmp_path / "times")
    assert (tmp_path / "times.png").stat().st_size > 10_000
    drawn = (tmp_path / "times.svg").read_text()
    layer_times(emulated, tmp_path / "again")
    assert (tmp_path / "again.svg").read_text() == drawn


def test_the_command_over_processes(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "profile.json"
    run("calibrate", "--out", str(out), "--nodes", "2", code=0)
    profile = read_profile(out)
    assert profile.target.layers == 8
    assert all(rank.layer.contexts == (32, 128) for rank in profile.ranks)
    assert profile.draft.at(1, 512) > 0
    assert profile.ranks[0].memory_bytes > 1 << 20
    assert {(link.source, link.target) for link in profile.links} == {(-1, 0), (-1, 1), (0, 1), (0, -1), (1, -1)}
    said = capsys.readouterr().out
    assert "rank 1" in said
    assert str(out) in said


def run(*arguments: str, code: int) -> None:
    """The command line, in this process."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("sys.argv", ["pipeinfer", *arguments])
        with pytest.raises(SystemExit) as left:
            main()
    assert left.value.code == code


@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        (["--out", "/nowhere/profile.json"], "No such file or directory: /nowhere/profile.json"),
        (["--target", "/nowhere"], "/nowhere"),
        (["--draft", "builtin:nobody"], "builtin:nobody"),
        (["--backend", "nonsense"], 'no backend "nonsense"'),
        (["--key", "some.key"], "--workers"),
        (["--layers", "4,4/1,1", "--nodes", "3"], "--layers 4,4/1,1 is for 4 ranks in all, and --nodes says 3"),
        (["--layers", "/1,2"], "draft: layer split"),
        (["--transport", "pigeon"], 'no transport "pigeon"'),
        (["--backend", "emulated", "--backend-option", "context=16"], "a context of 16: expected at least 32"),
    ],
)  # fmt: skip
def test_what_the_user_can_put_right_is_one_line(
    arguments: list[str], line: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    run("calibrate", "--transport", "inproc", *arguments, code=2)
    errors = capsys.readouterr().err
    assert errors.startswith("error: ")
    assert line in errors
    assert len(errors.splitlines()) == 1


def test_a_worker_that_cannot_be_reached(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    key = tmp_path / "key.json"
    write_keys(key)
    monkeypatch.setattr("pipeinfer.cluster.remote_workers.open_member", partial(open_member, connect_s=0.2))
    addresses = "tcp://127.0.0.1:9,tcp://127.0.0.1:9"
    run("calibrate", "--out", str(tmp_path / "p.json"), "--workers", addresses, "--key", str(key), code=2)
    errors = capsys.readouterr().err
    assert errors.startswith("error: lost rank 0: rank 0 at tcp://127.0.0.1:9 never answered")
    assert len(errors.splitlines()) == 1


def test_a_rank_that_cannot_hold_what_is_measured(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pipeinfer.runtime.loading.free_bytes", lambda: 3_000_000)
    plan = Plan(stages=1, transport="inproc")
    with pytest.raises(LaunchError, match=r"rank 0 on .* has 3.0 MB free and needs \d+.\d MB to measure 3 layers of"):
        calibrate(Models(plan), Sampling(), silent)


@pytest.mark.parametrize(
    ("rows", "contexts", "seconds"),
    [
        ((1, 2), (8,), ((1.0,),)),
        ((1, 2), (8, 9), ((1.0, 2.0),)),
        ((2, 1), (8,), ((1.0, 2.0),)),
        ((), (), ()),
    ],
)
def test_a_curve_has_a_time_for_each_point(
    rows: tuple[int, ...], contexts: tuple[int, ...], seconds: tuple[tuple[float, ...], ...]
) -> None:
    with pytest.raises(ValueError, match="expected"):
        Curve(rows, contexts, seconds)


def test_a_curve_goes_on_beyond_what_was_measured_and_never_falls_there() -> None:
    curve = Curve((1, 3), (32, 128), ((1.0, 2.0), (0.75, 2.5)))
    assert curve.at(2, 32) == 1.5
    assert curve.at(1, 80) == pytest.approx(0.875)
    assert curve.at(3, 224) == pytest.approx(3.0)
    assert curve.at(1, 512) == pytest.approx(0.75)
    assert curve.at(5, 32) == pytest.approx(3.0)


@pytest.mark.parametrize("text", ["", "{}", '{"name": 3}', "\x00\xff", "[1"])
def test_what_is_no_profile_is_one_line(text: str, tmp_path: Path) -> None:
    path = tmp_path / "profile.json"
    path.write_text(text)
    with pytest.raises(BadProfile) as refused:
        read_profile(path)
    assert str(path) in str(refused.value)
    assert "\n" not in str(refused.value)


def test_a_profile_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(BadProfile, match="No such file"):
        read_profile(tmp_path / "nowhere.json")
