"""`pipeinfer reproduce`: the paper's claims, each with a figure and a verdict."""

import shlex
import time
from contextlib import nullcontext
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from pipeinfer.commands.options import (
    ARTIFACT,
    OUTPUT,
    SIMULATION,
    CellOptions,
    WorkerOptions,
    model_words,
    option,
    path_option,
    with_options,
)
from pipeinfer.runtime.processor_quota import bound_cores

if TYPE_CHECKING:
    from rich.console import Console
    from rich.progress import Progress

    from pipeinfer.report.claims import Claim
    from pipeinfer.report.page import Table as ReportTable
    from pipeinfer.results.records import Store
    from pipeinfer.study.recipes import Artifact, Recipe
    from pipeinfer.study.selection import Selected

MODEL_FIELDS = ("backend", "backend_options", "target", "draft")
USED = {*MODEL_FIELDS, "workers", "key"}
"""What of a cluster file says something here."""

SHOWN_COLUMNS = 6
"""How much of a report's table a terminal is shown: where, strategy, speed, its simulation or the mean gap, ratios."""

REDRAW_S = 0.1
"""Progress is drawn again after so long at the soonest: a drawing takes a good part of what a small cell takes."""


@dataclass(frozen=True)
class ArtifactOptions:
    """How others' programs are run beside ours."""

    artifact: Annotated[
        str | None, option(ARTIFACT, "Where you built the authors', to run them too.", metavar="DIR")
    ] = None
    artifact_mpirun: Annotated[str, option(ARTIFACT, "What starts their ranks, with its options; default: mpirun.")] = (
        "mpirun"
    )
    artifact_arguments: Annotated[str, option(ARTIFACT, "Added to their command lines; the last word counts.")] = ""

    llama_cpp: Annotated[
        str | None, option(ARTIFACT, "Where you built llama.cpp, for its own cluster beside ours.", metavar="DIR")
    ] = None

    node_cores: Annotated[
        float | None, option(ARTIFACT, "So many cores for each node of either side, by control groups; as root.")
    ] = None

    def nodes(self) -> dict[str, float]:
        """The field of a live recipe that --node-cores sets. Raises ValueError."""
        from pipeinfer.core.strategies.options import require

        if self.node_cores is not None and self.llama_cpp is None:
            raise ValueError("--node-cores limits the nodes of both sides of --llama-cpp DIR: give that too")
        if self.node_cores is None:
            return {}
        require("node_cores", self.node_cores, 0.01, 1024)
        return {"node_cores": self.node_cores}

    def chosen(self) -> "Artifact | None":
        from pipeinfer.study.recipes import Artifact

        return Artifact(self.artifact, self.artifact_mpirun, self.artifact_arguments) if self.artifact else None


@dataclass(frozen=True)
class SweepOptions:
    """On what recipes are simulated."""

    jobs: Annotated[int, option(SIMULATION, "Processes; default: one per core.", min=0, max=1024)] = 0
    executor: Annotated[str, option(SIMULATION, "What simulates: local (default), mpi, slurm.")] = "local"

    @property
    def processes(self) -> int:
        return self.jobs or bound_cores()

    def ranks(
        self, fidelity: str | None, workers: tuple[str, ...] | None, key: str | None
    ) -> tuple[dict[str, Any], int | None]:
        """`_ranks`, where the processes of an MPI world are not an executor's. Raises ValueError."""
        if self.executor != "local" and fidelity != "sim":
            raise ValueError(f"--executor {self.executor} simulates: give --fidelity sim (--emit is for others)")
        return _ranks(workers, key) if self.executor == "local" else ({}, None)


