"""The event log of a machine: what it was told and when, as JSON lines, from which it does the same again.

The first line is the header, which says what machine it was. Every other line is one event, its time and a digest of
the effects that it had, so that a replay notices when the code has come to decide differently. Where a fresh machine
took over, after a rank was lost say, its header stands between the events. A process that died may have left half a
line at the end. Hidden states are left out: no machine looks at them.
"""

import zlib
from collections.abc import Callable, Iterable, Sequence
from typing import Any, TypeAlias

import msgspec

from pipeinfer.core.drafter import Drafter
from pipeinfer.core.effects import Compute, Computed, Drafted, Forget, Forward, Start, Stop, Woken
from pipeinfer.core.generation import PipelineShape, Strategy
from pipeinfer.core.machine import Machine
from pipeinfer.core.messages import CancelRun, Decode, DraftFrom, Logits, Proposal
from pipeinfer.core.scheduler import Scheduler
from pipeinfer.core.stage import Arrival, Stage
from pipeinfer.core.text_drafter import TextDrafter

Event: TypeAlias = (
    Start | Stop | Forget | Logits | Proposal | Decode | CancelRun | Computed | DraftFrom | Drafted | Woken
)
Options: TypeAlias = dict[str, bool | int | float | str]


class ReplayDiffers(RuntimeError):  # noqa: N818 - reads as what happened
    """A replayed event had other effects than the log says."""


class SchedulerHeader(msgspec.Struct, frozen=True, tag="scheduler"):
    """All that a scheduler is made of; its strategies are named by the Start events. `after`: what ended the one before
    it in the log, and `now`: when it began."""

    pipeline: PipelineShape
    first_run: int = 0
    first_order: int = 0
    after: str = ""
    now: float = 0.0


class StageHeader(msgspec.Struct, frozen=True, tag="stage"):
    """All that a stage is made of."""

    index: int
    count: int


class DrafterHeader(msgspec.Struct, frozen=True, tag="drafter"):
    """All that a drafter is made of."""

    cells: int
    sequences: int
    context: int
    drafting: str
    options: Options = {}
    keeps_texts: bool = False


Header: TypeAlias = SchedulerHeader | StageHeader | DrafterHeader


class LogEntry(msgspec.Struct, frozen=True, array_like=True):
    """One event: when it was handled, and a digest of its effects."""

    now: float
    event: Event
    digest: int


class EventLog:
    """Writes the log of one machine through `write`, which takes the bytes of one whole line at a time."""

    def __init__(self, header: Header, write: Callable[[bytes], object]) -> None:
        self._write = write
        self._encoder = msgspec.json.Encoder()
        write(self._encoder.encode(header) + b"\n")

    def record(self, now: float, event: Any, effects: Sequence[Any]) -> None:
        """Append what `handle(now, event)` was told and gave; no effects where it raised."""
        self._write(self._encoder.encode(LogEntry(now, _without_payload(event), digest(effects))) + b"\n")


def digest(effects: Sequence[Any]) -> int:
    """A checksum of effects, whatever hidden states they carry."""
    return zlib.crc32(msgspec.json.encode([_without_payload(effect) for effect in effects]))


def read(lines: Iterable[bytes]) -> list[Header | LogEntry]:
    """A log's headers and entries. Half a line at the end is left out; anywhere else it raises msgspec.DecodeError."""
    header, *rest = lines
    headers, entries = msgspec.json.Decoder(Header), msgspec.json.Decoder(LogEntry)
    found: list[Header | LogEntry] = [headers.decode(header)]
    for number, line in enumerate(rest, 1):
        try:
            found.append((headers if line.startswith(b"{") else entries).decode(line))
        except msgspec.DecodeError:
            if number < len(rest):
                raise
    return found


def replay(
    lines: Iterable[bytes],
    open_strategy: Callable[[str, Options], Strategy],
    open_drafting: Callable[[str, Options], Any],
) -> list[list[Any]]:
    """The effects of each event in the log, from a fresh machine with the plug-ins that the two functions make of name
    and options. Raises ReplayDiffers."""
    header, *rest = read(lines)
    assert not isinstance(header, LogEntry)
    machine = _machine(header, open_strategy, open_drafting)
    replayed: list[list[Any]] = []
    for number, entry in enumerate(rest, 2):
        if not isinstance(entry, LogEntry):
            machine = _machine(entry, open_strategy, open_drafting)
            continue
        event = Arrival(entry.event) if isinstance(entry.event, Decode) else entry.event
        effects = machine.handle(entry.now, event)
        if digest(effects) != entry.digest:
            kind = type(entry.event).__name__
            raise ReplayDiffers(f"line {number} of the log: its {kind} had other effects: {effects}")
        replayed.append(effects)
    return replayed


def _machine(
    header: Header,
    open_strategy: Callable[[str, Options], Strategy],
    open_drafting: Callable[[str, Options], Any],
) -> Machine:
    if isinstance(header, SchedulerHeader):
        return Scheduler(header.pipeline, lambda start: open_strategy(start.strategy, start.options),
                         first_run=header.first_run, first_order=header.first_order)  # fmt: skip
    if isinstance(header, StageHeader):
        return Stage(header.index, header.count)

    def open_policy(_: int) -> Any:
        return open_drafting(header.drafting, header.options)

    if not open_policy(0).model:
        return TextDrafter(open_policy)
    return Drafter(header.cells, header.sequences, header.context, open_policy, keeps_texts=header.keeps_texts)


def _without_payload(message: Any) -> Any:
    if isinstance(message, Arrival):
        return message.decode
    if isinstance(message, Computed | Compute | Forward):
        return msgspec.structs.replace(message, payload=None)
    return message
