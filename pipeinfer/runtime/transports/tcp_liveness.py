"""Whether the host at the other end of a TCP connection answers, by what the kernels say to each other.

A process that computes does not read and may not answer for long; its kernel does. So silence is: what was sent, or a
probe where nothing was, stays without an acknowledgement. A receiver whose buffer is full acknowledges.
"""

import math
import socket
import struct

_INFO = struct.Struct("=2x2B52xI")
"""Of Linux's tcp_info: unanswered retransmissions, unanswered probes, and milliseconds since the last
acknowledgement."""

_PROBE_S = 1
"""The kernel's least: an idle connection is probed after so many seconds, and again."""


def keep_alive(connection: socket.socket, silence_s: float) -> None:
    """Have the kernel probe an idle connection every second, and end it where it goes on without answers."""
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    for name, value in (
        ("TCP_KEEPIDLE", _PROBE_S),
        ("TCP_KEEPINTVL", _PROBE_S),
        ("TCP_KEEPCNT", max(2, math.ceil(silence_s))),
    ):
        if hasattr(socket, name):
            connection.setsockopt(socket.IPPROTO_TCP, getattr(socket, name), value)


def is_silent(connection: socket.socket, silence_s: float) -> bool:
    """Whether the other host owes an answer and has given none for `silence_s`; of an idle connection it is known after
    two probes. Not known but on Linux, where the kernel's own end of the connection is all there is."""
    option = getattr(socket, "TCP_INFO", None)
    if option is None:
        return False
    try:
        retransmits, probes, since_ms = _INFO.unpack(connection.getsockopt(socket.IPPROTO_TCP, option, _INFO.size))
    except OSError:
        return False  # It is closed: reading from it says so.
    return bool((retransmits > 0 or probes > 1) and since_ms >= 1000 * silence_s)