@with_options
def reproduce(
    real: WorkerOptions,
    artifact: ArtifactOptions,
    which: CellOptions,
    sweep: SweepOptions,
    sections: Annotated[list[str] | None, typer.Argument(help="Recipes, or FILE.toml; default: all.")] = None,
    out: Annotated[
        Path, path_option(OUTPUT, "Folder of results (default: results); run again to resume.", metavar="DIR")
    ] = Path("results"),
    replot: Annotated[bool, option(OUTPUT, "Run nothing: draw and report what is recorded.", "--replot")] = False,
    emit: Annotated[str | None, option(OUTPUT, "Run nothing: write jobs, for shell, slurm or pbs.")] = None,
    collect: Annotated[bool, option(OUTPUT, "Run nothing: add what such jobs wrote.", "--collect")] = False,
) -> None:
    """Reproduce the paper: simulate, emulate, run live, draw, and judge every claim.

    Models and pipeline are those of what is really run.
    """
    from pipeinfer.cluster.mpi_world import in_mpi_world
    from pipeinfer.commands.output import console
    from pipeinfer.results.records import Store
    from pipeinfer.study.run import check

    given = real.given()
    if emit is not None and ("workers" in given or in_mpi_world() or artifact != ArtifactOptions()):
        raise ValueError("--emit: jobs start their ranks themselves: no --workers, MPI world or others' programs here")
    if which.mpi and ("workers" in given or not (emit or collect or replot)):
        raise ValueError("--mpi is of jobs (--emit, then --collect): to run over an MPI world, start this by mpirun")
    recipes, notes = _selected(sections or [], given, artifact, which, sweep)
    if unused := ", ".join(sorted(given.keys() - USED)):
        notes = [*notes, f"{real.cluster_file}: the recipes themselves say what {unused} is"]
    check(recipes, here=emit is None)
    store = Store(out)
    terminal = console()
    for note in notes:
        terminal.print(f"note: {note}", soft_wrap=True)
    if emit is not None:
        _emit(terminal, emit, recipes, store, sections or [], [*model_words(given), *which.words()])
        return
    if collect:
        _collect(terminal, recipes, store, out)
    if not (replot or collect):
        _run(terminal, recipes, store, sweep, given.get("key"))
    _report(terminal, recipes, store, out, notes, sweep.processes)


def _selected(
    sections: list[str], given: dict[str, Any], artifact: ArtifactOptions, which: CellOptions, sweep: SweepOptions
) -> "Selected":
    """The recipes as they were asked for. Raises ValueError, also where an option says nothing to any of them."""
    from pipeinfer.study.selection import Wish, select

    live, ranks = sweep.ranks(which.fidelity, given.get("workers"), given.get("key"))
    live |= {name: given[name] for name in MODEL_FIELDS if name in given} | which.live() | artifact.nodes()
    wish = Wish(which.fidelity, which.cluster, live, ranks, artifact.chosen(), artifact.llama_cpp)
    found = select(sections, wish)
    if which.prompts is not None and all(recipe.live is None for recipe in found.recipes):
        raise ValueError(f"--prompts {which.prompts}: nothing of these recipes really runs a model: try live")
    if which.mpi and all(recipe.live is None and recipe.emulation is None for recipe in found.recipes):
        raise ValueError("--mpi: nothing of these recipes is emulated or really runs a model: try --fidelity emulated")
    return found


def _run(
    terminal: "Console", recipes: "list[Recipe]", store: "Store", sweep: SweepOptions, key: str | None
) -> None:
    """Run what has no record, with a bar per recipe."""
    from pipeinfer.cluster.kept_processes import kept_processes
    from pipeinfer.study.executors import executor
    from pipeinfer.study.run import run

    limited = any(recipe.live is not None and recipe.live.node_cores for recipe in recipes)
    kept = nullcontext() if limited else kept_processes()  # Ranks of limited nodes see the quota of the head's.
    jobs = sweep.jobs if sweep.executor == "slurm" else sweep.processes
    with _progress(terminal) as progress, kept, executor(sweep.executor, jobs, store.path.parent) as how:
        tasks = {recipe.name: progress.add_task(recipe.title, total=None, start=False) for recipe in recipes}
        drawn = 0.0

        def on_progress(recipe: "Recipe", done: int, total: int, left_s: float | None) -> None:
            nonlocal drawn
            if not progress.tasks[tasks[recipe.name]].started:
                progress.start_task(tasks[recipe.name])
            progress.update(tasks[recipe.name], completed=done, total=total, left_s=left_s)
            if done == total or time.perf_counter() >= drawn + REDRAW_S:
                progress.refresh()
                drawn = time.perf_counter()

        for recipe in recipes:
            run(recipe, store, how, on_progress, key)


def _report(
    terminal: "Console", recipes: "list[Recipe]", store: "Store", out: Path, notes: list[str], jobs: int
) -> None:
    """Draw, judge and write what is recorded, and say where it is."""
    from pipeinfer.report.write import conclude  # pandas and seaborn, which nothing that runs needs
    from pipeinfer.study.executors import local

    with terminal.status("drawing and writing the report"):
        others = partial(local, jobs) if jobs > 1 else None
        claims, tables, problems = conclude(recipes, store, out, notes, others)
    for problem in problems:
        terminal.print(f"note: {problem}", soft_wrap=True)
    for table in tables:
        _print_table(terminal, table)
    _print(terminal, claims, out)


