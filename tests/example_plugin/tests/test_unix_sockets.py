from itertools import count
from pathlib import Path

import pytest
from pipeinfer_example.unix_sockets import UnixTransport

from pipeinfer.testing.transports import TransportConformance


class TestUnixSockets(TransportConformance):
    @pytest.fixture(autouse=True)
    def paths(self, tmp_path: Path) -> None:
        self._paths = (tmp_path / str(number) for number in count())

    def endpoint(self, rank: int) -> UnixTransport:
        return UnixTransport(f"unix://{next(self._paths)}", rank)

    def endpoint_at(self, address: str, rank: int) -> UnixTransport:
        return UnixTransport(address, rank)
