"""What a figure was drawn from, so that one whose data, style and libraries are the same is not drawn again."""

import hashlib
from collections.abc import Callable, Iterable
from functools import cache
from importlib.metadata import version
from pathlib import Path
from typing import Any

import msgspec
import pandas as pd

from pipeinfer.report.experiment import Experiment

LIBRARIES = ("matplotlib", "seaborn", "pandas", "numpy", "scipy")
UNSHOWN = ["token_ids", "margins", "seconds"]
"""Columns that no figure shows: lists, which pandas cannot hash, and how long it took to obtain a trial."""


def draw_unless_drawn(path: Path, mark: str, draw: Callable[[], None]) -> None:
    """Call `draw`, which writes path.svg, unless that was written for the same `mark`, with which the file ends."""
    comment = f"<!-- drawn from {mark} -->\n"
    drawing = path.with_suffix(".svg")
    if drawing.exists() and drawing.read_text(encoding="utf-8").endswith(comment):
        return
    draw()
    with drawing.open("a", encoding="utf-8") as file:
        file.write(comment)


def fingerprint(what: Any, *tables: pd.DataFrame) -> str:
    """Of a description, of rows, and of whatever draws them."""
    found = hashlib.sha256(msgspec.json.encode((what, _makers())))
    for rows in tables:
        known = rows.drop(columns=UNSHOWN, errors="ignore")
        if "accepted" in known:
            # A failed trial has none, and beside others' lists that is NaN.
            counts = [" ".join(map(str, one)) if isinstance(one, Iterable) else None for one in known.accepted]
            known = known.assign(accepted=counts)
        found.update(pd.util.hash_pandas_object(known, index=False).to_numpy().tobytes())
    return found.hexdigest()[:16]


def of_experiment(experiment: Experiment, what: Any) -> str:
    """The fingerprint of a figure of an experiment."""
    return fingerprint((experiment.recipe, what), experiment.trials, experiment.simulated)


@cache
def _makers() -> list[str]:
    """The versions of libraries, and this package's own files."""
    own = sorted(Path(__file__).parent.glob("*.py"))
    return [*map(version, LIBRARIES), *(hashlib.sha256(path.read_bytes()).hexdigest() for path in own)]
