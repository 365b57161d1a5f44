"""C4, low acceptance, and C5, slow links."""

from pipeinfer.report.axes import drafts_title
from pipeinfer.report.claims.finding import NOISE, Bearing, Evidence, Finding, Ratio, all_or_some, ratios
from pipeinfer.results.analysis import BASELINE, REFERENCE, SPEED


def low_acceptance(bearing: Bearing) -> Finding | None:
    """For each kind of drafts: nowhere slower than plain decoding, and faster than the baseline where acceptance is
    lowest."""
    holds, evidence, figures = [], [], []
    mine = ratios(bearing.simulated, REFERENCE)
    baseline = ratios(bearing.simulated, REFERENCE, of=BASELINE)
    for drafts in dict.fromkeys(ratio.place.drafts for ratio in mine):
        own, other = ([one for one in found if one.place.drafts == drafts] for found in (mine, baseline))
        if not own or not other:
            continue
        lowest, other_lowest = min(own, key=_acceptance), min(other, key=_acceptance)
        holds += [ratio.value >= 1 / NOISE for ratio in own] + [lowest.value > other_lowest.value]
        title = drafts_title(lowest.place)
        evidence.append(Evidence(f"pipeinfer over iterative by acceptance, {title}", _by_acceptance(own)))
        evidence.append(Evidence(f"speculative over iterative by acceptance, {title}", _by_acceptance(other)))
        below = [ratio.place.acceptance for ratio in other if ratio.value < 1]
        evidence += (
            [Evidence("speculative at its best is slower than iterative", f"up to {max(below):g}")] if below else []
        )
        figures.append(
            f"{lowest.value:.2f}x iterative at acceptance {lowest.place.acceptance:g}, speculative "
            f"{other_lowest.value:.2f}x ({title})"
        )
    condition = "nowhere slower than plain decoding, and ahead of the baseline where acceptance is lowest"
    return Finding("; ".join(figures) + ", simulated", all_or_some(holds), evidence, condition) if holds else None


def _by_acceptance(found: list[Ratio]) -> str:
    return ", ".join(f"{ratio.place.acceptance:g}: {ratio.value:.2f}x" for ratio in sorted(found, key=_acceptance))


def _acceptance(ratio: Ratio) -> float:
    return ratio.place.acceptance


def slow_links(bearing: Bearing) -> Finding | None:
    by_bandwidth = [one for one in bearing.simulated if one.best.bandwidth_gbps.gt(0).any()]
    holds, evidence, kept = [], [], []
    gains = [ratio for ratio in ratios(by_bandwidth, BASELINE) if ratio.place.bandwidth_gbps]
    for acceptance in sorted({ratio.place.acceptance for ratio in gains}):
        speeds = [one.medians[one.medians.acceptance == acceptance] for one in by_bandwidth]
        table = next(one for one in speeds if not one.empty).pivot_table(
            SPEED, "bandwidth_gbps", "contender", sort=False
        )
        slowest, fastest = table.index.min(), table.index.max()
        shares = (table.loc[slowest] / table.loc[fastest]).dropna()
        if not {"pipeinfer", BASELINE} <= set(shares.index):
            continue
        kept.append(shares["pipeinfer"])
        gain = {one.place.bandwidth_gbps: one.value for one in gains if one.place.acceptance == acceptance}
        gigabit = gain.get(1.0, gain[slowest])
        holds += [bool(shares["pipeinfer"] >= shares[BASELINE] - 0.005), gigabit >= NOISE * gain[fastest]]
        text = ", ".join(f"{name} {share:.0%}" for name, share in shares.items())
        evidence.append(
            Evidence(f"speed at {slowest:g} Gbit/s, of that at {fastest:g}, acceptance {acceptance:g}", text)
        )
        text = ", ".join(f"{at:g}: {value:.2f}x" for at, value in sorted(gain.items()))
        evidence.append(Evidence(f"speedup over speculative by Gbit/s, acceptance {acceptance:g}", text))
    if not holds:
        return None
    condition = "at the latency of Gigabit Ethernet; the advantage has to be larger at 1 Gbit/s than at the fastest"
    low, high = f"{min(kept):.0%}", f"{max(kept):.0%}"
    figure = f"keeps {low if low == high else f'{low} to {high}'} of its speed"
    return Finding(figure, all_or_some(holds), evidence, condition)
