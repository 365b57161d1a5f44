"""The interface through which the head starts, checks and ends a session's ranks, wherever they run."""

from typing import NamedTuple, Protocol

from pipeinfer.runtime.transports import PeerLost, Transport


class Loads(NamedTuple):
    """What ranks will load, by names: of a backend, and of its models."""

    backend: str = ""
    models: tuple[str, ...] = ()


UNKNOWN = Loads()


class Ranks(Protocol):
    """Where the ranks are, and the head's own endpoint."""

    transport: Transport
    addresses: list[str]

    def dead(self) -> tuple[int, str] | None:
        """A rank that has ended by itself, and how."""

    def hung(self) -> tuple[int, str] | None:
        """A rank that has been stopped for long, and how, where that is seen from here: its connections stay."""

    def met(self, rank: int, host: str, process: int) -> None:
        """A rank has said where it is: its host's name and the id of its process there."""

    def culprit(self, rank: int) -> tuple[int, str] | None:
        """The rank that failed first, and how, when `rank` was found to be gone: one that fails makes others end
        too. None when that is not known here."""

    def leave(self, farewell: bytes) -> None:
        """As `close`, but for what makes it quick to start others in their places."""

    def close(self, farewell: bytes) -> None:
        """Send every rank the farewell, and end those that were started here. Idempotent."""


class UnmonitoredRanks:
    """Ranks that were not started here: only the transport notices when one ends."""

    transport: Transport
    addresses: list[str]

    def dead(self) -> tuple[int, str] | None:
        return None

    def hung(self) -> tuple[int, str] | None:
        return None

    def met(self, rank: int, host: str, process: int) -> None:
        """Nothing is seen of it from here."""

    def culprit(self, rank: int) -> tuple[int, str] | None:
        return None

    def leave(self, farewell: bytes) -> None:
        self.close(farewell)

    def close(self, farewell: bytes) -> None:
        say_farewell(self.transport, farewell, len(self.addresses))
        self.transport.close()


def say_farewell(transport: Transport, farewell: bytes, count: int) -> None:
    """Send it to every rank that is still there."""
    for rank in range(count):
        try:
            transport.send(rank, farewell)
        except (PeerLost, ValueError):
            continue  # It is gone already, or was never reached.
