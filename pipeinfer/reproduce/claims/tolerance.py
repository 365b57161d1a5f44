"""C4, low acceptance, and C5, slow links."""

from pipeinfer.reproduce.analysis import REFERENCE, Best, paired_ratio
from pipeinfer.reproduce.claims.finding import NOISE, Bearing, Finding, Ratio, all_or_some, first, places, ratios


def low_acceptance(bearing: Bearing) -> Finding | None:
    mine = ratios(bearing.simulated, REFERENCE)
    baseline = ratios(bearing.simulated, REFERENCE, of="speculative")
    if not mine or not baseline:
        return None
    lowest = min(mine, key=_acceptance)
    other = min(baseline, key=_acceptance)
    holds = [ratio.value >= 1 / NOISE for ratio in mine] + [lowest.value > other.value]
    below = [ratio.place.acceptance for ratio in baseline if ratio.value < 1]
    evidence = [
        f"over iterative decoding, by acceptance: {_by_acceptance(mine)}; speculative: {_by_acceptance(baseline)}"
    ]
    evidence += [f"speculative at its best K is slower than iterative up to acceptance {max(below):g}"] if below else []
    figure = f"{lowest.value:.2f}x iterative at acceptance {lowest.place.acceptance:g}, speculative {other.value:.2f}x"
    return Finding(figure, all_or_some(holds), evidence)


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
        shares = {name: slowest[name].band()[1] / fastest[name].band()[1] for name in slowest if name in fastest}
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
