"""Ranks as threads of the head's process."""

import threading

from pipeinfer.cluster.ranks import UnmonitoredRanks
from pipeinfer.errors import LaunchError
from pipeinfer.runtime.live import run_rank
from pipeinfer.runtime.transports import HEAD, PeerLost, Transport, open_transport


class Threads(UnmonitoredRanks):
    """Ranks as threads of this process."""

    def __init__(self, local: str, count: int) -> None:
        self.transport = open_transport(local, HEAD)
        endpoints = [open_transport(local, rank) for rank in range(count)]
        self.addresses = [endpoint.address for endpoint in endpoints]
        self._threads = [threading.Thread(target=_be_a_thread, args=(e,), name=f"rank {e.rank}") for e in endpoints]
        for thread in self._threads:
            thread.start()

    def close(self, farewell: bytes) -> None:
        for rank, address in enumerate(self.addresses):
            self.transport.connect(rank, address)  # A head that gave up early has not: they wait for its first word.
        super().close(farewell)
        for thread in self._threads:
            thread.join()


def _be_a_thread(transport: Transport) -> None:
    try:
        run_rank(transport)
    except (PeerLost, LaunchError):
        pass  # Which the head knows, or it is gone: so is this session.
    finally:
        transport.close()
