"""A calibrated cluster emulated: ranks that wait as measured on links that each are as measured; and over workers."""

from collections.abc import Iterator
from pathlib import Path

import msgspec
import pytest
from experiments import analyse
from processes import start
from typer.testing import CliRunner

from pipeinfer.cli import app
from pipeinfer.cluster.launch import Cluster
from pipeinfer.modelling.platform import platform_of
from pipeinfer.modelling.profile import Curve, DraftShare, LinkProfile, ModelProfile, Profile, RankProfile
from pipeinfer.modelling.profile import write_profile as write
from pipeinfer.modelling.simulate import Setting
from pipeinfer.plugins import open_strategy
from pipeinfer.report.tables import emulated_and_simulated
from pipeinfer.report.write import conclude
from pipeinfer.results.records import Store
from pipeinfer.runtime.transports.keys import write_keys
from pipeinfer.study.emulated import plan
from pipeinfer.study.points import EmulatedCell
from pipeinfer.study.recipes import Emulation
from pipeinfer.study.run import run
from pipeinfer.study.selection import Wish, select

LAYER_S, DRAFT_S, SLOW_S = 1e-3, 3e-3, 0.02


def flat(seconds: float) -> Curve:
    return Curve((1, 4), (1,), ((seconds, seconds),))


def rank(host: str, layer_s: float = LAYER_S) -> RankProfile:
    return RankProfile(host, 10**9, flat(0), flat(layer_s), flat(0))


PROFILE = Profile(
    name="uneven",
    backend="numpy",
    target=ModelProfile("target", 8, 96, 2048, 10**6, 10**6),
    draft_model=ModelProfile("draft", 4, 32, 2048, 10**5, 10**5),
    ranks=(rank("a"), rank("b", 2 * LAYER_S), rank("c"), rank("d"), rank("e")),
    draft=(DraftShare((0, 3), flat(DRAFT_S)), DraftShare((3, 4), flat(2 * DRAFT_S))),
    links=(
        LinkProfile(-1, 0, 1e-3, 1e9), LinkProfile(0, 1, SLOW_S, 1e8), LinkProfile(2, -1, 2e-3, 1e9),
        LinkProfile(3, 4, 3e-3, 1e9), LinkProfile(4, 3, 4e-3, 1e9),
    ),
)  # fmt: skip
SETTING = Setting("pipeinfer", {"draft": 1}, nodes=5, tokens=12, prompt=4, draft_ranks=2)


@pytest.fixture
def uneven(tmp_path: Path) -> str:
    path = tmp_path / "uneven.json"
    write(PROFILE, path)
    return str(path)


def cell(uneven: str, setting: Setting) -> EmulatedCell:
    return EmulatedCell(uneven, str(platform_of(uneven).pair), setting, emulation=Emulation("inproc"))


def test_every_link_and_wait_is_the_profile_s(uneven: str) -> None:
    made = plan(cell(uneven, SETTING), platform_of(uneven).prepare(SETTING))
    assert (made.stages, made.layers, made.draft_layers) == (3, "3,3,2", "3,1")
    links = {(link.source, link.target): link.latency_s for link in made.links}
    assert set(links) == {
        (-1, 0), (-1, 1), (-1, 2), (-1, 3), (0, 1), (1, 2), (2, -1), (3, -1), (3, 4), (4, 3),
    }  # fmt: skip
    assert [links[ends] for ends in ((0, 1), (2, -1), (3, 4), (4, 3))] == [SLOW_S, 2e-3, 3e-3, 4e-3]
    waits = {name: msgspec.convert(curve, Curve).at(1, 8) for name, curve in made.backend_options["waits"].items()}
    assert waits == pytest.approx({
        "target 0-3": 3 * LAYER_S, "target 3-6": 6 * LAYER_S, "target 6-8": 2 * LAYER_S,
        "draft 0-3": DRAFT_S, "draft 3-4": 2 * DRAFT_S,
    })  # fmt: skip


def test_a_stated_network_is_never_faster_than_the_real_one(uneven: str) -> None:
    shaped = msgspec.structs.replace(SETTING, latency_us=10.0, bandwidth_gbps=0.5)
    links = {(link.source, link.target): link for link in platform_of(uneven).prepare(shaped).links}
    assert (links[0, 1].latency_s, links[0, 1].floor_s) == (pytest.approx(1e-5), SLOW_S)
    assert (links[0, 1].bandwidth_bps, links[2, -1].bandwidth_bps) == pytest.approx((1e8, 5e8))


