"""Several requests at once as an experiment: every request has a record, what all get together is told, and a load
whose records are lost is run again."""

import json
from pathlib import Path

import msgspec
import pytest
from experiments import analyse

from pipeinfer.modelling.simulate import shared_chain
from pipeinfer.report.at_once import by_requests
from pipeinfer.report.captions import setting
from pipeinfer.report.write import conclude
from pipeinfer.results.records import FILE, Record, Store
from pipeinfer.study.identity import config_hash
from pipeinfer.study.jobs import collect, run_cells
from pipeinfer.study.points import LoadCell, cells
from pipeinfer.study.recipes import Contender, Figure, Live, Recipe, Simulated
from pipeinfer.study.run import check, run
from pipeinfer.workload import WorkloadError

STRATEGIES = {
    "iterative": Contender(),
    "speculative": Contender(options={"k": [2]}),
    "pipeinfer": Contender(options={"draft": [1]}),
}
SIMULATED = Recipe(
    title="At once", about="A small load.", claims=[], expected="a figure", minutes=0.1, hardware="any", name="load",
    strategies=STRATEGIES, figures=(Figure("requests"),), requests=[1, 3],
    simulated=Simulated(
        pairs=["dolphin-tinyllama"], clusters=["haswell-gigabit"], nodes=[5], acceptance=["good"], seeds=[0, 1],
        tokens=32, prompt=8, width_cost=[0.0], draft_cost=[0.01], latency_us=[0.0], bandwidth_gbps=[1e6],
    ),
)  # fmt: skip
LIVE = Recipe(
    title="Served", about="Really.", claims=[], expected="the same tokens", minutes=0.1, hardware="any",
    name="load-live", strategies=STRATEGIES, figures=(Figure("requests"),), requests=[1, 3],
    live=Live(
        backend="numpy", target="builtin:target", draft="builtin:draft", transport="inproc", stages=2,
        prompts=["merge-sorted", "line-reader"], temperatures=[0.0], top_p=0.95, seed=1, tokens=12, repeats=1,
    ),
)  # fmt: skip


def reproduced(recipe: Recipe, folder: Path) -> Store:
    check([recipe])
    store = Store(folder)
    run(recipe, store, 1, lambda *_: None)
    return store


def told(record: Record) -> Record:
    """What of a record does not depend on where and when it was made."""
    return msgspec.structs.replace(record, seconds=0.0, environment={})


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    made = tmp_path_factory.mktemp("load")
    reproduced(SIMULATED, made)
    return made


def test_what_all_get_together_stands_beside_the_closed_form(folder: Path) -> None:
    found = by_requests(analyse(SIMULATED, Store(folder).records)).set_index(["requests", "contender"])
    one, three = found.loc[(1, "iterative")], found.loc[(3, "iterative")]
    assert three.all_tokens_per_s == pytest.approx(3 * one.all_tokens_per_s, rel=0.05), "five stages have room"
    pipeinfer = found.loc[(3, "pipeinfer")]
    acceptance = 0.79
    assert pipeinfer.closed / (3 * pipeinfer.limit_tokens_per_s) == pytest.approx(1)
    alone = found.loc[(1, "pipeinfer")].closed
    ratio = shared_chain(acceptance, 4, 3) * 3 / shared_chain(acceptance, 4, 1)
    assert pipeinfer.closed == pytest.approx(ratio * alone, rel=1e-6)
    assert pipeinfer.all_tokens_per_s > one.all_tokens_per_s
    assert pipeinfer.loads == 2


def test_each_request_is_a_trial_with_the_tokens_of_plain_decoding(folder: Path) -> None:
    trials = analyse(SIMULATED, Store(folder).records).trials
    assert len(trials) == 3 * 2 * (1 + 3)
    assert set(trials.status) == {"passed"}
    assert trials.groupby(["requests", "contender", "load"]).size().to_dict() == {
        (count, name, load): count for count in (1, 3) for name in STRATEGIES for load in (0, 1024)
    }


def test_requests_whose_records_are_lost_are_run_again_in_their_load(folder: Path, tmp_path: Path) -> None:
    whole = (folder / FILE).read_bytes().splitlines(keepends=True)
    (tmp_path / FILE).write_bytes(b"".join(whole[:9] + whole[11:]))
    again = reproduced(SIMULATED, tmp_path).records
    before = Store(folder).records
    assert {name: told(record) for name, record in again.items()} == {
        name: told(record) for name, record in before.items()
    }


def test_a_job_runs_the_load_of_its_cell(folder: Path, tmp_path: Path) -> None:
    index, cell = next((at, one) for at, one in enumerate(cells(SIMULATED)) if isinstance(one, LoadCell) and one.number)
    assert run_cells(SIMULATED, index, 1, tmp_path)
    store = Store(tmp_path)
    assert collect([SIMULATED], store, tmp_path) == 1
    name = config_hash(cell)
    assert told(store.records[name]) == told(Store(folder).records[name])


def test_more_texts_than_the_ranks_hold_are_refused() -> None:
    assert SIMULATED.simulated is not None
    long = msgspec.structs.replace(SIMULATED.simulated, tokens=400_000)
    with pytest.raises(WorkloadError, match=r"recipe load: .*GB"):
        check([msgspec.structs.replace(SIMULATED, simulated=long)])


def test_requests_served_at_once_have_the_tokens_of_each_alone(tmp_path: Path) -> None:
    store = reproduced(LIVE, tmp_path)
    experiment = analyse(LIVE, store.records)
    assert set(experiment.trials.status) == {"passed"}, [record.error for record in store.records.values()]
    texts = experiment.trials.assign(token_ids=experiment.trials.token_ids.map(tuple))
    assert set(texts.groupby("text").token_ids.nunique()) == {1}, "alone, beside others, and by any strategy"
    assert by_requests(experiment).all_tokens_per_s.notna().all()
    said = setting(experiment)
    assert "Loads of 1, 3 requests, with 2 prompts in turn, once each with the strategies in turn" in said
    conclusion = conclude([LIVE], store, tmp_path)
    assert not conclusion.problems
    assert conclusion.tables[0].head[2] == "tokens/s of all"
    assert (tmp_path / "figures" / "load-live-speed-of-all-by-requests.svg").exists()
    line = json.loads((tmp_path / FILE).read_text().splitlines()[-1])
    assert (line["config"]["requests"], line["config"]["number"]) == (3, 2)
