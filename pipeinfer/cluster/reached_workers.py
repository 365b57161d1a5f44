"""Ranks that are workers: they run already, each where somebody started it."""

import socket

from pipeinfer.cluster.ranks import Unwatched
from pipeinfer.errors import LaunchError
from pipeinfer.runtime.transports import HEAD, TransportError, open_transport

AGAIN_S = 5.0
"""How long a worker may be busy with another session, or take to come out of it, before a head gives up."""


class Workers(Unwatched):
    """Ranks that run already, at the given addresses."""

    def __init__(self, addresses: tuple[str, ...], count: int, key: str | None) -> None:
        if len(addresses) != count:
            raise LaunchError(f"{len(addresses)} workers are given, and the plan has {count} ranks: stages and draft")
        if key is None:
            raise LaunchError("workers need their key file: give --key (pipeinfer worker --new-key FILE makes one)")
        self.addresses = [address.strip() for address in addresses]
        self.transport = open_transport(_facing(self.addresses[0]), HEAD, keys=key, again_s=AGAIN_S)


def _facing(address: str) -> str:
    """An address for the head that the worker at `address` can reach: of the interface that leads there."""
    from pipeinfer.runtime.transports.tcp import resolved

    host, port = resolved(address)
    try:
        with socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET, socket.SOCK_DGRAM) as probe:
            probe.connect((host, port))
            own = probe.getsockname()[0]
            return f"tcp://[{own}]:0" if ":" in own else f"tcp://{own}:0"
    except OSError as problem:
        raise TransportError(f"no way leads to {address}: {problem.strerror}") from problem
