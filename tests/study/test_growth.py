"""Sweeps that go on while the best is the largest tried: simulated and on ranks, from records alone, and reported."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import msgspec
import pytest
from experiments import analyse

from pipeinfer.cluster import launch
from pipeinfer.core.strategies.speculative import Speculative
from pipeinfer.report import captions
from pipeinfer.report.write import conclude
from pipeinfer.results.records import Store
from pipeinfer.study import run as run_module
from pipeinfer.study.growth import grown
from pipeinfer.study.identity import config_hash
from pipeinfer.study.points import SimCell, cells, points
from pipeinfer.study.recipes import Contender, Live, Recipe, Simulated
from pipeinfer.study.run import run

SIMULATED = Recipe(
    title="Small", about="A small sweep.", claims=[], expected="the same tokens", minutes=0.1, hardware="any",
    name="small", strategies={
        "iterative": Contender(),
        "speculative": Contender(options={"k": [1, 2]}),
        "fixed": Contender(of="speculative", options={"k": [1]}),
    },
    simulated=Simulated(
        pairs=["dolphin-tinyllama"], clusters=["haswell-gigabit"], nodes=[4], acceptance=["0.9", "0"], seeds=[0, 1],
        tokens=64, prompt=16, width_cost=[0.0],
    ),
)  # fmt: skip

LIVE = msgspec.structs.replace(
    SIMULATED, name="live", simulated=None,
    live=Live(
        backend="numpy", target="builtin:target", draft="builtin:draft", transport="inproc", stages=2,
        prompts=["merge-sorted"], temperatures=[0.0], top_p=0.95, seed=1, tokens=12, repeats=1,
    ),
)  # fmt: skip


def quiet(_recipe: Recipe, done: int, total: int, _left_s: float | None) -> None:
    """No progress display."""
    assert done <= total


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A results folder of the small sweep."""
    folder = tmp_path_factory.mktemp("small")
    run(SIMULATED, Store(folder), 1, quiet)
    return folder


def tried(recipe: Recipe, contender: str, acceptance: float) -> list[int]:
    """The values of K, in the order in which they were tried."""
    cells = [point.cell for point in points(recipe) if point.contender == contender]
    return list(dict.fromkeys(cell.setting.options["k"] for cell in cells
                              if isinstance(cell, SimCell) and cell.setting.acceptance == acceptance))  # fmt: skip


def test_a_sweep_grows_where_its_best_is_the_largest_and_nowhere_else(folder: Path) -> None:
    recipe = grown(SIMULATED, Store(folder).records)
    values = tried(recipe, "speculative", 0.9)
    assert values[:4] == [1, 2, 3, 4]
    assert values[-1] > 4
    assert tried(recipe, "speculative", 0.0) == [1, 2]
    assert tried(recipe, "fixed", 0.9) == [1]
    assert {point.cell.setting.seed for point in recipe.grown} == {0, 1}
    found = conclude([SIMULATED], Store(folder), folder)
    assert not found.problems
    said = (folder / "report.md").read_text()
    went_on = "Sweeps went on where the largest value tried was the best"
    assert f"{went_on}: speculative k from 2 up to {values[-1]}." in said
    assert "At the edge" not in said
    assert "cells were not run" not in said


def test_what_grew_is_not_run_again(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(run_module, "run_simulated", lambda missing, _: pytest.fail("ran") if missing else [])
    before = (folder / "trials.jsonl").read_bytes()
    run(SIMULATED, Store(folder), 1, quiet)
    assert (folder / "trials.jsonl").read_bytes() == before


def test_a_sweep_that_was_cut_short_goes_on(folder: Path, tmp_path: Path) -> None:
    lines = (folder / "trials.jsonl").read_bytes().splitlines(keepends=True)
    (tmp_path / "trials.jsonl").write_bytes(b"".join(lines[:-1]))
    assert conclude([SIMULATED], Store(tmp_path), tmp_path)
    assert "1 cells were not run" in (tmp_path / "report.md").read_text()
    store = Store(tmp_path)
    run(SIMULATED, store, 1, quiet)
    assert set(store.records) == set(Store(folder).records)


def test_the_edge_beyond_which_nothing_is_tried_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Speculative, "sweeps", {"k": (1, 2)})
    store = Store(tmp_path)
    run(SIMULATED, store, 1, quiet)
    conclude([SIMULATED], store, tmp_path)
    said = (tmp_path / "report.md").read_text()
    assert "At the edge of its sweep: speculative k 2 (" in said
    assert "acceptance 0.9): there is no larger one to try." in said


