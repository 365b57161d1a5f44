"""The event log: what a head was told and when, as JSON lines, from which it does the same again.

The first line is the header. Every other line is one event, its time and a digest of the effects that it had, so that a
replay notices when the code has come to decide differently. A process that died may have left half a line at the end.
"""

import zlib
from collections.abc import Callable, Iterable, Sequence
from typing import TypeAlias

import msgspec

from pipeinfer.core.effects import HeadEffect, Start, Stop
from pipeinfer.core.head import Head, Pipeline, Strategy
from pipeinfer.core.messages import Logits, Proposal

HeadEvent: TypeAlias = Start | Stop | Logits | Proposal
Options: TypeAlias = dict[str, bool | int | float]


class Diverged(RuntimeError):  # noqa: N818 - reads as what happened
    """A replayed event had other effects than the log says."""


class Header(msgspec.Struct, frozen=True):
    """All that a head is made of."""

    pipeline: Pipeline
    strategy: str
    options: Options = {}
    first_run: int = 0
    first_order: int = 0


class Entry(msgspec.Struct, frozen=True, array_like=True):
    """One event: when it was handled, and a digest of its effects."""

    now: float
    event: HeadEvent
    digest: int


class EventLog:
    """Writes the log of one head through `write`, which takes the bytes of one whole line at a time."""

    def __init__(self, header: Header, write: Callable[[bytes], object]) -> None:
        self._write = write
        self._encoder = msgspec.json.Encoder()
        write(self._encoder.encode(header) + b"\n")

    def record(self, now: float, event: HeadEvent, effects: Sequence[HeadEffect]) -> None:
        """Append what `handle(now, event)` was told and gave; no effects where it raised."""
        self._write(self._encoder.encode(Entry(now, event, digest(effects))) + b"\n")


def digest(effects: Sequence[HeadEffect]) -> int:
    """A checksum of effects."""
    return zlib.crc32(msgspec.json.encode(effects))


def read(lines: Iterable[bytes]) -> tuple[Header, list[Entry]]:
    """A log's header and entries. Half a line at the end is left out; anywhere else it raises msgspec.DecodeError."""
    header, *rest = lines
    decoder = msgspec.json.Decoder(Entry)
    entries: list[Entry] = []
    for number, line in enumerate(rest, 1):
        try:
            entries.append(decoder.decode(line))
        except msgspec.DecodeError:
            if number < len(rest):
                raise
    return msgspec.json.decode(header, type=Header), entries


def replay(lines: Iterable[bytes], make_strategy: Callable[[str, Options], Strategy]) -> list[list[HeadEffect]]:
    """The effects of each event in the log, from a fresh head and `make_strategy(name, options)`. Raises Diverged."""
    header, entries = read(lines)
    strategy = make_strategy(header.strategy, header.options)
    head = Head(header.pipeline, strategy, first_run=header.first_run, first_order=header.first_order)
    replayed: list[list[HeadEffect]] = []
    for number, entry in enumerate(entries, 2):
        effects = head.handle(entry.now, entry.event)
        if digest(effects) != entry.digest:
            raise Diverged(f"line {number} of the log: its {type(entry.event).__name__} had other effects: {effects}")
        replayed.append(effects)
    return replayed
