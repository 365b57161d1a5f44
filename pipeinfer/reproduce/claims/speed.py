"""C1: generation speed."""

from collections.abc import Iterator

from pipeinfer.reproduce.claims.finding import NOISE, Bearing, Finding, Ratio, Verdict, at, least, most, ratios


def speed(bearing: Bearing) -> Finding | None:
    everywhere = ratios(bearing.simulated, "speculative")
    modelled = [ratio for ratio in everywhere if ratio.place.width_cost == 1.0]
    live = ratios(bearing.live, "speculative")
    judged = modelled or live
    if not judged or bearing.published.value is None:
        return None
    highest = most(judged).value
    verdict: Verdict = (
        "reproduced" if highest >= bearing.published.value else "partly" if highest >= NOISE else "not reproduced"
    )
    figures = [f"up to {most(modelled).value:.2f}x simulated"] if modelled else []
    figures += [f"{least(live).value:.2f}x to {most(live).value:.2f}x live on one machine"] if live else []
    evidence = []
    if modelled:
        evidence.append(
            f"simulated, over the baseline at its best K: at most {at(most(modelled))}, at least "
            f"{at(least(modelled))}; acceptance and the efficiency of arithmetic are assumed"
        )
    free = [ratio for ratio in everywhere if ratio.place.width_cost == 0]
    if free:
        evidence.append(f"where verifying more rows costs nothing: {least(free).value:.2f}x to {most(free).value:.2f}x")
    evidence += [f"live on this machine, {ratio.place.text}: {ratio.value:.2f}x" for ratio in live]
    return Finding(", ".join(figures), verdict, [*evidence, *_losses(everywhere, live)])


def _losses(everywhere: list[Ratio], live: list[Ratio]) -> Iterator[str]:
    lost = [ratio for ratio in everywhere if ratio.value < 1]
    if lost:
        yield (
            f"it loses at {len(lost)} of {len(everywhere)} simulated points, most at {at(least(lost))}: there a wide "
            "synchronous run gets for the price of one row what PipeInfer sends in several, or the pipeline is too "
            "short to overlap much"
        )
    elif everywhere:
        yield f"it loses at none of {len(everywhere)} simulated points"
    if any(ratio.value < 1 for ratio in live):
        yield (
            "it loses live because all ranks share this machine's cores: speculation that fills idle stages of a "
            "cluster takes time from the other ranks here"
        )
