"""What a calibrated cluster takes over rows."""

from pathlib import Path

from pipeinfer.modelling.profile import Curve, Profile
from pipeinfer.report.plots.panels import Panel, Series, lines

ORDER = ("recorded", "independent", "varied")
"""Whose colours and markers the contexts take, shortest first."""


def layer_times(profile: Profile, path: Path) -> None:
    """Milliseconds of a target layer (median and range of the ranks) and of the draft over rows; path.svg and .png."""
    name, draft = (Path(model.name).name for model in (profile.target, profile.draft_model))
    lines(
        [
            Panel(f"one layer of {name}", _series([rank.layer for rank in profile.ranks])),
            *[
                Panel(f"{profile.part_of_draft(share)} of {draft}", _series([share.forward]))
                for share in profile.draft_shares
            ],
        ],
        path,
        xlabel="rows",
        ylabel="time of a forward (ms)",
        caption=f"Measured: {profile.name}, {profile.backend}. Medians over repeated forwards, each after a pause; the "
        f"lines are medians of the {len(profile.ranks)} ranks, the bands reach from the fastest to the slowest.",
        base=2,
    )


def _series(curves: list[Curve]) -> list[Series]:
    found = []
    for context, look in zip(curves[0].contexts, ORDER, strict=False):
        points = [float(rows) for rows in curves[0].rows]
        bands = [_band([1e3 * curve.at(rows, context) for curve in curves]) for rows in curves[0].rows]
        found.append(Series(f"{context} positions", look, points, bands))
    return found


def _band(values: list[float]) -> tuple[float, float, float]:
    ordered = sorted(values)
    middle = len(ordered) // 2
    median = ordered[middle] if len(ordered) % 2 else (ordered[middle - 1] + ordered[middle]) / 2
    return ordered[0], median, ordered[-1]
