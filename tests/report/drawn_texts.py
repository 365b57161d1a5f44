"""What of a figure's words stands where, for tests."""

import io
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import combinations
from typing import Any

import pytest

TOUCH_PX = 1.5
"""By so much boxes may overlap: they are a little larger than what is seen."""


class Sheet:
    """The words of the figures that were drawn, each with its box in pixels."""

    def __init__(self) -> None:
        self.texts: list[tuple[str, Any]] = []
        self.problems: list[str] = []

    def look(self, figure: Any) -> None:
        """What was drawn since the last look has the size of that figure."""
        for (one, own), (other, its) in combinations(self.texts, 2):
            wide, high = (min(end) - max(begin) for end, begin in (
                ((own.x1, its.x1), (own.x0, its.x0)), ((own.y1, its.y1), (own.y0, its.y0)),
            ))  # fmt: skip
            if min(wide, high) > TOUCH_PX:
                self.problems.append(f'"{one}" and "{other}" overlap')
        for text, box in self.texts:
            if min(box.x0, box.y0, figure.bbox.width - box.x1, figure.bbox.height - box.y1) < -TOUCH_PX:
                self.problems.append(f'"{text}" leaves the sheet')
        self.texts.clear()


@contextmanager
def looked_at(monkeypatch: pytest.MonkeyPatch) -> Iterator[Sheet]:
    """Every figure that is saved meanwhile is looked at as pixels: as it is saved, or else before it is as outlines."""
    from matplotlib.figure import Figure
    from matplotlib.text import Text

    sheet, draw, save, looked = Sheet(), Text.draw, Figure.savefig, None

    def noted(self: Any, renderer: Any, *arguments: Any, **options: Any) -> None:
        draw(self, renderer, *arguments, **options)
        if self.get_visible() and self.get_text().strip():
            sheet.texts.append((self.get_text(), self.get_window_extent(renderer)))

    def saved(self: Any, path: Any, **options: Any) -> None:
        nonlocal looked
        if self is not looked:
            looked = self
            sheet.texts.clear()
            if not str(path).endswith(".png"):
                save(self, io.BytesIO(), format="png")
                sheet.look(self)
        save(self, path, **options)
        if str(path).endswith(".png"):
            sheet.look(self)

    with monkeypatch.context() as patch:
        patch.setattr(Text, "draw", noted)
        patch.setattr(Figure, "savefig", saved)
        yield sheet
