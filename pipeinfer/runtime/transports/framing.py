"""One message on a TCP link: a first frame of prefix and header, then the payload, unless it is empty, in one frame or
several."""

import struct

from pipeinfer.runtime.transports import MAX_HEADER

MAGIC = b"PI"
VERSION = 1

_PREFIX = struct.Struct("<2sBxiQQ")
"""Magic, version, the sender's rank, the message's number on its link (from 0), payload length in bytes."""

PREFIX_SIZE = _PREFIX.size


class BadFrame(Exception):  # noqa: N818 - reads as what came
    """Bytes that no endpoint of this version sends."""


def first_frame(rank: int, number: int, header: bytes, payload_size: int) -> bytes:
    """Prefix and header of message `number` from `rank`."""
    return _PREFIX.pack(MAGIC, VERSION, rank, number, payload_size) + header


def parse_prefix(frame: bytes, max_payload: int) -> tuple[int, int, int]:
    """Sender's rank, message number, payload length in bytes. The header is the rest of the frame. Raises BadFrame."""
    if not PREFIX_SIZE <= len(frame) <= PREFIX_SIZE + MAX_HEADER:
        raise BadFrame(f"a first frame of {len(frame)} bytes")
    return prefix_at(frame, 0, max_payload)


def prefix_at(data: bytes, start: int, max_payload: int) -> tuple[int, int, int]:
    """The same of a frame that begins at `start` and is long enough."""
    magic, version, rank, number, size = _PREFIX.unpack_from(data, start)
    if magic != MAGIC:
        raise BadFrame("a frame of another protocol")
    if version != VERSION:
        raise BadFrame(f"protocol version {version}, expected {VERSION}; install the same release on every host")
    if size > max_payload:
        raise BadFrame(f"a payload of {size} bytes, over the limit of {max_payload}")
    return rank, number, size
