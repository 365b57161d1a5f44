"""What the state machines refuse, and whose fault it is."""

from typing import Literal, TypeAlias

Side: TypeAlias = Literal["we", "peer"]


class ProtocolError(RuntimeError):
    """A message that is not allowed now. `side`: "we" asked for what may not be, or the "peer" sent it.

    The machine that raised it is of no use any more and refuses whatever comes after.
    """

    side: Side = "we"


class OurError(ProtocolError):
    """We, or a strategy of ours, did what the protocol does not allow."""


class PeerError(ProtocolError):
    """The other side sent what the protocol does not allow now."""

    side: Side = "peer"
