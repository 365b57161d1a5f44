"""Sweeps that grow: where the best that a recipe found of an option is the largest that it tried, the next is tried
too, place by place, as far as the strategy names values (`pipeinfer.modelling.sweeps`). Where options are chosen on
prompts of their own (`Live.tuned_on`), the best of each strategy are then run with the others, all in turn."""

from collections.abc import Iterator, Mapping
from itertools import product
from statistics import median
from typing import Any

import msgspec

from pipeinfer.modelling.sweeps import Options, further_options
from pipeinfer.plugins import open_strategy
from pipeinfer.results.records import Records
from pipeinfer.study.identity import config_hash
from pipeinfer.study.points import LiveCell, Point, SimCell, points
from pipeinfer.study.recipes import Live, Recipe


def grown(recipe: Recipe, records: Records) -> Recipe:
    """The recipe with the points by which its sweeps have to grow, as far as the records tell."""
    growth = Growth(recipe)
    while growth.further(records):
        pass
    return msgspec.structs.replace(recipe, grown=tuple(growth.points))


class Growth:
    """What is added to a recipe's sweeps as its records come in."""

    def __init__(self, recipe: Recipe) -> None:
        self.points: list[Point] = []
        self._sweeps: dict[bytes, _Sweep] = {}
        self._live = recipe.live if recipe.live is not None and recipe.live.tuned_on else None
        swept = growing(recipe)
        for point in points(recipe):
            if isinstance(point.cell, SimCell | LiveCell) and (self._live is not None or point.contender in swept):
                key = msgspec.json.encode((point.contender, _place(point.cell)))
                values = swept.get(point.contender, {})
                self._sweeps.setdefault(key, _Sweep(point.contender, values)).add(point.cell)

    def further(self, records: Records) -> list[Point]:
        """What to try next, where all that was to be tried so far has its record."""
        found = [point for sweep in self._sweeps.values() for point in sweep.further(records)]
        if not found and self._live is not None and all(sweep.complete(records) for sweep in self._sweeps.values()):
            found, self._live = list(self._finals(self._live, records)), None
        self.points += found
        return found

    def _finals(self, live: Live, records: Records) -> Iterator[Point]:
        """The best of each contender with the prompts on which they are compared."""
        best = [(sweep.contender, sweep.best(records)) for sweep in self._sweeps.values()]
        for prompt, temperature, repeat in product(live.prompts, live.temperatures, range(live.repeats)):
            for contender, cell in best:
                if isinstance(cell, LiveCell) and cell.temperature == temperature:
                    yield Point(contender, msgspec.structs.replace(cell, prompt=prompt, repeat=repeat))


class _Sweep:
    """One contender at one place: its variants, each with the cells of all draws and their hashes."""

    def __init__(self, contender: str, values: Mapping[str, Any]) -> None:
        self.contender, self.values = contender, values
        self.options: list[Options] = []
        self.cells: list[list[tuple[str, SimCell | LiveCell]]] = []

    def add(self, cell: SimCell | LiveCell) -> None:
        options = _options(cell)
        if options not in self.options:
            self.options.append(options)
            self.cells.append([])
        self.cells[self.options.index(options)].append((config_hash(cell), cell))

    def complete(self, records: Records) -> bool:
        return all(name in records for cells in self.cells for name, _ in cells)

    def best(self, records: Records) -> SimCell | LiveCell:
        """One of the cells of the fastest variant."""
        return self.cells[self._fastest(records)][0][1]

    def _fastest(self, records: Records) -> int:
        speeds = [_speed(records, [name for name, _ in cells]) for cells in self.cells]
        return speeds.index(max(speeds))

    def further(self, records: Records) -> Iterator[Point]:
        if not self.complete(records):
            return
        best = self._fastest(records)
        like = [cell for _, cell in self.cells[best]]
        for options in further_options(self.values, self.options, best):
            for cell in like:
                changed = _with_options(cell, options)
                self.add(changed)
                yield Point(self.contender, changed)


def growing(recipe: Recipe) -> dict[str, Mapping[str, Any]]:
    """By contender: values of the options that its strategy sweeps, and of which the recipe tries several."""
    found = {}
    for name, contender in recipe.strategies.items():
        several = {option for option, values in contender.options.items() if len(values) > 1}
        if several and not contender.program:
            first = {option: values[0] for option, values in contender.options.items()}
            known = open_strategy(contender.of or name, first).sweeps
            found[name] = {option: values for option, values in known.items() if option in several}
    return {name: values for name, values in found.items() if values}


def _place(cell: SimCell | LiveCell) -> SimCell | LiveCell:
    """The cell without options and draw: what a contender's variants are compared in."""
    if isinstance(cell, SimCell):
        return msgspec.structs.replace(cell, setting=msgspec.structs.replace(cell.setting, options={}, seed=0))
    return msgspec.structs.replace(cell, options={}, prompt="", repeat=0)


def _options(cell: SimCell | LiveCell) -> Options:
    return cell.setting.options if isinstance(cell, SimCell) else cell.options


def _with_options(cell: SimCell | LiveCell, options: Options) -> SimCell | LiveCell:
    if isinstance(cell, SimCell):
        return msgspec.structs.replace(cell, setting=msgspec.structs.replace(cell.setting, options=options))
    return msgspec.structs.replace(cell, options=options)


def _speed(records: Records, draws: list[str]) -> float:
    """The median over the draws; 0 where none came to its end."""
    found = [records.outlines[name] for name in draws]
    return median([one.tokens_per_s or 0.0 for one in found if one.done] or [0.0])
