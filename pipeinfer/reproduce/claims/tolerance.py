"""C4, low acceptance, and C5, slow links."""

from pipeinfer.reproduce.analysis import REFERENCE, Best, paired_ratio
from pipeinfer.reproduce.axes import drafts_title
from pipeinfer.reproduce.claims.finding import NOISE, Bearing, Finding, Ratio, all_or_some, first, places, ratios


def low_acceptance(bearing: Bearing) -> Finding | None:
    """For each kind of drafts: nowhere slower than plain decoding, and faster than the baseline where acceptance is
    lowest."""
    holds, evidence, figures = [], [], []
    mine = ratios(bearing.simulated, REFERENCE)
    baseline = ratios(bearing.simulated, REFERENCE, of="speculative")
    for drafts in dict.fromkeys(ratio.place.drafts for ratio in mine):
        own, other = ([one for one in found if one.place.drafts == drafts] for found in (mine, baseline))
        if not own or not other:
            continue
        lowest, beside = min(own, key=_acceptance), min(other, key=_acceptance)
        holds += [ratio.value >= 1 / NOISE for ratio in own] + [lowest.value > beside.value]
        title = drafts_title(lowest.place)
        evidence.append(f"over iterative decoding, {title}, by acceptance: {_by_acceptance(own)}")
        evidence.append(f"speculative: {_by_acceptance(other)}")
        below = [ratio.place.acceptance for ratio in other if ratio.value < 1]
        evidence += [f"speculative at its best is slower than iterative up to acceptance {max(below):g}"] * bool(below)
        figures.append(
            f"{lowest.value:.2f}x iterative at acceptance {lowest.place.acceptance:g}, speculative "
            f"{beside.value:.2f}x ({title})"
        )
    return Finding("; ".join(figures) + ", simulated", all_or_some(holds), evidence) if holds else None


def _by_acceptance(found: list[Ratio]) -> str:
    return ", ".join(f"{ratio.place.acceptance:g}: {ratio.value:.2f}x" for ratio in sorted(found, key=_acceptance))


def _acceptance(ratio: Ratio) -> float:
    return ratio.place.acceptance


def slow_links(bearing: Bearing) -> Finding | None:
    by_bandwidth = [one for one in bearing.simulated if any(place.bandwidth_gbps for place in one.places)]
    holds, evidence, kept = [], [], []
    for acceptance in sorted({place.acceptance for one in by_bandwidth for place in one.places}):
        found = [there for there in places(by_bandwidth) if first(there).place.acceptance == acceptance]
        slowest, fastest = (pick(found, key=_bandwidth) for pick in (min, max))
        shares = {name: slowest[name].speed / fastest[name].speed for name in slowest if name in fastest}
        if not {"pipeinfer", "speculative"} <= set(shares):
            continue
        kept.append(shares["pipeinfer"])
        gains = {_bandwidth(there): paired_ratio(there["pipeinfer"], there["speculative"]) or 0.0 for there in found}
        gigabit = gains.get(1.0, gains[min(gains)])
        holds += [shares["pipeinfer"] >= shares["speculative"] - 0.005, gigabit >= NOISE * gains[max(gains)]]
        text = ", ".join(f"{name} {share:.0%}" for name, share in shares.items())
        evidence.append(
            f"acceptance {acceptance:g}: speed at {_bandwidth(slowest):g} Gbit/s, of that at {_bandwidth(fastest):g}: "
            f"{text}; speedup over speculative by Gbit/s: "
            + ", ".join(f"{at:g}: {gain:.2f}x" for at, gain in sorted(gains.items()))
        )
    if not holds:
        return None
    return Finding(f"keeps {min(kept):.0%} to {max(kept):.0%} of its speed", all_or_some(holds), evidence)


def _bandwidth(there: dict[str, Best]) -> float:
    return first(there).place.bandwidth_gbps or 0.0
