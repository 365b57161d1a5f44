"""The whole way from recipes to a folder with records, figures, verdicts and reports."""

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import msgspec

from pipeinfer.reproduce.analysis import analyse
from pipeinfer.reproduce.appendix import appendix
from pipeinfer.reproduce.artifact import run_programs
from pipeinfer.reproduce.cells import check_live, check_simulated, run_live, run_simulated
from pipeinfer.reproduce.claims import Claim, judge
from pipeinfer.reproduce.emulated import run_emulated
from pipeinfer.reproduce.mpi_cells import check_world, needs_world, run_in_world
from pipeinfer.reproduce.predictions import run_rehearsal
from pipeinfer.reproduce.recipes import (
    Cell,
    EmulatedCell,
    LiveCell,
    ProgramCell,
    Recipe,
    RehearsalCell,
    SimCell,
    cells,
    simulated_twin,
)
from pipeinfer.reproduce.records import Record, Store, config_hash
from pipeinfer.reproduce.report import Block, Heading, Paragraph, Table, write
from pipeinfer.reproduce.sections import section
from pipeinfer.workload import WorkloadError

OnProgress = Callable[[Recipe, int, int, float | None], None]
"""Called with a recipe, how many of its cells are done, how many it has, and how many seconds are left, where that is
known: emulated cells take as long as they say."""


def check(recipes: list[Recipe]) -> None:
    """Raise WorkloadError if a cell of a recipe cannot be run."""
    for recipe in recipes:
        found = cells(recipe)
        try:
            check_simulated(cell for cell in found if isinstance(cell, SimCell))
            check_live(cell for cell in found if isinstance(cell, LiveCell))
            check_world(cell for cell in found if isinstance(cell, LiveCell))
        except WorkloadError as problem:
            raise WorkloadError(f"recipe {recipe.name}: {problem}") from None


def run(recipe: Recipe, store: Store, jobs: int, on_progress: OnProgress, key: str | None = None) -> None:
    """Run the cells of a recipe that have no trial yet, and record each as it ends. `key`: the key file of workers."""
    found = cells(recipe)
    missing = [cell for cell in found if not _done(store, config_hash(cell))]
    done = len(found) - len(missing)
    on_progress(recipe, done, len(found), None)
    for count, record in enumerate(_records(missing, jobs, key), start=1):
        store.append(record)
        on_progress(recipe, done + count, len(found), _seconds_left(missing[count:], store))


def _records(missing: list[Cell], jobs: int, key: str | None) -> Iterator[Record]:
    # In the order of `cells`.
    yield from run_simulated([cell for cell in missing if type(cell) is SimCell], jobs)
    yield from run_emulated([cell for cell in missing if isinstance(cell, EmulatedCell)], key)
    for cell, live in _by_rehearsal(missing):
        yield from run_rehearsal(cell, key) if cell is not None else ()
        yield from run_in_world(live) if needs_world(live) else run_live(live, key)
    yield from run_programs(cell for cell in missing if isinstance(cell, ProgramCell))


def _by_rehearsal(missing: list[Cell]) -> list[tuple[RehearsalCell | None, list[LiveCell]]]:
    """What is really run, after the rehearsal that it follows."""
    found: list[tuple[RehearsalCell | None, list[LiveCell]]] = [(None, [])]
    for cell in missing:
        if isinstance(cell, RehearsalCell):
            found.append((cell, []))
        elif isinstance(cell, LiveCell):
            found[-1][1].append(cell)
    return found


def _seconds_left(cells: list[Cell], store: Store) -> float | None:
    """What emulated cells will take, from the simulation of the same. None where there is no telling."""
    left = 0.0
    for cell in cells:
        twin = store.records.get(config_hash(simulated_twin(cell))) if isinstance(cell, EmulatedCell) else None
        if twin is None or twin.trial is None:
            return None
        left += twin.trial.emit_s[-1] + START_S
    return left


START_S = 0.5
"""What an emulated cell takes beside its generation: its share in starting ranks."""


def _done(store: Store, cell: str) -> bool:
    record = store.records.get(cell)
    return record is not None and (record.trial is not None or record.rehearsed is not None)


class Conclusion(NamedTuple):
    """What a person wants to see at once: the verdicts, the tables of what was run in real time, and a line for each
    recipe in which something went wrong."""

    claims: list[Claim]
    tables: list[Table]
    problems: list[str]


def conclude(recipes: list[Recipe], store: Store, folder: Path, notes: Sequence[str] = ()) -> Conclusion:
    """Figures, claims.json, report.md and report.html from the records in `folder`; nothing is run again."""
    analyses = {recipe.name: analyse(recipe, store.records) for recipe in recipes}
    claims = judge(analyses)
    blocks: list[Block] = [Heading("Claims"), claims_table(claims), Paragraph(_ABOUT)]
    blocks += [Paragraph(f"Note: {note}.") for note in notes]
    try:
        sections = [section(analysis, folder / "figures") for analysis in analyses.values()]
        blocks += [block for one in sections for block in one.blocks]
        blocks += appendix(recipes, store)
        (folder / "claims.json").write_bytes(msgspec.json.format(msgspec.json.encode(claims)) + b"\n")
        write(folder, "PipeInfer (SC'24), reproduced", blocks)
    except OSError as problem:
        raise WorkloadError(f"{folder}: the report cannot be written: {problem.strerror}") from None
    tables = [one.table for recipe, one in zip(recipes, sections, strict=True) if recipe.fidelity != "sim"]
    problems = [
        f"{name}: {len(found.rejected)} trials have no figure, the first because {found.rejected[0].reason}"
        for name, found in analyses.items()
        if found.rejected
    ]
    return Conclusion(claims, [table for table in tables if table is not None], problems)


_ABOUT = (
    "Published values are those of the abstract; the paper's tables could not be obtained, so where none is known it "
    "says so. Simulated clusters and acceptance rates are assumptions, labelled so in workloads/; limits are closed "
    "forms. What makes the comparison fair, every definition and both node accountings are in docs/fairness.md."
)


def claims_table(claims: list[Claim]) -> Table:
    """As in the report and at the end of the command."""
    head = ["claim", "", "published", "found here", "verdict", "evidence"]
    return Table(head, [[c.id, c.claim, c.published, c.reproduced, c.verdict, c.evidence] for c in claims])