def _emit(
    terminal: "Console", kind: str, recipes: "list[Recipe]", store: "Store", sections: list[str], options: list[str]
) -> None:
    from pipeinfer.study.job_scripts import emit

    out = store.path.parent
    scripts, count = emit(kind, recipes, store, out, options)
    for script in scripts:
        terminal.print(str(script), soft_wrap=True)
    if not count:
        terminal.print("every cell has its record already")
    then = shlex.join(["pipeinfer", "reproduce", *sections, "--collect", *options, "--out", str(out)])
    terminal.print(f"{count} cells; when they have run: {then}", soft_wrap=True)


def _collect(terminal: "Console", recipes: "list[Recipe]", store: "Store", out: Path) -> None:
    from pipeinfer.study.jobs import collect

    terminal.print(f"{collect(recipes, store, out)} records collected", soft_wrap=True)


def _ranks(workers: tuple[str, ...] | None, key: str | None) -> tuple[dict[str, Any], int | None]:
    """Fields of a live recipe that say on which ranks it runs, and how many they are: workers, an MPI world, or (None)
    processes that are started here."""
    from pipeinfer.cluster.mpi_world import in_mpi_world, settle
    from pipeinfer.runtime.transports import scheme_of, takes_keys

    if key is not None and workers is None:
        raise ValueError("--key is the key file of running workers: give their addresses with --workers")
    if workers is not None:
        there = ",".join(workers)
        if len(workers) < 2:
            raise ValueError(f"--workers {there}: expected two or more, one of them for the draft")
        transport = scheme_of(there) or "tcp"
        if key is None and takes_keys(transport):
            raise ValueError(f"--workers {there}: they need their key file, so give --key as well")
        return {"transport": transport, "workers": workers, "stages": len(workers) - 1}, len(workers)
    if not in_mpi_world():
        return {}, None
    transport, ranks = settle(None, None, None)
    return {"transport": transport, "stages": ranks - 1}, ranks


def _progress(console: "Console") -> "Progress":
    from rich.progress import (
        BarColumn,
        MofNCompleteColumn,
        Progress,
        Task,
        TextColumn,
        TimeElapsedColumn,
        TimeRemainingColumn,
    )
    from rich.text import Text

    class TimeLeft(TimeRemainingColumn):
        """What is known of the rest, or else what the pace so far lets expect."""

        def render(self, task: Task) -> Text:
            known = task.fields.get("left_s")
            return super().render(task) if known is None else Text(f"{known // 60:.0f}:{known % 60:02.0f}", "cyan")

    # Redrawn when a cell ends and never beside one: what is being timed has the cores to itself.
    return Progress(
        TextColumn("{task.description}", markup=False), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn(),
        TextColumn("left", markup=False), TimeLeft(), console=console, auto_refresh=False,
    )  # fmt: skip


def _print_table(console: "Console", table: "ReportTable") -> None:
    from rich.table import Table

    shown = Table(title=table.title)
    for column, name in enumerate(table.head[:SHOWN_COLUMNS]):
        shown.add_column(name, justify="right" if column in table.numbers else "left")
    for row in table.rows:
        shown.add_row(*row[:SHOWN_COLUMNS])
    console.print(shown)


COLOURS = {"reproduced": "green", "partly": "yellow", "not reproduced": "red"}


def _print(console: "Console", claims: "list[Claim]", out: Path) -> None:
    """The last screen: a line per claim, and where to look; 80 columns are enough."""
    from rich.table import Table
    from rich.text import Text

    table = Table(box=None, pad_edge=False, show_header=False, padding=(0, 1, 0, 0), expand=True)
    for ratio in (None, None, None, 1):
        table.add_column(no_wrap=True, overflow="ellipsis", ratio=ratio)
    for claim in claims:
        verdict = Text(claim.verdict, COLOURS.get(claim.verdict, "dim"))
        table.add_row(claim.id, verdict, Text(claim.name), Text(claim.brief))
    console.print(table)
    for what, where in {"report": "report.html", "tables": "trials.parquet", "records": "trials.jsonl"}.items():
        console.print(f"{what}: {out / where}", soft_wrap=True)
