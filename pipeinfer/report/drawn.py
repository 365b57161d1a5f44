"""Figures that are drawn while the report is written: each from what its file was not drawn from already, and many of
them by this machine's other processes."""

import hashlib
import time
from collections.abc import Callable, Iterable
from concurrent.futures import Executor, Future
from pathlib import Path
from typing import Any, TypeAlias

import msgspec
import pandas as pd

from pipeinfer.results.makers import makers_digest

UNSHOWN = ["token_ids", "margins", "generated", "seconds"]
"""Columns that no figure shows: texts, which pandas cannot hash as lists, and how long it took to obtain a trial."""

FEW = 4
"""Figures that are drawn by this process: others take as long to load what draws them."""

Others: TypeAlias = Callable[[], Executor]
"""Processes that draw, started when they are asked for."""


class Drawings:
    """Figures under way. A context manager, on whose leaving all are drawn, with what each took in `seconds`; by
    `others`, where there are more than a few."""

    def __init__(self, others: Others | None = None) -> None:
        self.seconds: dict[Path, float] = {}
        self._others = others
        self._own: list[tuple[Any, ...]] = []
        self._under_way: dict[Path, Future[float]] = {}

    def draw(self, path: Path, mark: str, draw: Callable[..., None], *what: Any) -> None:
        """Have `draw(*what, path)` write path.svg, unless that was written for the same `mark`, with which the file
        ends."""
        comment = f"<!-- drawn from {mark} -->\n"
        drawing = path.with_suffix(".svg")
        if drawing.exists() and drawing.read_text(encoding="utf-8").endswith(comment):
            return
        if self._others is None or len(self._own) < FEW:
            self._own.append((path, comment, draw, *what))
        else:
            self._under_way[path] = self._others().submit(_draw, path, comment, draw, *what)

    def __enter__(self) -> "Drawings":
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        try:
            if kind is None:
                self.seconds |= {path: _draw(path, *drawing) for path, *drawing in self._own}
                self.seconds |= {path: under_way.result() for path, under_way in self._under_way.items()}
        finally:
            for under_way in self._under_way.values():
                under_way.cancel()


def _draw(path: Path, comment: str, draw: Callable[..., None], *what: Any) -> float:
    """The seconds that it took."""
    start = time.perf_counter()
    draw(*what, path)
    with path.with_suffix(".svg").open("a", encoding="utf-8") as file:
        file.write(comment)
    return time.perf_counter() - start


def fingerprint(what: Any, *tables: pd.DataFrame) -> str:
    """Of a description, of rows, and of whatever draws them."""
    return hashlib.sha256(msgspec.json.encode((what, digest(*tables), makers_digest()))).hexdigest()[:16]


def digest(*tables: pd.DataFrame) -> str:
    """Of rows, but for what no figure shows."""
    found = hashlib.sha256()
    for rows in tables:
        known = rows.drop(columns=UNSHOWN, errors="ignore")
        if "accepted" in known:
            # A failed trial has none, and beside others' lists that is NaN.
            counts = [" ".join(map(str, one)) if isinstance(one, Iterable) else None for one in known.accepted]
            known = known.assign(accepted=counts)
        found.update(pd.util.hash_pandas_object(known, index=False).to_numpy().tobytes())
    return found.hexdigest()
