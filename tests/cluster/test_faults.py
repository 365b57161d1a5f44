"""Ranks that die, hang or are strangers; a head that dies; a user who has enough. Nothing hangs, nothing is left."""

import os
import signal
import socket
from pathlib import Path
from urllib.parse import urlsplit

import pytest
import zmq
from processes import emulated_text, generating, start

from pipeinfer.cluster.launch import Cluster
from pipeinfer.cluster.plan import Plan
from pipeinfer.errors import RankLost
from pipeinfer.plugins import open_strategy
from pipeinfer.runtime import control
from pipeinfer.runtime.transports.keys import Keys

WITHIN_S = 40.0
"""Seconds of a machine that is busy with other tests. A generation takes longer, and whoever hangs hangs for ever."""

EMULATED = {"layers": 4, "layer_s": 0.005}


@pytest.mark.parametrize("rank", [0, 1, 2])
def test_a_rank_that_is_killed_ends_the_generation(rank: int) -> None:
    with generating() as generation:
        text = generation.read_some()
        os.kill(generation.ranks[rank], signal.SIGKILL)
        code, rest, errors = generation.end(within=WITHIN_S)
        assert code == 1
        assert errors.startswith(f"error: lost rank {rank}: ")
        assert f"pid {generation.ranks[rank]}" in errors
        assert "killed by SIGKILL" in errors
        assert len(errors.splitlines()) == 1
        assert_said(text + rest)
        generation.assert_nothing_left(within=WITHIN_S)


@pytest.mark.parametrize(
    ("transport", "rank"), [("tcp", 0), ("tcp", 1), ("tcp", 2), ("tls", 0), ("tls", 1), ("tls", 2)]
)
def test_a_rank_that_hangs_ends_the_generation(transport: str, rank: int) -> None:
    with generating("--transport", transport) as generation:
        text = generation.read_some()
        os.kill(generation.ranks[rank], signal.SIGSTOP)
        code, rest, errors = generation.end(within=WITHIN_S)
        assert code == 1
        assert errors.startswith(f"error: lost rank {rank}: ")
        assert len(errors.splitlines()) == 1
        assert_said(text + rest)
        generation.assert_nothing_left(within=WITHIN_S)


@pytest.mark.parametrize(("how", "said"), [(signal.SIGKILL, "killed by SIGKILL"), (signal.SIGSTOP, "")])
def test_a_rank_behind_the_one_that_drafts_is_named_too(how: signal.Signals, said: str) -> None:
    with generating("--layers", "2,2/1,1", "--backend-option", "draft_layers=2", nodes=4) as generation:
        text = generation.read_some()
        os.kill(generation.ranks[3], how)
        code, rest, errors = generation.end(within=WITHIN_S)
        assert code == 1
        assert errors.startswith("error: lost rank 3: draft layers 1-1 on ")
        assert said in errors
        assert len(errors.splitlines()) == 1
        assert_said(text + rest)
        generation.assert_nothing_left(within=WITHIN_S)


def assert_said(text: str) -> None:
    """The text is some beginning of what the target says, and was not cut inside a token."""
    assert (emulated_text(3000) + " ").startswith(text.rstrip("\n") + " ")


@pytest.mark.parametrize("stopped", [None, 1], ids=["all run", "one is stopped"])
def test_a_head_that_is_killed_leaves_no_rank_behind(stopped: int | None) -> None:
    with generating() as generation:
        generation.read_some()
        if stopped is not None:
            os.kill(generation.ranks[stopped], signal.SIGSTOP)
        generation.process.kill()
        generation.assert_nothing_left(within=WITHIN_S)


def test_a_head_that_is_killed_while_ranks_start_leaves_none_behind() -> None:
    with generating() as generation:
        generation.wait_for_ranks()
        generation.process.kill()
        generation.assert_nothing_left(within=WITHIN_S)


@pytest.mark.parametrize("when", ["generating", "starting"])
def test_ctrl_c_leaves_nothing_behind(when: str) -> None:
    with generating() as generation:
        text = generation.read_some() if when == "generating" else generation.wait_for_ranks() or ""
        os.killpg(generation.process.pid, signal.SIGINT)  # as a terminal does: to head and ranks alike
        code, rest, errors = generation.end(within=WITHIN_S)
        assert code == 130
        assert errors == "error: interrupted\n"
        if when == "generating":
            assert_said(text + rest)
        generation.assert_nothing_left(within=WITHIN_S)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP])
