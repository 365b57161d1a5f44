"""A link that is slow in one direction."""

import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress


@contextmanager
def slow_link(scheme: str, address: str, bytes_per_second: float) -> Iterator[str]:
    """Gives an address that leads to `address`; what goes there trickles, what comes back does not."""
    host, port = address.removeprefix(f"{scheme}://").split(":")
    with socket.create_server(("127.0.0.1", 0)) as server:
        server.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 65536)

        def carry(source: socket.socket, target: socket.socket, pause_s: float) -> None:
            with suppress(OSError):
                while piece := source.recv(65536):
                    target.sendall(piece)
                    time.sleep(len(piece) * pause_s)

        def serve() -> None:
            with suppress(OSError), server.accept()[0] as near, socket.create_connection((host, int(port))) as far:
                back = threading.Thread(target=carry, args=(far, near, 0.0))
                back.start()
                carry(near, far, 1 / bytes_per_second)
                far.shutdown(socket.SHUT_RDWR)
                back.join()

        thread = threading.Thread(target=serve)
        thread.start()
        yield f"{scheme}://127.0.0.1:{server.getsockname()[1]}"
    thread.join(10)
    assert not thread.is_alive()
