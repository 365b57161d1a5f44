"""Figures of several panels, which places are parted into, large or for a claim's card."""

from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import pandas as pd

from pipeinfer.report import captions
from pipeinfer.report.axes import PANEL
from pipeinfer.report.experiment import Experiment
from pipeinfer.report.style import CARD_IN, new_figure
from pipeinfer.study.recipes import Figure

MOST_PANELS = 2
"""Of a claim's figure; of more the last are shown."""


def panelled(
    experiment: Experiment, figure: Figure, rows: pd.DataFrame, *, small: bool = False
) -> dict[str, pd.DataFrame]:
    """Rows by the title of their panel. Without fields to part them by, real ones are parted by temperature; a `small`
    figure has the last panels."""
    titles = {
        number: ", ".join(PANEL[field](place) for field in figure.panels) if place.temperature is None else place.text
        for number, place in experiment.places.items()
    }
    found = list(rows.groupby(rows.place.map(titles), sort=False))
    return dict(found[-MOST_PANELS:] if small else found)


def sheet(
    path: Path, experiment: Experiment, figure: Figure, card: str, caption: str, heights: tuple[float, float]
) -> AbstractContextManager[Any]:
    """A figure of the first height, or one with the title `card` and the second."""
    whole, small = heights
    if card:
        return new_figure(path, card, captions.of_card(experiment), small, CARD_IN, png=False)
    return new_figure(path, captions.title(experiment.recipe, figure), caption, whole)