@pytest.mark.parametrize("when", ["generating", "starting"])
def test_a_signal_to_end_leaves_no_folder_and_no_rank(
    number: signal.Signals, when: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What `timeout`, Slurm, Docker and a closed terminal send."""
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    with generating() as generation:
        generation.read_some() if when == "generating" else generation.wait_for_ranks()
        assert list(tmp_path.glob("pipeinfer-*/key.json"))
        generation.process.send_signal(number)
        code, _, errors = generation.end(within=WITHIN_S)
        assert code == 128 + number
        assert errors == ""
        assert list(tmp_path.iterdir()) == []
        generation.assert_nothing_left(within=WITHIN_S)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP])
def test_a_worker_ends_at_once(number: signal.Signals, tmp_path: Path) -> None:
    key = tmp_path / "key.json"
    worker = start("worker", "--new-key", "--key", str(key), "--rank", "0", "--listen", "tcp://127.0.0.1:0")
    assert worker.stdout is not None
    assert worker.stdout.readline().startswith("listening ")
    worker.send_signal(number)
    worker.communicate(timeout=WITHIN_S)
    assert worker.returncode == -number


def test_a_rank_that_dies_between_generations_is_named() -> None:
    with Cluster(Plan(backend="emulated", backend_options=EMULATED, stages=2)) as cluster:
        cluster.generate([1, 2], open_strategy("iterative", {}), max_tokens=2)
        os.kill(cluster.ready[1].pid, signal.SIGKILL)
        with pytest.raises(RankLost, match=r"lost rank 1: target layers 2-3 on .*killed by SIGKILL") as lost:
            cluster.generate([1, 2], open_strategy("iterative", {}), max_tokens=3000)
        assert lost.value.rank == 1


class Strangers:
    """Connect to every port that the cluster has, without its key, and say harmful things."""

    def __init__(self, cluster: Cluster) -> None:
        self.addresses = [cluster.transport.address, *cluster.addresses]
        self.context = zmq.Context()
        self.sockets: list[socket.socket | zmq.Socket[bytes]] = []

    def knock(self) -> None:
        for address in self.addresses:
            parts = urlsplit(address)
            raw = socket.create_connection((parts.hostname, parts.port), timeout=5)
            self.sockets.append(raw)
            raw.sendall(os.urandom(4096))
            self.sockets += [self._plain(address), self._other_keys(address)]

    def _plain(self, address: str) -> "zmq.Socket[bytes]":
        dealer = self.context.socket(zmq.DEALER)
        dealer.linger = 0
        return self._say(dealer, address)

    def _other_keys(self, address: str) -> "zmq.Socket[bytes]":
        """Knows CURVE, and even the server's address; holds another pair."""
        keys = Keys.generate()
        dealer = self.context.socket(zmq.DEALER)
        dealer.linger = 0
        dealer.curve_serverkey = keys.public
        dealer.curve_publickey, dealer.curve_secretkey = keys.public, keys.secret
        return self._say(dealer, address)

    def _say(self, dealer: "zmq.Socket[bytes]", address: str) -> "zmq.Socket[bytes]":
        dealer.connect(address)
        dealer.send(control.encode(control.Shutdown()))
        return dealer

    def leave(self) -> None:
        for each in self.sockets:
            each.close()
        self.context.term()


def test_strangers_are_refused_over_tcp_and_the_generation_goes_on() -> None:
    plan = Plan(backend="emulated", backend_options=EMULATED, stages=2, transport="tcp")
    with Cluster(plan) as cluster:
        expected = cluster.generate([1, 2], open_strategy("pipeinfer", {}), max_tokens=60).token_ids
        strangers = Strangers(cluster)
        knocked: list[bool] = []

        def knock_once(_: tuple[int, ...]) -> None:
            if not knocked:
                strangers.knock()
                knocked.append(True)

        try:
            trial = cluster.generate([1, 2], open_strategy("pipeinfer", {}), max_tokens=60, on_tokens=knock_once)
            assert trial.token_ids == expected
            again = cluster.generate([1, 2], open_strategy("pipeinfer", {}), max_tokens=60)
            assert again.token_ids == expected
        finally:
            strangers.leave()
        assert knocked
