"""Which layers lie on which rank."""

import operator
from collections.abc import Callable, Sequence

LayerRange = tuple[int, int]
"""Layers [i, j) of a model."""


class BadSplit(ValueError):  # noqa: N818 - reads as what happened
    """The layers cannot be split like that; one line."""


def even_split(layers: int, stages: int) -> list[LayerRange]:
    """As even as can be; the first stages take what is left over, since the last one has the output head as well."""
    if not 1 <= stages <= layers:
        raise BadSplit(f"{layers} layers cannot be split over {stages} stages: expected 1 to {layers} stages")
    small, larger = divmod(layers, stages)
    return _ranges([small + (stage < larger) for stage in range(stages)])


def fastest_split(layers: int, seconds: Callable[[int, int], float], most: Sequence[int]) -> list[LayerRange]:
    """The split whose slowest stage is as fast as can be, and of those the most even one (least squares).

    `seconds(rank, count)` is what a stage of `count` layers takes on a rank, the output head included where it is the
    last; rank r holds 1 to `most[r]` layers. Raises BadSplit when that is not enough.
    """
    if sum(most) < layers or min(most) < 1 or layers < len(most):
        raise BadSplit(f"{layers} layers cannot be split over ranks with room for {', '.join(map(str, most))} layers")
    slowest, _ = _cheapest(layers, seconds, most, max)

    def square(rank: int, count: int) -> float:
        time = seconds(rank, count)
        return time * time if time <= slowest else float("inf")

    return _ranges(_cheapest(layers, square, most, operator.add)[1])


def _cheapest(
    layers: int, cost: Callable[[int, int], float], most: Sequence[int], join: Callable[[float, float], float]
) -> tuple[float, list[int]]:
    """The least joined cost of stages with `layers` layers in all, and their counts; of equals the one with most layers
    on the first ranks."""
    best: dict[int, tuple[float, list[int]]] = {0: (0.0, [])}
    for rank, room in enumerate(most):
        grown: dict[int, tuple[float, list[int]]] = {}
        for held, (so_far, counts) in best.items():
            for count in range(1, min(room, layers - held) + 1):
                found = join(so_far, cost(rank, count))
                if held + count not in grown or found <= grown[held + count][0]:
                    grown[held + count] = (found, [*counts, count])
        best = grown
    return best[layers]


def parse_split(text: str, layers: int) -> list[LayerRange]:
    """`0.25,0.25,0.5` are fractions of the layers, `2,2,4` are counts. Raises BadSplit."""
    try:
        parts = [float(part) for part in text.split(",")]
    except ValueError:
        raise BadSplit(f'layer split "{text}": expected numbers with commas, like 0.5,0.5 or 4,4') from None
    if any(part <= 0 for part in parts):
        raise BadSplit(f'layer split "{text}": every stage needs a share above 0')
    if len(parts) > layers:
        raise BadSplit(f'layer split "{text}": {len(parts)} stages for {layers} layers')
    if abs(sum(parts) - 1) < 1e-6:
        return _ranges(_round(parts, layers))
    if sum(parts) == layers and all(part == int(part) for part in parts):
        return _ranges([int(part) for part in parts])
    raise BadSplit(f'layer split "{text}" adds up to {sum(parts):g}: expected fractions of 1 or counts of {layers}')


def _round(parts: Sequence[float], layers: int) -> list[int]:
    """Whole layers by largest remainder, at least one per stage."""
    counts = [max(1, int(part * layers + 1e-9)) for part in parts]
    while sum(counts) < layers:
        counts[max(range(len(parts)), key=lambda i: parts[i] * layers - counts[i])] += 1
    while sum(counts) > layers:
        movable = [i for i in range(len(parts)) if counts[i] > 1]
        counts[min(movable, key=lambda i: parts[i] * layers - counts[i])] -= 1
    return counts


def _ranges(counts: Sequence[int]) -> list[LayerRange]:
    ends = [sum(counts[: i + 1]) for i in range(len(counts))]
    return [(end - count, end) for end, count in zip(ends, counts, strict=True)]
