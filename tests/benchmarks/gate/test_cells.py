"""Every cell takes as long as before, to 1 % (pytest-benchmark's comparison), and does what it did before, exactly."""

from collections.abc import Iterator
from typing import Any

import pytest
from gate_cells import CELLS, Cell, Clock, measure

CLOCK = Clock()
SHOWN = 12
"""At most so many differences are listed per cell: one hop more changes the traffic of every link."""

UPDATE = "if it is meant: pytest tests/benchmarks/gate --update-baseline, and say in the review why"


@pytest.mark.benchmark(timer=CLOCK)
@pytest.mark.parametrize("cell", CELLS, ids=str)
def test_cell(benchmark: Any, counts: dict[str, Any], pytestconfig: pytest.Config, cell: Cell) -> None:
    CLOCK.now = 0.0
    measured = benchmark.pedantic(measure, (cell, CLOCK))
    if pytestconfig.option.update_baseline:
        counts[str(cell)] = measured
    changes = list(differences(counts.get(str(cell), {}), measured))
    if changes:
        more = [f"  and {len(changes) - SHOWN} more"] if len(changes) > SHOWN else []
        pytest.fail("\n".join([f"{cell}: changed; {UPDATE}", *changes[:SHOWN], *more]), pytrace=False)


def differences(expected: dict[str, Any], measured: dict[str, Any], at: str = "") -> Iterator[str]:
    """A line for each figure that is not what it was."""
    for name in {**expected, **measured}:
        before, now = expected.get(name), measured.get(name)
        if isinstance(before, dict) and isinstance(now, dict):
            yield from differences(before, now, f"{at}{name} ")
        elif before != now:
            yield f"  {at}{name}: {before} before, {now} now{_change(before, now)}"


def _change(before: Any, now: Any) -> str:
    numbers = isinstance(before, int) and isinstance(now, int) and before
    return f" ({now / before - 1:+.2%})" if numbers else ""
