"""What a calibrated cluster takes over rows."""

from pathlib import Path

import pandas as pd

from pipeinfer.modelling.profile import Curve, Profile
from pipeinfer.report.style import height_of, legend_above, load_seaborn, new_figure, panels, ticked


def layer_times(profile: Profile, path: Path) -> None:
    """Milliseconds of a target layer (median and range of the ranks) and of the draft over rows; path.svg and .png."""
    sns = load_seaborn()

    target, draft = (Path(model.name).name for model in (profile.target, profile.draft_model))
    shown = {f"one layer of {target}": [rank.layer for rank in profile.ranks]}
    shown |= {f"{profile.part_of_draft(share)} of {draft}": [share.forward] for share in profile.draft_shares}
    caption = (
        f"Measured: {profile.name}, {profile.backend}. Medians over repeated forwards, each after a pause; the lines "
        f"are medians of the {len(profile.ranks)} ranks, the bands reach from the fastest to the slowest."
    )
    with new_figure(path, "Time of a forward by rows", caption, height_of(len(shown), 2.2)) as figure:
        axes = panels(figure, len(shown), sharex=True, sharey=True)
        for axis, (title, curves) in zip(axes, shown.items(), strict=True):
            data = pd.concat(map(_rows, curves), ignore_index=True)
            sns.lineplot(
                data, x="rows", y="ms", hue="context", style="context", markers=True, dashes=False, ax=axis,
                palette="colorblind", estimator="median", errorbar=("pi", 100), legend=axis is axes[0],
            )  # fmt: skip
            ticked(axis, data.rows, 2)
            axis.set(title=title, ylabel="time of a forward (ms)")
        axes[0].set_ylim(bottom=0)
        legend_above(figure, axes[0])


def _rows(curve: Curve) -> pd.DataFrame:
    found = [
        (rows, f"{context} positions", 1e3 * curve.at(rows, context))
        for context in curve.contexts
        for rows in curve.rows
    ]
    return pd.DataFrame(found, columns=["rows", "context", "ms"])
