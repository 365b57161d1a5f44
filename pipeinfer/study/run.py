"""Running recipes: what has no record yet is run, and recorded as it ends."""

from collections.abc import Callable, Iterator

from pipeinfer.results.records import Record, Store
from pipeinfer.study.artifact import run_programs
from pipeinfer.study.cells import check_live, check_simulated, run_live, run_simulated
from pipeinfer.study.emulated import run_emulated
from pipeinfer.study.identity import config_hash
from pipeinfer.study.mpi_cells import check_world, needs_world, run_in_world
from pipeinfer.study.predictor import run_predictor
from pipeinfer.study.recipes import (
    Cell,
    EmulatedCell,
    LiveCell,
    PredictorCell,
    ProgramCell,
    Recipe,
    SimCell,
    cells,
    simulated_twin,
)
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
    missing = [cell for cell in found if not is_done(store.records.get(config_hash(cell)))]
    done = len(found) - len(missing)
    on_progress(recipe, done, len(found), None)
    for count, record in enumerate(records_of(missing, jobs, key), start=1):
        store.append(record)
        on_progress(recipe, done + count, len(found), _seconds_left(missing[count:], store))


def records_of(missing: list[Cell], jobs: int, key: str | None) -> Iterator[Record]:
    """The records of cells as each ends, in the order of `cells`."""
    yield from run_simulated([cell for cell in missing if type(cell) is SimCell], jobs)
    yield from run_emulated([cell for cell in missing if isinstance(cell, EmulatedCell)], key)
    for cell, live in _by_predictor(missing):
        yield from run_predictor(cell, key) if cell is not None else ()
        yield from run_in_world(live) if needs_world(live) else run_live(live, key)
    yield from run_programs(cell for cell in missing if isinstance(cell, ProgramCell))


def _by_predictor(missing: list[Cell]) -> list[tuple[PredictorCell | None, list[LiveCell]]]:
    """What is really run, after the predictor that it is held against."""
    found: list[tuple[PredictorCell | None, list[LiveCell]]] = [(None, [])]
    for cell in missing:
        if isinstance(cell, PredictorCell):
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


def is_done(record: Record | None) -> bool:
    """Whether a cell with this record need not be run again."""
    return record is not None and (record.trial is not None or record.predictor is not None)
