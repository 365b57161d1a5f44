"""What the ranks have room for, and with `auto` which layers they get: by what they say of themselves."""

from collections.abc import Mapping
from pathlib import Path

from pipeinfer.cluster.inspection import target_load
from pipeinfer.cluster.models import Models
from pipeinfer.cluster.placement import BadSplit, LayerRange, fastest_split
from pipeinfer.engine.sampling import Sampling
from pipeinfer.errors import LaunchError
from pipeinfer.modelling.profile import check_profile, read_profile
from pipeinfer.modelling.rank_survey import Grid, Survey
from pipeinfer.runtime.control import Inspected
from pipeinfer.units import size

ROWS, CONTEXT = 3, 128
"""What stages are weighed by: a micro-batch of PipeInfer, in the middle of a short text."""

PART_S = 0.2
"""How long each part of the model is timed on a rank."""


def check_memory(models: Models, ranks: Mapping[int, Inspected]) -> None:
    """Raise LaunchError where a rank, or all ranks of a host together, have too little memory for their layers."""
    plan = models.plan
    needs = {rank: (models.target.stage_bytes(layers, models.cells), f"{_span(layers)} of {plan.target}")
             for rank, layers in enumerate(models.split)}  # fmt: skip
    needs |= {rank: (needed, str(plan.draft)) for rank, needed in _draft_bytes(models).items()}
    cure = f"and {models.cells} KV cells: move layers to other ranks (--layers), or give fewer cells (--cells)"
    for rank, (needed, what) in needs.items():
        free = ranks[rank].memory_bytes
        if needed > free:
            raise LaunchError(f"rank {rank} on {ranks[rank].host} has {size(free)} free and needs {size(needed)} for"
                              f" {what} {cure}")  # fmt: skip
    for host, members in _sharing(ranks).items():
        needed = sum(needs[rank][0] for rank in members)
        free = min(ranks[rank].memory_bytes for rank in members)
        if needed > free:
            names = ", ".join(map(str, members))
            raise LaunchError(f"ranks {names} share {host}, which has {size(free)} free and needs {size(needed)} for"
                              f" their layers {cure}")  # fmt: skip


def auto_split(models: Models, survey: Survey) -> list[LayerRange]:
    """The target's layers so that the slowest stage is as fast as can be under each rank's memory.

    Raises BadSplit where they do not fit, BadProfile when the plan's profile is of something else.
    """
    most = _room(models, survey.ranks)
    times = _profiled(models) if models.plan.profile else _measured(models, survey)
    last = len(most) - 1

    def seconds(rank: int, count: int) -> float:
        run, layer, head = times[rank]
        return run + count * layer + head * (rank == last)

    return fastest_split(models.target.layers, seconds, most)


def fitting_split(models: Models, ranks: Mapping[int, Inspected]) -> list[LayerRange]:
    """The target's layers as evenly as each rank's memory allows. Raises BadSplit where they do not fit."""
    return fastest_split(models.target.layers, lambda _, count: float(count), _room(models, ranks))


def _measured(models: Models, survey: Survey) -> list[tuple[float, ...]]:
    """Per rank the seconds of the rest of a run, a layer and the output head, measured now."""
    info = models.target
    context = min(CONTEXT, info.context, models.cells)
    grid = Grid((min(ROWS, context),), (context,), PART_S)
    load = target_load(models, context, Sampling())
    found = survey.layers(range(len(models.split)), load, info, grid)
    return [tuple(float(part[0][0]) for part in found[rank]) for rank in sorted(found)]


def _profiled(models: Models) -> list[tuple[float, ...]]:
    """The same as `calibrate` found it."""
    plan = models.plan
    assert plan.profile is not None
    path = Path(plan.profile)
    profile = read_profile(path)
    check_profile(profile, path, plan.backend, models.target, len(models.split))
    return [tuple(curve.at(ROWS, CONTEXT) for curve in (rank.run, rank.layer, rank.head)) for rank in profile.ranks]


def _room(models: Models, ranks: Mapping[int, Inspected]) -> list[int]:
    """How many layers each of the target's ranks can hold; ranks that share a host's memory get equal parts of what the
    draft leaves there. Raises BadSplit where that is not enough."""
    info, stages = models.target, len(models.split)
    free = {rank: ranks[rank].memory_bytes for rank in range(stages)}
    for members in _sharing(ranks).values():
        target = [rank for rank in members if rank < stages]
        draft = sum(needed for rank, needed in _draft_bytes(models).items() if rank in members)
        free |= {rank: (free[rank] - draft) // len(target) for rank in target}
    most = []
    for rank in range(stages):
        fixed = info.embedding_bytes * (rank == 0) + info.head_bytes * (rank == stages - 1)
        layer = info.layer_bytes + models.cells * info.kv_bytes
        most.append(info.layers if layer == 0 else min(info.layers, (free[rank] - fixed) // layer))
        if most[-1] < 1:
            raise BadSplit(f"rank {rank} on {ranks[rank].host} has {_has(free[rank], ranks[rank])} and needs"
                           f" {size(fixed + layer)} for one layer of {models.plan.target} and {models.cells} KV cells:"
                           " leave it out, or give fewer cells (--cells)")  # fmt: skip
    if sum(most) < info.layers:
        rooms = ", ".join(f"rank {rank} for {most[rank]} ({_has(free[rank], ranks[rank])})" for rank in range(stages))
        raise BadSplit(f"{models.plan.target} has {info.layers} layers, and the ranks have room for {sum(most)}:"
                       f" {rooms}; take more ranks, or fewer cells (--cells)")  # fmt: skip
    return most


def _has(part: int, rank: Inspected) -> str:
    """A rank's part of the memory that is free where it is."""
    whole = f"{size(rank.memory_bytes)} free"
    return whole if part == rank.memory_bytes else f"{size(max(0, part))} to itself of {whole} on its host"


def _sharing(ranks: Mapping[int, Inspected]) -> dict[str, list[int]]:
    """Host to its ranks, where they share its memory."""
    hosts: dict[str, list[int]] = {}
    for rank, found in sorted(ranks.items()):
        if found.shared:
            hosts.setdefault(found.host, []).append(rank)
    return hosts


def _draft_bytes(models: Models) -> dict[int, int]:
    """What each of the draft's ranks holds."""
    draft = models.draft
    if draft is None:
        return {}
    split = enumerate(models.draft_split, start=models.drafter)
    return {rank: draft.stage_bytes(layers, models.cells) for rank, layers in split}


def _span(layers: LayerRange) -> str:
    start, stop = layers
    return f"layer {start}" if stop - start == 1 else f"layers {start}-{stop - 1}"
