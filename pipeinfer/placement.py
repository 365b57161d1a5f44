"""Which layers lie on which rank."""

from collections.abc import Sequence

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
