"""Messages in a stream of bytes: the length of the first frame (`framing`), that frame, and the payload."""

import struct
from collections.abc import Callable
from typing import TypeAlias

from pipeinfer.runtime.transports import MAX_HEADER, framing

LENGTH = struct.Struct("<I")
"""What stands before a message's first frame: how long that is, in bytes."""

Take: TypeAlias = Callable[[int, int, bytes, bytes | memoryview], None]
"""Is given a message as it stands in the stream: who sent it, by its own word, its number, header and payload."""


def start_of_message(first: bytes) -> bytes:
    """All of a message before its payload."""
    return LENGTH.pack(len(first)) + first


class MessageReader:
    """Cuts a stream into messages. What is longer than one piece of the stream goes into `hole` without a copy between:
    fill that, and then say how much came."""

    def __init__(self, max_payload: int) -> None:
        self.hole: memoryview | None = None
        self._max_payload = max_payload
        self._rest = b""
        self._rank = self._number = 0
        self._header = b""
        self._payload = bytearray()

    def feed(self, data: bytes, take: Take) -> None:
        """Give away the messages that are whole now. Raises BadFrame, after those before it, and what `take` raises."""
        data, at = self._rest + data if self._rest else data, 0
        self._rest = b""
        while len(data) - at >= LENGTH.size:
            (length,) = LENGTH.unpack_from(data, at)
            if not framing.PREFIX_SIZE <= length <= framing.PREFIX_SIZE + MAX_HEADER:
                raise framing.BadFrame(f"a first frame of {length} bytes")
            start = at + LENGTH.size
            end = start + length
            if end > len(data):
                break
            rank, number, size = framing.prefix_at(data, start, self._max_payload)
            header = data[start + framing.PREFIX_SIZE : end]
            at = end + size
            if at > len(data):
                self._rank, self._number, self._header = rank, number, header
                self._open_hole(size, data[end:])
                return
            take(rank, number, header, data[end:at])
        self._rest = data[at:]

    def filled(self, size: int, take: Take) -> None:
        """So many bytes of the hole came: its message, if that is whole now."""
        assert self.hole is not None
        self.hole = self.hole[size:]
        if not self.hole:
            self.hole = None
            take(self._rank, self._number, self._header, memoryview(self._payload).toreadonly())

    def _open_hole(self, size: int, came: bytes) -> None:
        self._payload = bytearray(size)
        self._payload[: len(came)] = came
        self.hole = memoryview(self._payload)[len(came) :]
