"""C4, low acceptance, and C5, slow links."""

import pandas as pd

from pipeinfer.report.axes import drafts_title
from pipeinfer.report.claims.finding import NOISE, Bearing, Evidence, Finding, all_or_some, ratios
from pipeinfer.report.page import ends
from pipeinfer.results.analysis import BASELINE, REFERENCE, SPEED
from pipeinfer.study.places import Place


def low_acceptance(bearing: Bearing) -> Finding | None:
    """For each kind of drafts: nowhere slower than plain decoding, and faster than the baseline where acceptance is
    lowest."""
    holds, evidence, figures, least = [], [], [], []
    mine = ratios(bearing.simulated, REFERENCE)
    baseline = ratios(bearing.simulated, REFERENCE, of=BASELINE)
    for drafts in mine.drafts.unique():
        alike = (found[found.drafts == drafts] for found in (mine, baseline))
        own, other = (found.sort_values("acceptance", kind="stable") for found in alike)
        if own.empty or other.empty:
            continue
        lowest, other_lowest = own.iloc[0], other.iloc[0]
        least.append(own.value.min())
        holds += [*(own.value >= 1 / NOISE), lowest.value > other_lowest.value]
        title = drafts_title(Place.of(lowest))
        evidence.append(Evidence(f"pipeinfer over iterative by acceptance, {title}", _by("acceptance", own)))
        evidence.append(Evidence(f"speculative over iterative by acceptance, {title}", _by("acceptance", other)))
        below = other[other.value < 1].acceptance
        if len(below):
            evidence.append(Evidence("speculative at its best is slower than iterative", f"up to {below.max():g}"))
        figures.append(
            f"{lowest.value:.2f}x iterative at acceptance {lowest.acceptance:g}, where speculative is at "
            f"{other_lowest.value:.2f}x (simulated, {title})"
        )
    condition = "nowhere slower than plain decoding, and ahead of the baseline where acceptance is lowest"
    if not holds:
        return None
    brief = f"at least {min(least):.2f}x iterative, simulated"
    return Finding("; ".join(figures), all_or_some(holds), evidence, condition, brief)


def _by(column: str, found: pd.DataFrame) -> str:
    """Like `0.3: 1.41x, 0.52: 1.75x`."""
    return ", ".join(f"{where:g}: {value:.2f}x" for where, value in zip(found[column], found.value, strict=True))


def slow_links(bearing: Bearing) -> Finding | None:
    by_bandwidth = [one for one in bearing.simulated if one.best.bandwidth_gbps.gt(0).any()]
    holds, evidence, kept, wider = [], [], [], []
    gains = ratios(by_bandwidth, BASELINE)
    for acceptance, some in gains[gains.bandwidth_gbps > 0].groupby("acceptance"):
        speeds = [one.medians[one.medians.acceptance == acceptance] for one in by_bandwidth]
        table = next(one for one in speeds if not one.empty).pivot_table(
            SPEED, "bandwidth_gbps", "contender", sort=False
        )
        slowest, fastest = table.index.min(), table.index.max()
        shares = (table.loc[slowest] / table.loc[fastest]).dropna()
        if not {"pipeinfer", BASELINE} <= set(shares.index):
            continue
        kept.append(shares["pipeinfer"])
        some = some.drop_duplicates("bandwidth_gbps", keep="last").sort_values("bandwidth_gbps")
        gain = some.set_index("bandwidth_gbps").value
        gigabit = gain.get(1.0, gain[slowest])
        wider.append(gigabit / gain[fastest])
        holds += [bool(shares["pipeinfer"] >= shares[BASELINE] - 0.005), gigabit >= NOISE * gain[fastest]]
        text = ", ".join(f"{name} {share:.0%}" for name, share in shares.items())
        evidence.append(
            Evidence(f"speed at {slowest:g} Gbit/s, of that at {fastest:g}, acceptance {acceptance:g}", text)
        )
        by = _by("bandwidth_gbps", some)
        evidence.append(Evidence(f"speedup over speculative by Gbit/s, acceptance {acceptance:g}", by))
    if not holds:
        return None
    condition = "at the latency of Gigabit Ethernet; the advantage has to be larger at 1 Gbit/s than on the fastest"
    figure = (
        f"keeps {ends(kept, '{:.0%}')} of its speed on the slowest link, and its advantage at 1 Gbit/s is "
        f"{ends(wider, '{:.2f}x')} that on the fastest (simulated)"
    )
    brief = f"keeps {ends(kept, '{:.0%}')}; {ends(wider, '{:.2f}x')} the gain, simulated"
    return Finding(figure, all_or_some(holds), evidence, condition, brief)
