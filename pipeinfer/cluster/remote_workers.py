"""Ranks that somebody has started already as workers, on any host: the head connects to them."""

import socket
from pathlib import Path

from pipeinfer.cluster.ranks import UnmonitoredRanks
from pipeinfer.cluster.stopped_processes import StoppedProcesses, runs_ranks
from pipeinfer.errors import LaunchError
from pipeinfer.runtime.transports import HEAD, facing, hosting_of, open_member, scheme_of, takes_keys

AGAIN_S = 5.0
"""How long a worker may be busy with another session, or take to come out of it, before a head gives up."""

ANSWER_S = 10.0
"""How long the address of a worker may take connections and say nothing: none computes that waits for a head."""


class Workers(UnmonitoredRanks):
    """Ranks that run already, at the given addresses."""

    def __init__(self, addresses: tuple[str, ...], count: int, key: str | None) -> None:
        if len(addresses) != count:
            raise LaunchError(f"{len(addresses)} workers are given, and the plan has {count} ranks: stages and draft")
        self.addresses = [address.strip() for address in addresses]
        own, scheme = facing(self.addresses[0]), scheme_of(self.addresses[0])
        if not hosting_of(scheme).workers:
            raise LaunchError(f'a transport "{scheme}" has no workers: its ranks are not reached by addresses')
        if key is None and takes_keys(scheme):
            raise LaunchError("workers need their key file: give --key (pipeinfer worker --new-key FILE makes one)")
        self.transport = open_member(own, HEAD, keys=key and Path(key), again_s=AGAIN_S, answer_s=ANSWER_S)
        self._stopped = StoppedProcesses()

    def hung(self) -> tuple[int, str] | None:
        return self._stopped.found()

    def met(self, rank: int, host: str, process: int) -> None:
        if host == socket.gethostname() and runs_ranks(process):
            self._stopped.processes[rank] = process
