"""Messages in a stream of bytes: the length of the first frame (`framing`), that frame, and the payload."""

import struct
from collections.abc import Iterator
from typing import NamedTuple

from pipeinfer.runtime.transports import MAX_HEADER, framing

_LENGTH = struct.Struct("<I")


class Incoming(NamedTuple):
    """A message as it stands in the stream: who sent it, by its own word, and its number."""

    rank: int
    number: int
    header: bytes
    payload: bytes | memoryview


def start_of_message(first: bytes) -> bytes:
    """All of a message before its payload."""
    return _LENGTH.pack(len(first)) + first


class MessageReader:
    """Cuts a stream into messages. What is longer than one piece of the stream goes into `hole` without a copy between:
    fill that, and then say how much came."""

    def __init__(self, max_payload: int) -> None:
        self.hole: memoryview | None = None
        self._max_payload = max_payload
        self._rest = b""
        self._first = b""
        self._payload = bytearray()

    def feed(self, data: bytes) -> Iterator[Incoming]:
        """The messages that are whole now. Raises BadFrame, after those before it."""
        data, at = self._rest + data if self._rest else data, 0
        self._rest = b""
        while len(data) - at >= _LENGTH.size:
            (length,) = _LENGTH.unpack_from(data, at)
            if not framing.PREFIX_SIZE <= length <= framing.PREFIX_SIZE + MAX_HEADER:
                raise framing.BadFrame(f"a first frame of {length} bytes")
            end = at + _LENGTH.size + length
            if end > len(data):
                break
            first = data[at + _LENGTH.size : end]
            rank, number, size = framing.parse_prefix(first, self._max_payload)
            at = end + size
            if at > len(data):
                self._open_hole(first, size, data[end:])
                return
            yield Incoming(rank, number, first[framing.PREFIX_SIZE :], data[end:at])
        self._rest = data[at:]

    def filled(self, size: int) -> Iterator[Incoming]:
        """So many bytes of the hole came: its message, if that is whole now."""
        assert self.hole is not None
        self.hole = self.hole[size:]
        if not self.hole:
            self.hole = None
            rank, number, _ = framing.parse_prefix(self._first, self._max_payload)
            yield Incoming(rank, number, self._first[framing.PREFIX_SIZE :], memoryview(self._payload).toreadonly())

    def _open_hole(self, first: bytes, size: int, came: bytes) -> None:
        self._first, self._payload = first, bytearray(size)
        self._payload[: len(came)] = came
        self.hole = memoryview(self._payload)[len(came) :]
