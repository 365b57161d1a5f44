"""Tells peers every second that this process runs, from a thread: its own may compute for long without a word, and a
kernel answers for a process that is stopped too. In that no thread runs."""

import threading
from collections.abc import Callable, Iterable

from pipeinfer.runtime.transports.tls_connection import TlsConnection

BEAT_S = 1.0


class Pulse:
    """Of one endpoint, which says on what `connections`."""

    def __init__(self, connections: Callable[[], Iterable[TlsConnection]]) -> None:
        self._connections = connections
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._run, name="pulse", daemon=True)
        self._thread.start()

    def close(self) -> None:
        """Say no more."""
        self._over.set()
        self._thread.join()

    def _run(self) -> None:
        while not self._over.wait(BEAT_S):
            for connection in self._connections():
                connection.beat()