def test_a_real_sweep_grows_on_the_same_ranks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    opened = []

    class Counted(launch.Cluster):
        def __init__(self, *arguments: Any) -> None:
            opened.append(arguments)
            super().__init__(*arguments)

    monkeypatch.setattr(launch, "Cluster", Counted)
    with faster_by_k(monkeypatch):
        store = Store(tmp_path)
        run(LIVE, store, 1, quiet)
        values = [point.cell.options["k"] for point in grown(LIVE, store.records).grown]
    assert values == [3, 4, 6, 8, 12, 16, 24, 32, 48, 64]
    assert len(opened) == 1
    (table,) = conclude([LIVE], store, tmp_path).tables
    assert table.title.startswith(f"{LIVE.title} (real): a further row of a run costs ")
    assert "**a further row of a run costs " in (tmp_path / "report.md").read_text()


def test_options_are_chosen_with_other_prompts_than_those_on_which_the_best_are_compared(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    live = msgspec.structs.replace(
        LIVE.live, tuned_on=["merge-sorted"], tuned_tokens=8, prompts=["line-reader", "lru-table"], repeats=2
    )
    strategies = {"iterative": Contender(), "speculative": Contender(options={"k": [1, 2]})}
    recipe, store = msgspec.structs.replace(LIVE, live=live, strategies=strategies), Store(tmp_path)
    monkeypatch.setattr(Speculative, "sweeps", {"k": (1, 2, 3)})
    with faster_by_k(monkeypatch):
        run(recipe, store, 1, quiet)
        recipe = grown(recipe, store.records)
    tuned = [(point.contender, point.cell.options.get("k", 0), point.cell.repeat)
             for point in points(recipe) if point.cell.prompt == "merge-sorted"]  # fmt: skip
    assert sorted(tuned) == [("iterative", 0, 0), ("iterative", 0, 1),
                             *(("speculative", k, repeat) for k in (1, 2, 3) for repeat in (0, 1))]  # fmt: skip
    compared = [(point.cell.prompt, point.cell.repeat, point.contender, point.cell.options.get("k", 0))
                for point in points(recipe) if point.cell.prompt != "merge-sorted"]  # fmt: skip
    assert compared == [(prompt, repeat, *one) for prompt in live.prompts for repeat in (0, 1)
                        for one in (("iterative", 0), ("speculative", 3))], "in turn"  # fmt: skip
    assert all(config_hash(cell) in store.records for cell in cells(recipe))
    best = analyse(recipe, store.records).best
    assert list(best.text.unique()) == live.prompts
    assert best.groupby("contender").size().to_dict() == {"iterative": 4, "speculative": 4}
    lengths = {(cell.prompt, len(store.records[config_hash(cell)].trial.token_ids)) for cell in cells(recipe)}
    assert lengths == {("merge-sorted", 8), ("line-reader", 12), ("lru-table", 12)}
    assert "Options were chosen with 1 other prompt and 8 tokens." in captions.setting(analyse(recipe, store.records))


@contextmanager
def faster_by_k(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """As if a real trial were the faster the fewer runs it took and the longer these were."""
    with monkeypatch.context() as patched:
        name = "pipeinfer.results.metrics.tokens_per_second"
        patched.setattr(name, lambda trial: trial.config["options"].get("k", 0))
        yield