def test_each_link_is_as_slow_as_it_is_said_to_be(uneven: str) -> None:
    """An iterative token crosses each of the target's links once and no other."""
    setting = msgspec.structs.replace(SETTING, strategy="iterative", options={}, nodes=3, draft_ranks=1)
    ready = platform_of(uneven).prepare(setting)
    with Cluster(plan(cell(uneven, setting), ready)) as cluster:
        trial = cluster.generate(ready.request.prompt, open_strategy("iterative", {}), max_tokens=6, stop_ids=())
    gap = min(after - before for before, after in zip(trial.emit_s[:-1], trial.emit_s[1:], strict=True))
    links = {(link.source, link.target): link.latency_s for link in ready.links}
    crossed = links[-1, 0] + links[0, 1] + links[1, 2] + links[2, -1]
    assert gap >= crossed + 3 * LAYER_S + 6 * LAYER_S + 2 * LAYER_S
    assert crossed > SLOW_S


def test_a_recipe_is_emulated_there_beside_its_simulation(uneven: str, tmp_path: Path) -> None:
    (recipe,), notes = select(["timeline"], Wish("emulated", uneven, {"transport": "inproc"}))
    assert notes == []
    folder = tmp_path / "out"
    store = Store(folder)
    run(recipe, store, 1, lambda *_: None)
    conclude([recipe], store, folder)
    found = analyse(recipe, store.records)
    assert found.count("passed") == len(found.trials) == 3
    both = emulated_and_simulated(found)
    assert len(both) == 3
    assert both.same.all()
    for one in both.itertuples():
        trial = store.records[one.config_hash].trial
        assert trial is not None
        if one.contender != "iterative":
            assert [rank.layers for rank in trial.ranks[-2:]] == [(0, 3), (3, 4)]
            assert [rank.peak_memory for rank in trial.ranks[-2:]] == [3 * 10**5, 2 * 10**5]
        if one.contender != "pipeinfer":  # One run after the other: never faster.
            simulated = found.simulated[found.simulated.contender == one.contender]
            assert trial.emit_s[-1] >= 0.99 * simulated.duration_s.min()
    assert "Beside the simulation" in (folder / "report.md").read_text()


def test_ranks_of_one_host_are_said_to_be_apart(tmp_path: Path) -> None:
    path = tmp_path / "desk.json"
    write(msgspec.structs.replace(PROFILE, ranks=(rank("a"),) * 5, contention=(1.0, 1.0, 1.5)), path)
    _, notes = select(["timeline"], Wish("emulated", str(path)))
    assert len(notes) == 1
    assert "ranks that share a host" in notes[0]
    assert "by up to 1.50" in notes[0]
    assert select(["timeline"], Wish("sim", str(path))).notes == []


@pytest.fixture
def workers(tmp_path: Path) -> Iterator[tuple[tuple[str, ...], str]]:
    """Addresses of five processes of `pipeinfer worker` on this machine, and their key file."""
    key = tmp_path / "key.json"
    write_keys(key)
    common = ("worker", "--listen", "tcp://127.0.0.1:0", "--key", str(key))
    processes = [start(*common, "--rank", str(rank)) for rank in range(5)]
    try:
        lines = [process.stdout.readline() for process in processes if process.stdout is not None]
        yield tuple([line.split()[1] for line in lines]), str(key)
    finally:
        for process in processes:
            process.kill()
            process.communicate()


def test_emulated_ranks_over_workers(uneven: str, workers: tuple[tuple[str, ...], str], tmp_path: Path) -> None:
    """Three sessions, one after another on the same workers."""
    addresses, key = workers
    there = {"transport": "tcp", "workers": addresses, "stages": 4}
    (recipe,), _ = select(["timeline"], Wish("emulated", uneven, there, ranks=5))
    emulation = recipe.emulation
    assert emulation is not None
    assert emulation.workers == addresses
    store = Store(tmp_path / "out")
    run(recipe, store, 1, lambda *_: None, key)
    found = analyse(recipe, store.records)
    assert found.count("passed") == len(found.trials) == 3
    assert emulated_and_simulated(found).same.all()


def test_ranks_that_do_not_come_up_are_told_of(uneven: str, tmp_path: Path) -> None:
    (recipe,), _ = select(["timeline"], Wish("emulated", uneven, {"transport": "pigeon"}))
    store = Store(tmp_path / "out")
    run(recipe, store, 1, lambda *_: None)
    (problem,) = conclude([recipe], store, tmp_path / "out").problems
    assert problem.startswith("timeline: 3 trials have no figure, the first because the ranks did not come up: ")
    assert 'no transport "pigeon"' in problem


def test_workers_without_their_key_are_refused() -> None:
    command = ["reproduce", "--fidelity", "emulated", "--workers", "tcp://a:1,tcp://b:1"]
    with pytest.raises(ValueError, match="--workers tcp://a:1,tcp://b:1: they need their key file"):
        CliRunner().invoke(app, command, catch_exceptions=False)
