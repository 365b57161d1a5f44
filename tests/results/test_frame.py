"""Tables: what is in them, who reads them, and who never loads pandas."""

import re
import shutil
import subprocess
import sys
from importlib import import_module
from pathlib import Path

import msgspec
import pandas as pd
import pytest

from pipeinfer import results
from pipeinfer.report.write import conclude, report
from pipeinfer.results import makers, metrics
from pipeinfer.results.frame import COLUMNS, METRICS, Tables
from pipeinfer.results.records import Store
from pipeinfer.study.recipes import Contender, Figure, Recipe, Simulated
from pipeinfer.study.run import run
from pipeinfer.study.table import tables_in

ROOT = Path(__file__).parents[2]
RECIPE = Recipe(
    title="Small", about="A small sweep.", claims=["C1"], expected="a figure", minutes=0.1, hardware="any",
    name="small", figures=(Figure("lines", x="nodes", y="gain"), Figure("dots"), Figure("timeline")),
    strategies={
        "iterative": Contender(),
        "speculative": Contender(options={"k": [1, 2]}),
        "pipeinfer": Contender(options={"draft": [1]}),
    },
    simulated=Simulated(
        pairs=["dolphin-tinyllama"], clusters=["haswell-gigabit"], nodes=[4], acceptance=["good"], seeds=[0, 1],
        tokens=16, prompt=4,
    ),
)  # fmt: skip


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    found = tmp_path_factory.mktemp("small")
    store = Store(found)
    run(RECIPE, store, 1, lambda *_: None)
    conclude([RECIPE], store, found)
    return found


def test_a_row_per_trial_says_what_the_trial_s_metrics_say(folder: Path) -> None:
    trials, records = results.load(folder).trials, Store(folder).records
    assert list(trials) == list(COLUMNS)
    assert all(COLUMNS.values())
    assert set(trials.config_hash) == set(records)
    for row in trials.to_dict("records"):
        trial = records[row["config_hash"]].trial
        assert trial is not None
        assert list(row["token_ids"]) == list(trial.token_ids)
        for name, (_, of) in METRICS.items():
            value = of(trial)
            assert row[name] == pytest.approx(float("nan") if value is None else value, nan_ok=True)
        assert row["itl_p95_s"] == metrics.itl_s(trial)["p95"]


def test_gaps_ranks_and_spans_belong_to_trials(folder: Path) -> None:
    trials, gaps, ranks, spans = results.load(folder)
    lengths = trials.set_index("config_hash").tokens
    assert gaps.groupby("config_hash").size().to_dict() == lengths.to_dict()
    latency = gaps[gaps.token > 1].groupby("config_hash").gap_s.mean()
    assert latency.to_dict() == pytest.approx(trials.set_index("config_hash").itl_mean_s.to_dict())
    shares = ranks.groupby("config_hash").utilisation.mean()
    assert shares.to_dict() == pytest.approx(trials.set_index("config_hash").utilisation.to_dict())
    assert set(spans.config_hash) == set(trials.config_hash), "the timeline's"


def test_figures_drawn_from_the_tables_alone_are_the_same_files(folder: Path, tmp_path: Path) -> None:
    report([RECIPE], results.load(folder), tmp_path)
    drawn = sorted((folder / "figures").iterdir())
    assert len(drawn) >= 8
    for path in drawn:
        assert (tmp_path / "figures" / path.name).read_bytes() == path.read_bytes(), path.name
    assert (tmp_path / "claims.json").read_bytes() == (folder / "claims.json").read_bytes()


