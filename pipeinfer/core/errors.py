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


class NothingToChoose(PeerError):  # noqa: N818 - reads as what happened
    """The text has come to a row whose logits are not finite; `position` is that of the token that was due."""

    def __init__(self, position: int) -> None:
        super().__init__(f"no token could be chosen for position {position}")
        self.position = position
