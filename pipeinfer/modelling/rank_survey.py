"""Measures ranks that have no model yet, from the head: their hosts, layers, links and how they disturb one another.

Ranks of different hosts are measured at the same time, ranks of one host one after another.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from itertools import zip_longest
from typing import Any, NamedTuple

import msgspec
import numpy as np
from numpy.typing import NDArray

from pipeinfer.cluster.contact import Contact
from pipeinfer.cluster.placement import LayerRange
from pipeinfer.engine.backend import ModelInfo
from pipeinfer.errors import LaunchError
from pipeinfer.runtime.control import (
    ForwardTimes,
    Inspect,
    Inspected,
    LinkMeasured,
    Load,
    Loaded,
    Measure,
    MeasureHandling,
    MeasureLink,
    Ping,
)
from pipeinfer.runtime.probe import answer_ping, time_link
from pipeinfer.runtime.transports import HEAD
from pipeinfer.units import size

MEASURED_BYTES = 64 << 20
"""Layers are timed together, up to this much of weights."""

MOST_LAYERS = 8

FINEST_S = 1e-9
"""No part of a model is said to take less."""

Seconds = NDArray[np.float64]
"""By context and rows."""


class Grid(NamedTuple):
    """What to time (`pipeinfer.core.control.Measure`), per part of a model."""

    rows: tuple[int, ...]
    contexts: tuple[int, ...]
    seconds: float
    burst: int = 1


class LayerTimes(NamedTuple):
    """Of one rank: a forward takes run + n * layer (+ head, where the output head is)."""

    run: Seconds
    layer: Seconds
    head: Seconds


class Survey:
    """Over `contact`, whose ranks have not been set up. `say` is told what is being measured."""

    def __init__(self, contact: Contact, say: Callable[[str], None] | None = None) -> None:
        self._contact = contact
        self.say = say or _say_nothing
        self.ranks: dict[int, Inspected] = {}
        """Who they are, once they were inspected."""

    def inspect(self, inspects: Mapping[int, Inspect]) -> None:
        """Meet the ranks. From here on the links are shaped as the messages said."""
        contact = self._contact
        for rank in inspects:
            contact.transport.connect(rank, contact.addresses[rank])
        self.ranks = self._ask(inspects, Inspected, before_waiting=lambda: contact.shape(
            inspects[0].bandwidth_bps, inspects[0].latency_s))  # fmt: skip
        contact.hosts |= {rank: f"{found.host} (pid {found.pid})" for rank, found in self.ranks.items()}

    def waves(self, ranks: Iterable[int]) -> list[list[int]]:
        """The ranks in groups, none with two of one host."""
        return [[rank for rank in wave if rank is not None] for wave in zip_longest(*self.by_host(ranks).values())]

    def by_host(self, ranks: Iterable[int]) -> dict[str, list[int]]:
        """Host to ranks."""
        hosts: dict[str, list[int]] = {}
        for rank in ranks:
            hosts.setdefault(self.ranks[rank].host, []).append(rank)
        return hosts

    def layers(self, ranks: Sequence[int], load: Load, info: ModelInfo, grid: Grid) -> dict[int, LayerTimes]:
        """Per rank the times of a model's layers; `load` says all of the model but which layers. A rank without room
        for some part is not asked for that one. Raises LaunchError where a rank has room for none."""
        parts = parts_of(info.layers, info.layer_bytes)
        times: dict[int, dict[LayerRange, Seconds]] = {rank: {} for rank in ranks}
        self._check_room(ranks, load, info, parts[0])
        for wave in self.waves(ranks):
            for part in parts:
                able = [rank for rank in wave if self._fits(rank, info.stage_bytes(part, load.cells))]
                if able:
                    self.say(f"layers {part[0]}-{part[1] - 1} on {_ranks(able)}")
                    for rank, found in self.parts(able, part_of(load, part, info.layers), grid).items():
                        times[rank][part] = found
        return {rank: separate(found, info.layers) for rank, found in times.items()}

    def _fits(self, rank: int, needed: int) -> bool:
        return needed <= self.ranks[rank].memory_bytes

    def _check_room(self, ranks: Sequence[int], load: Load, info: ModelInfo, part: LayerRange) -> None:
        needed = info.stage_bytes(part, load.cells)
        for rank in ranks:
            here = self.ranks[rank]
            if not self._fits(rank, needed):
                raise LaunchError(f"rank {rank} on {here.host} has {size(here.memory_bytes)} free and needs"
                                  f" {size(needed)} to measure {part[1] - part[0]} layers of {load.model}")  # fmt: skip

    def parts(self, ranks: Sequence[int], load: Load, grid: Grid) -> dict[int, Seconds]:
        """Per rank the times of a part of a model, all ranks at once."""
        self._ask(dict.fromkeys(ranks, load), Loaded)
        measured = self._ask(dict.fromkeys(ranks, Measure(*grid)), ForwardTimes)
        return {rank: np.array(answer.seconds) for rank, answer in measured.items()}

    def contention(self, ranks: Sequence[int], load: Load, context: int, seconds: float) -> tuple[float, ...]:
        """By how much a computation slows down while 1, 2, ... of these ranks compute."""
        measure = Measure((1,), (context,), seconds, burst=0)
        self._ask(dict.fromkeys(ranks, load), Loaded)

        def mean(some: Sequence[int]) -> dict[int, float]:
            self.say(f"{_ranks(some)} at once")
            answers = self._ask(dict.fromkeys(some, measure), ForwardTimes)
            return {rank: answer.seconds[0][0] for rank, answer in answers.items()}

        alone = {rank: mean([rank])[rank] for rank in ranks}
        found = [1.0]
        for count in range(2, len(ranks) + 1):
            together = mean(ranks[:count])
            found.append(max(1.0, float(np.mean([together[rank] / alone[rank] for rank in together]))))
        return tuple(found)

    def handling_s(self, rank: int) -> float:
        """What a run costs a rank beside computing."""
        return float(self._ask({rank: MeasureHandling()}, ForwardTimes)[rank].seconds[0][0])

    def link(self, source: int, target: int) -> LinkMeasured:
        """The link from one rank, or the head, to another."""
        self.say(f"the link from {_rank(source)} to {_rank(target)}")
        contact = self._contact
        if source == HEAD:
            return time_link(contact.transport, target, contact.transport.address, contact.receive)
        address = contact.transport.address if target == HEAD else contact.addresses[target]
        question = MeasureLink(target, address, contact.addresses[source])
        answer: LinkMeasured = self._ask({source: question}, LinkMeasured)[source]
        return answer

    def _ask(
        self,
        questions: Mapping[int, Any],
        kind: type[Any],
        before_waiting: Callable[[], None] = lambda: None,
    ) -> dict[int, Any]:
        """Ask all at once, and give their answers; a rank that pings the head meanwhile has its Pong."""
        contact = self._contact
        for rank, question in questions.items():
            contact.send(rank, question)
        before_waiting()
        answers: dict[int, Any] = {}
        while len(answers) < len(questions):
            envelope, message = contact.wait(lambda: f"measurements of {_ranks(sorted(set(questions) - set(answers)))}")
            if isinstance(message, kind):
                answers[envelope.sender] = message
            elif isinstance(message, Ping):
                answer_ping(contact.transport, message)
        return answers


def _say_nothing(what: str) -> None:
    """Nobody wants to know."""


def parts_of(layers: int, layer_bytes: int) -> list[LayerRange]:
    """What to time to know a layer, the rest and the output head apart: some layers and twice as many, from the middle
    of the model where there are enough, and the last ones. Some, not one, which a cache may hold where a stage's share
    does not fit."""
    if layers == 1:
        return [(0, 1)]
    some = max(1, min(MOST_LAYERS, MEASURED_BYTES // max(layer_bytes, 1), layers - 2) // 2)
    starts = [1 if count <= layers - 2 else 0 for count in (some, 2 * some)]
    return [(starts[0], starts[0] + some), (starts[1], starts[1] + 2 * some), (layers - some, layers)]


def part_of(load: Load, part: LayerRange, layers: int) -> Load:
    """The same model, these layers."""
    return msgspec.structs.replace(load, layers=part, outputs=part[1] == layers)


def separate(times: Mapping[LayerRange, Seconds], layers: int) -> LayerTimes:
    """A layer, the rest of a run and the output head from the times of `parts_of` a model, none below zero: where twice
    the layers take more than twice the time, what is left over is spread evenly. Nothing is said to be the head's, or
    the rest's, where no part tells them apart."""
    from scipy.optimize import nnls  # which takes long to import

    parts = list(times)
    system = np.array([[1.0, stop - start, float(stop == layers)] for start, stop in parts])
    system[:, 0] *= len({stop - start for start, stop in parts}) > 1
    system[:, 2] *= not system[:, 2].all()
    table = np.array(list(times.values()))
    columns = np.maximum(table.reshape(len(parts), -1).T, FINEST_S)
    solved = [nnls(system / column[:, None], np.ones(len(parts)))[0] for column in columns]
    return LayerTimes(*np.reshape(np.transpose(solved), (3, *table.shape[1:])))


def _rank(rank: int) -> str:
    return "the head" if rank == HEAD else f"rank {rank}"


def _ranks(ranks: Sequence[int]) -> str:
    return f"rank {ranks[0]}" if len(ranks) == 1 else f"ranks {', '.join(map(str, ranks))}"