def test_what_has_not_changed_is_not_drawn_again(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def times() -> dict[Path, int]:
        conclude([RECIPE], Store(folder), folder)
        return {path: path.stat().st_mtime_ns for path in (folder / "figures").glob("*.svg")}

    before = times()
    assert len(before) >= 5
    assert times() == before
    monkeypatch.setattr("pipeinfer.report.drawn.makers_digest", lambda: "others")
    drawn_anew = times()
    assert all(drawn_anew[path] > before[path] for path in before)


@pytest.mark.parametrize("changed", ["package/report/claims/speed.py", "published/claims.toml", "package/new.py"])
def test_sources_and_published_values_are_in_the_digest_of_makers(
    changed: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.copytree(makers.PACKAGE / "report", tmp_path / "package" / "report")
    shutil.copytree(makers.asset("paper_figures/reference"), tmp_path / "published")
    monkeypatch.setattr(makers, "PACKAGE", tmp_path / "package")
    monkeypatch.setattr(makers, "asset", lambda _: tmp_path / "published")
    before = makers.makers_digest.__wrapped__()
    assert makers.makers_digest.__wrapped__() == before
    with (tmp_path / changed).open("a") as file:
        file.write("# changed\n")
    assert makers.makers_digest.__wrapped__() != before


def test_tables_are_made_again_where_anything_that_they_come_from_has_changed(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.copy(folder / "trials.jsonl", tmp_path)
    files = [tmp_path / f"{name}.parquet" for name in Tables._fields]

    def made() -> bool:
        """Whether asking for them made them; they are the same then."""
        before = {path: path.stat().st_mtime_ns for path in files if path.exists()}
        tables_in(tmp_path, [RECIPE], Store(tmp_path))
        pd.testing.assert_frame_equal(results.load(tmp_path).trials, results.load(folder).trials)
        return before != {path: path.stat().st_mtime_ns for path in files}

    assert made()
    assert not made()
    Store(tmp_path).append(next(iter(Store(folder).records.values())))  # Of several of a cell the last counts.
    assert made()
    assert not made()
    files[0].write_bytes(files[0].read_bytes()[:-9])
    assert made()
    files[1].unlink()
    assert made()
    tables_in(tmp_path, [msgspec.structs.replace(RECIPE, about="Another.")], Store(tmp_path))
    assert made()
    with monkeypatch.context() as patch:  # As where a name stands for another cluster by now: no cell has a record.
        patch.setattr("pipeinfer.study.table.config_hash", lambda _: "another")
        tables_in(tmp_path, [RECIPE], Store(tmp_path))
        assert results.load(tmp_path).trials.empty
    assert made()
    monkeypatch.setattr("pipeinfer.study.table.makers_digest", lambda: "others")
    assert made()
    assert not made()


@pytest.mark.parametrize("library", ["pyarrow.parquet", "polars", "duckdb"])
def test_others_read_the_tables(folder: Path, library: str) -> None:
    """As many rows, and the same speeds."""
    read = getattr(import_module(library), "read_table" if library == "pyarrow.parquet" else "read_parquet")
    trials = results.load(folder).trials
    found = read(str(folder / "trials.parquet"))
    speeds = found.df().tokens_per_s if library == "duckdb" else found["tokens_per_s"].to_pandas()
    assert speeds.tolist() == trials.tokens_per_s.tolist()


def test_the_documented_notebook_draws_a_figure_of_its_own(folder: Path, tmp_path: Path) -> None:
    (code,) = re.findall(r"```python\n(.*?)```", (ROOT / "docs" / "results.md").read_text(), re.DOTALL)
    assert len([line for line in code.splitlines() if line.strip()]) <= 10
    (tmp_path / "results").symlink_to(folder)
    command = [sys.executable, "-W", "error", "-c", code]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "mine.svg").stat().st_size > 5000


PANDAS_FREE = (
    "pipeinfer", "pipeinfer.results", "pipeinfer.study.cells", "pipeinfer.study.run", "pipeinfer.cluster.launch",
    "pipeinfer.runtime.live", "pipeinfer.commands.reproduce",
)  # fmt: skip
HEAVY = ["jinja2", "matplotlib", "pandas", "pyarrow", "seaborn"]


@pytest.mark.parametrize("module", PANDAS_FREE)
def test_ranks_and_simulations_load_no_pandas(module: str) -> None:
    code = f"import sys, {module}; print(sorted(set({HEAVY}) & set(sys.modules)))"
    said = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True).stdout
    assert said.strip() == "[]"


def test_an_empty_folder_is_named(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"trials\.parquet"):
        results.load(tmp_path)


def test_medians_of_pandas_are_those_of_claims(folder: Path) -> None:
    """One number everywhere: claims.json says what the table says."""
    trials = pd.read_parquet(folder / "trials.parquet")
    best = trials[trials.best & (trials.contender == "pipeinfer")]
    gain = best.groupby("place").over_speculative.median().max()
    assert f"up to {gain:.2f}x simulated" in (folder / "claims.json").read_text()
