"""Running recipes: what has no record yet is run, and recorded as it ends."""

from collections.abc import Callable, Iterator
from concurrent.futures import Executor

from pipeinfer.results.records import Record, Store
from pipeinfer.study import artifact, peers
from pipeinfer.study.artifact import run_programs
from pipeinfer.study.cells import check_live, check_simulated, run_live, run_simulated
from pipeinfer.study.emulated import run_emulated
from pipeinfer.study.growth import Growth
from pipeinfer.study.identity import config_hash, simulated_s
from pipeinfer.study.loads import check_loads, check_served, run_live_loads, run_simulated_loads
from pipeinfer.study.mpi_cells import check_world, needs_world, run_in_world
from pipeinfer.study.points import (
    Cell,
    EmulatedCell,
    LiveCell,
    LiveLoadCell,
    LoadCell,
    PredictorCell,
    ProgramCell,
    SimCell,
    cells,
    cells_of,
)
from pipeinfer.study.predictor import run_predictor
from pipeinfer.study.recipes import PEER_PROGRAMS, Recipe
from pipeinfer.workload import WorkloadError

OnProgress = Callable[[Recipe, int, int, float | None], None]
"""Called with a recipe, how many of its cells are done, how many it has, and how many seconds are left, where that is
known: emulated cells take as long as they say."""


def check(recipes: list[Recipe], *, here: bool = True) -> None:
    """Raise WorkloadError if a cell of a recipe cannot be run; `here`: by this process, and not as a job."""
    for recipe in recipes:
        found = cells(recipe)
        try:
            check_simulated(cell for cell in found if isinstance(cell, SimCell))
            check_loads(cell for cell in found if isinstance(cell, LoadCell))
            check_live(cell for cell in found if isinstance(cell, LiveCell))
            if here:
                check_served(cell for cell in found if isinstance(cell, LiveLoadCell))
                check_world(cell for cell in found if isinstance(cell, LiveCell))
        except WorkloadError as problem:
            raise WorkloadError(f"recipe {recipe.name}: {problem}") from None


def run(
    recipe: Recipe, store: Store, jobs: int | Executor, on_progress: OnProgress, key: str | None = None
) -> None:
    """Run the cells of a recipe that have no trial yet, and those by which its sweeps then grow, and record each as it
    ends. `jobs`: processes that simulate, or what does it in their place; `key`: the key file of workers."""
    found = cells(recipe)
    missing = _missing(found, store)
    done, total = len(found) - len(missing), len(found)
    growth = Growth(recipe)

    def further() -> list[Cell]:
        """Counted as soon as they are known; those of earlier rounds that failed are not tried again."""
        nonlocal done, total
        while points := growth.further(store.records):
            new = cells_of(points)
            left = _missing(new, store)
            done, total = done + len(new) - len(left), total + len(new)
            if left:
                return left
        return []

    missing = missing or further()
    on_progress(recipe, done, total, None)
    while missing:
        for count, record in enumerate(records_of(missing, jobs, key, further), start=1):
            store.append(record)
            done += 1
            on_progress(recipe, done, total, _seconds_left(missing[count:], store))
        missing = further()


def _missing(found: list[Cell], store: Store) -> list[Cell]:
    return [cell for cell in found if not store.records.done(config_hash(cell))]


def records_of(
    missing: list[Cell], jobs: int | Executor, key: str | None, further: Callable[[], list[Cell]] = lambda: []
) -> Iterator[Record]:
    """The records of cells as each ends, in the order of `cells`. What is really run goes on with what `further` gives
    when all else has been recorded, on the same ranks."""
    yield from run_simulated([cell for cell in missing if type(cell) is SimCell], jobs)
    yield from run_emulated([cell for cell in missing if isinstance(cell, EmulatedCell)], key)
    yield from run_simulated_loads([cell for cell in missing if isinstance(cell, LoadCell)], jobs)
    if any(_of_peer(cell) for cell in missing):
        yield from _in_turns(missing, key, further)
        return
    served = [cell for cell in missing if isinstance(cell, LiveLoadCell)]
    if served:
        yield from run_live_loads(served, key)
        return
    groups = _by_predictor(missing)
    for cell, live in groups:
        yield from run_predictor(cell, key) if cell is not None else ()
        if needs_world(live):
            yield from run_in_world(live)
        else:
            yield from run_live(_and(live, further) if live is groups[-1][1] else live, key)
    yield from run_programs([cell for cell in missing if isinstance(cell, ProgramCell)], artifact.generate)


def _of_peer(cell: Cell) -> bool:
    return isinstance(cell, ProgramCell) and cell.program in PEER_PROGRAMS


def _in_turns(missing: list[Cell], key: str | None, further: Callable[[], list[Cell]]) -> Iterator[Record]:
    """llama.cpp's programs between our own generations, whose ranks stay up meanwhile: what else the machine does hits
    both alike."""
    theirs = run_programs([cell for cell in missing if isinstance(cell, ProgramCell)], peers.generate)
    ours = run_live(_and([cell for cell in missing if isinstance(cell, LiveCell)], further), key)
    for cell in missing:
        yield next(theirs if _of_peer(cell) else ours)
    yield from ours


def _and(first: list[LiveCell], further: Callable[[], list[Cell]]) -> Iterator[LiveCell]:
    """Asked for more when those before have been recorded."""
    yield from first
    while first and (more := further()):
        yield from (cell for cell in more if isinstance(cell, LiveCell))


def _by_predictor(missing: list[Cell]) -> list[tuple[PredictorCell | None, list[LiveCell]]]:
    """What is really run, after the predictor that it follows."""
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
        known_s = simulated_s(cell, store.records)
        if known_s is None:
            return None
        left += known_s + START_S
    return left


START_S = 0.5
"""What an emulated cell takes beside its generation: its share in starting ranks."""
